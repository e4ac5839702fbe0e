from pathlib import Path

import pytest
import torch
from PIL import Image
from support.classifiers import COLOURS, MeanColour
from support.random_models import noise
from support.snapshots import make_trained

from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import Classifier
from cifarnet.inference.predictor import Predictor

CPU = torch.device("cpu")
PREDICTOR = Predictor(MeanColour(), CPU)


def test_rankings_are_the_softmax_of_the_logits():
    pixels = noise(4)
    expected = (pixels.double().mean((2, 3)) / 64).softmax(1)
    for ranking, shares in zip(PREDICTOR.rank(pixels), expected.tolist(), strict=True):
        assert [share for _, share in ranking] == sorted((s for _, s in ranking), reverse=True)
        ours = [dict(ranking)[name] for name in COLOURS]
        assert ours == pytest.approx(shares, abs=1e-5)


def test_equally_probable_classes_stay_in_the_classifiers_order():
    class Same(Classifier):
        def logits(self, pixels):
            return torch.zeros(len(pixels), 20)

    classes = tuple(f"class {i}" for i in range(20))
    (ranking,) = Predictor(Same([make_trained(classes=classes)]), CPU).rank(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    )
    assert ranking == [(name, pytest.approx(0.05)) for name in classes]


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_files_are_classified_in_order_and_bad_ones_are_named(tmp_path, batch_size):
    paths = [str(tmp_path / f"{name}.png") for name in ("blue", "missing", "red", "lime")]
    for path in (paths[0], *paths[2:]):
        Image.new("RGB", (40, 20), Path(path).stem).save(path)
    read = []
    outcomes = list(PREDICTOR.classify(paths, batch_size, lambda: read.append(1)))
    assert [path for path, _ in outcomes] == paths
    assert len(read) == 4
    (_, first), (_, missing), (_, second), (_, third) = outcomes
    assert [ranking[0][0] for ranking in (first, second, third)] == ["blue", "red", "green"]
    assert isinstance(missing, UserError)
    assert "missing.png" in str(missing)
