import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.reporting.predictions import build_predictions, calibration_error, reliability
from cifarnet.reporting.report_files import write_predictions, write_probabilities


def random_predictions(classes: int = 10, images: int = 200, seed: int = 0, spread: float = 2):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, classes, generator=generator)
    return logits, torch.randint(0, classes, (images,), generator=generator)


def error_by_its_definition(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Guo et al. 2017, equation 3."""
    sure, classes = logits.double().softmax(dim=1).max(dim=1)
    gaps, bins = (classes == labels).double() - sure, torch.ceil(15 * sure)
    return sum(abs(gaps[bins == m].sum().item()) for m in range(1, 16)) / len(labels)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 60), st.floats(0.1, 20))
def test_the_calibration_error_is_the_one_of_its_definition(seed, classes, images, spread):
    logits, labels = random_predictions(classes, images, seed, spread)
    bins = reliability(build_predictions(logits, labels))
    expected = error_by_its_definition(logits, labels)
    assert calibration_error(bins) == pytest.approx(expected, abs=1e-12)
    assert sum(each.images for each in bins) == images
    assert all(each.low <= each.confidence <= each.high for each in bins if each.images)


def test_predictions_are_the_two_highest_probabilities():
    logits, labels = random_predictions()
    predictions = build_predictions(logits, labels)
    shares = logits.double().softmax(dim=1)
    highest, classes = (values.numpy().T for values in shares.topk(2))
    assert (np.array([predictions.predicted, predictions.runner_up]) == classes).all()
    np.testing.assert_allclose([predictions.p_predicted, predictions.p_runner_up], highest)
    np.testing.assert_allclose(predictions.p_true, shares[torch.arange(len(labels)), labels])


@pytest.mark.parametrize("names", [[0, 1], ["a,b.png", 'c"d.png']])
def test_the_file_has_a_row_an_image(tmp_path, names):
    predictions = build_predictions(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 1]))
    write_predictions(predictions, ["<b>, é", '"漢"'], names, tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", "true", "predicted", "probability_true", "probability_predicted"]
    assert [row[0] for row in rows] == list(map(str, names))
    assert [row[1:3] for row in rows] == [['"漢"', "<b>, é"], ['"漢"', '"漢"']]
    shares = [float(share) for row in rows for share in row[3:]]
    assert shares == pytest.approx([0.268941, 0.731059, 0.952574, 0.952574], abs=1e-6)


@pytest.mark.parametrize("images", [range(200), [f"ü/{i}.png" for i in range(200)]])
def test_the_archive_holds_all_probabilities(tmp_path, images):
    logits, labels = random_predictions()
    names = [f"class {i}" for i in range(10)]
    write_probabilities(build_predictions(logits, labels), names, images, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz", allow_pickle=False) as archive:
        assert archive["probabilities"].dtype == np.float32
        np.testing.assert_allclose(archive["probabilities"], logits.softmax(1), atol=1e-6)
        assert (archive["labels"] == labels.numpy()).all()
        assert archive["classes"].tolist() == names
        assert archive["paths"].tolist() == list(map(str, images))
