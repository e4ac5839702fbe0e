import json
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch

from cifarnet.core.device import init_process
from cifarnet.reporting.metrics import build_report, predict, scores
from cifarnet.reporting.report_files import move_other_report, write_report
from cifarnet.settings.precision import PrecisionSettings

ABOUT = {
    "dataset": "noise",
    "snapshot": "a.pth",
    "epoch": 3,
    "weights": "raw",
    "selected_by": "by chance",
    "sha256": "0",
}


def random_predictions(classes: int, images: int = 500, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    logits[torch.arange(images), labels] += 0.7
    return logits, labels


def report_of(logits, labels, names=None):
    names = names or tuple(f"class {i}" for i in range(logits.shape[1]))
    return build_report(logits, labels, names, **ABOUT)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10, 100])
def test_scores_equal_sklearn(classes):
    logits, labels = random_predictions(classes)
    loss, *tops = scores(logits, labels)
    indices = range(classes)
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    assert loss == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=indices))
    for k, top in zip((1, 3, 5), tops, strict=True):
        if k >= classes:
            assert top == 1
        else:
            truth, score = (
                (labels, probabilities[:, 1]) if classes == 2 else (labels, probabilities)
            )
            expected = sklearn.metrics.top_k_accuracy_score(truth, score, k=k, labels=indices)
            assert top == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_report_equals_its_definitions(classes):
    logits, labels = random_predictions(classes)
    report = report_of(logits, labels)
    true, predicted = labels.numpy(), logits.numpy().argmax(axis=1)
    matrix = np.zeros((classes, classes), dtype=int)
    for t, p in zip(true, predicted, strict=True):
        matrix[t, p] += 1
    assert report.confusion_matrix == matrix.tolist()
    assert report.images == 500
    assert report.top1 == pytest.approx(np.trace(matrix) / 500)
    precision = np.diag(matrix) / matrix.sum(axis=0)
    recall = np.diag(matrix) / matrix.sum(axis=1)
    f1 = 2 * precision * recall / (precision + recall)
    each = {"precision": precision, "recall": recall, "f1": f1}
    for i, figures in enumerate(report.per_class.values()):
        assert figures == {
            **{n: pytest.approx(v[i]) for n, v in each.items()},
            "support": matrix[i].sum(),
        }
    assert report.macro == {name: pytest.approx(values.mean()) for name, values in each.items()}
    weights = matrix.sum(axis=1)
    assert report.weighted == {
        n: pytest.approx(np.average(v, weights=weights)) for n, v in each.items()
    }


def test_ties_are_broken_alike_everywhere():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    report = report_of(logits, torch.tensor([0, 2, 2]))
    assert report.top1 == np.trace(report.confusion_matrix) / 3 == 1 / 3


def test_classes_that_are_absent_or_never_predicted_score_0():
    logits = torch.eye(4)[[0, 0, 1]]
    report = report_of(logits, torch.tensor([0, 2, 1]))
    assert report.per_class["class 2"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert report.per_class["class 3"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_the_pass_evaluates_and_leaves_the_mode_alone():
    runtime = init_process(PrecisionSettings(device="cpu"))
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 3), torch.nn.Dropout(0.9)
    ).train()
    images, labels = torch.randn(10, 3, 2, 2), torch.arange(10) % 3
    got, targets = predict(model, zip(images.split(4), labels.split(4), strict=True), runtime)
    assert model.training
    assert torch.equal(targets, labels)
    torch.testing.assert_close(got, model.eval()(images))


def test_a_snapshot_whose_name_is_no_text_is_named_by_escapes(tmp_path):
    report = replace(report_of(*random_predictions(3)), snapshot="\udcff.pth")
    write_report(report, tmp_path)
    assert (
        json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["snapshot"]
        == "\udcff.pth"
    )
    assert "snapshot: \\udcff.pth" in (tmp_path / "classification_report.txt").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("part", ["run", "settings", "last", "best", "epoch"])
@pytest.mark.parametrize("damage", ["text", None, [1], 3])
def test_a_damaged_metrics_json_is_replaced(tmp_path, part, damage):
    report = report_of(*random_predictions(3))
    write_report(report, tmp_path, last=report)
    path = tmp_path / "metrics.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    place = {"settings": figures["run"], "epoch": figures["last"]}.get(part, figures)
    place[part] = damage
    path.write_text(json.dumps(figures))
    move_other_report(tmp_path, report)
    figures = write_report(report, tmp_path)
    assert figures["run"].get("settings", {}) == {}
    for name in ("last", "best"):
        assert figures[name] is None or type(figures[name]["epoch"]) in (int, str)
    other = replace(report, sha256="1", run={"id": "a"})
    move_other_report(tmp_path, other)


def test_page_and_pictures_of_another_network_do_not_stay(tmp_path):
    report = report_of(*random_predictions(3))
    write_report(report, tmp_path, last=report)
    places = [tmp_path / name for name in ("report.html", "confusion_matrix.png")]
    for sha256, stay in (("0", True), ("1", False)):
        for path in places:
            path.touch()
        write_report(replace(report, sha256=sha256), tmp_path, last=report)
        assert [path.exists() for path in places] == [stay] * 2


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_the_files(tmp_path, classes):
    names = tuple(f"<b>$x_{i}$ é" for i in range(classes))
    report = report_of(*random_predictions(classes), names)
    write_report(report, tmp_path, last=report)
    figures = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert set(figures) >= {
        "top1", "top3", "top5", "loss", "images", "macro", "weighted", "per_class",
        "confusion_matrix", "dataset", "snapshot", "epoch",
    }  # fmt: skip
    assert set(figures["macro"]) == set(figures["weighted"]) == {"precision", "recall", "f1"}
    assert list(figures["per_class"]) == list(names)
    assert (figures["last"], figures["best"]) == (report.headline(), None)
    assert figures["last"]["top1"] == report.top1
    text = (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    assert "a.pth" in text
    assert f"top-1 accuracy: {report.top1:.4f}" in text
    assert ("top-3" in text, "top-5" in text) == (classes > 3, classes > 5)
    assert all(name in text for name in names)
    assert "weighted avg" in text
    low, high = figures["interval"]
    assert (low, high) == report.interval
    assert f"95 % interval of top-1: {low:.4f} to {high:.4f}\n" in text
    assert f"calibration error: {figures['calibration_error']:.4f}\n" in text
    assert len((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 501
