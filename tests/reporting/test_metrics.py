import numpy as np
import pytest
import torch
from support.reports import ABOUT, random_logits
from support.snapshots import make_trained

from cifarnet.core.device import init_process
from cifarnet.reporting.metrics import build_report, collect_logits, describe_network, scores
from cifarnet.settings.precision import PrecisionSettings


def report_of(logits, labels):
    names = tuple(f"class {i}" for i in range(logits.shape[1]))
    return build_report(logits, labels, names, **ABOUT)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10, 100])
def test_scores_equal_their_definitions(classes):
    logits, labels = random_logits(classes, 500)
    probabilities = torch.softmax(logits.double(), dim=1)[torch.arange(500), labels]
    loss, *tops = scores(logits, labels)
    assert loss == pytest.approx(-probabilities.log().mean().item())
    ranks = (logits > logits[torch.arange(500), labels][:, None]).sum(dim=1)
    assert tops == [pytest.approx((ranks < k).double().mean().item()) for k in (1, 3, 5)]


@pytest.mark.parametrize("classes", [2, 10])
def test_the_report_equals_its_definitions(classes):
    logits, labels = random_logits(classes, 500)
    report = report_of(logits, labels)
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (labels.numpy(), logits.numpy().argmax(axis=1)), 1)
    hits, support = matrix.diagonal(), matrix.sum(axis=1)
    precision, recall = hits / matrix.sum(axis=0), hits / support
    each = {"precision": precision, "recall": recall}
    each["f1"] = 2 * precision * recall / (precision + recall)
    assert report.confusion_matrix == matrix.tolist()
    assert (report.images, report.top1) == (500, pytest.approx(hits.sum() / 500))
    for bound in report.interval:  # Wilson's: the bounds are 1.96 of their deviations away
        deviation = (bound * (1 - bound) / 500) ** 0.5
        assert abs(report.top1 - bound) == pytest.approx(1.959964 * deviation)
    assert report.interval[0] < report.top1 < report.interval[1]
    for name, values in each.items():
        assert [row[name] for row in report.per_class.values()] == pytest.approx(values.tolist())
        assert report.macro[name] == pytest.approx(values.mean())
        assert report.weighted[name] == pytest.approx(np.average(values, weights=support))
    assert [row["support"] for row in report.per_class.values()] == support.tolist()


def test_ties_are_broken_alike_and_classes_that_are_never_predicted_score_0():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    report = report_of(logits, torch.tensor([0, 2, 2]))
    assert report.top1 == np.trace(report.confusion_matrix) / 3 == 1 / 3
    assert report.per_class["class 2"] == {"precision": 0, "recall": 0, "f1": 0, "support": 2}
    assert report.per_class["class 1"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_the_pass_keeps_the_order_of_the_batches():
    runtime = init_process(PrecisionSettings(device="cpu"))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images, labels = torch.randn(10, 3, 2, 2), torch.arange(10) % 3
    batches = zip(images.split(4), labels.split(4), strict=True)
    logits, targets = collect_logits(network, batches, runtime)
    assert torch.equal(targets, labels)
    torch.testing.assert_close(logits, network(images).detach())


def test_an_ensemble_is_described_by_all_its_members():
    one = make_trained(source="a.pth", sha256="1", origin={"epoch": 3})
    other = make_trained(source="b.pth", sha256="2", origin={"epoch": 5, "weights": "ema"})
    alone = describe_network([one], "pictures")
    assert (alone["snapshot"], alone["epoch"], alone["sha256"]) == ("a.pth", 3, "1")
    assert "members" not in alone
    both = describe_network([one, other], "elsewhere")
    assert (both["snapshot"], both["epoch"]) == ("a.pth,b.pth", "3, 5")
    assert both["weights"] == "raw and ema"
    assert both["selected_by"].endswith("; trained on pictures")
    assert both["parameters"] == 2 * alone["parameters"]
    assert [member["sha256"] for member in both["members"]] == ["1", "2"]
