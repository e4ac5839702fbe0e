"""The evaluation pass, and what follows from its predictions."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from cifarnet.core.device import Runtime
from cifarnet.core.files import write_atomically
from cifarnet.core.ranks import gathered


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N,C] and labels int64 [N], on the CPU, of all batches and ranks, one rank after the other; the
    model's mode is left as it was."""
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for images, targets in batches:
        with runtime.autocast():
            logits.append(model(images))
        labels.append(targets)
    model.train(was_training)
    parts = gathered(
        (torch.cat(logits).cpu(), torch.cat(labels).cpu()) if labels else None, runtime
    )
    logits, labels = zip(*filter(None, parts), strict=True)
    return torch.cat(logits), torch.cat(labels)


class Scores(NamedTuple):
    """Cross-entropy in nats, and the shares in [0, 1] of images whose label is among the k highest logits; with
    fewer than k classes, k is their number."""

    loss: float
    top1: float
    top3: float
    top5: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """The headline figures of logits [N,C] and labels [N], N > 0."""
    hits = _ranked(logits) == labels[:, None]  # [N,C], one true each
    loss = F.cross_entropy(logits.double(), labels).item()
    return Scores(loss, *(hits[:, :k].any(dim=1).double().mean().item() for k in (1, 3, 5)))


def _ranked(logits: Tensor) -> Tensor:
    """The classes int64 [N,C] from the highest logit down; of equal logits the first class comes first."""
    return logits.sort(dim=1, descending=True, stable=True).indices


@dataclass(frozen=True)
class Report:
    """Everything that is said of one model on one set of images, as plain numbers; shares in [0, 1]."""

    top1: float
    top3: float
    top5: float
    loss: float
    images: int
    macro: dict[str, float]  # precision, recall, f1
    weighted: dict[str, float]
    per_class: dict[str, dict[str, float]]  # precision, recall, f1, support
    confusion_matrix: list[list[int]]  # rows: true class; columns: predicted class
    dataset: str
    snapshot: str
    epoch: int
    weights: str  # "raw", or "ema": the averaged ones
    selected_by: str  # how the epoch was chosen, in words
    sha256: str  # of the weights and running statistics
    table: str  # scikit-learn's classification report

    def summary(self) -> str:
        """The headline figures, in words."""
        tops = ", ".join(f"top-{k} {share:.2%}" for k, share in self.tops().items())
        return f"{tops}, macro F1 {self.macro['f1']:.4f}, loss {self.loss:.4f}"

    def tops(self) -> dict[int, float]:
        """The top-k accuracies of the ks that there are classes for."""
        return {
            k: top
            for k, top in ((1, self.top1), (3, self.top3), (5, self.top5))
            if k <= len(self.per_class)
        }


def build_report(logits: Tensor, labels: Tensor, classes: tuple[str, ...], **about: Any) -> Report:
    """The report on logits [N,C] and labels [N]; a class never predicted or never present scores 0.

    `about` is what a `Report` says of model and images: dataset, snapshot, epoch, weights, selected_by, sha256.
    """
    loss, top1, top3, top5 = scores(logits, labels)
    true, predicted = labels.numpy(), _ranked(logits)[:, 0].numpy()
    indices = np.arange(len(classes))
    arguments = {"labels": indices, "zero_division": 0}
    names = ("precision", "recall", "f1")

    def averaged(how: str) -> dict[str, float]:
        values = precision_recall_fscore_support(true, predicted, average=how, **arguments)
        return {name: float(value) for name, value in zip(names, values[:3], strict=True)}

    each = np.stack(precision_recall_fscore_support(true, predicted, **arguments), axis=1)  # [C,4]
    per_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, (p, r, f, n) in zip(classes, each, strict=True)
    }
    return Report(
        top1=top1,
        top3=top3,
        top5=top5,
        loss=loss,
        images=len(labels),
        macro=averaged("macro"),
        weighted=averaged("weighted"),
        per_class=per_class,
        confusion_matrix=confusion_matrix(true, predicted, labels=indices).tolist(),
        table=classification_report(
            true, predicted, target_names=list(classes), digits=4, **arguments
        ),
        **about,
    )


def write_report(
    report: Report, directory: Path, last: dict[str, Any] | None, best: dict[str, Any] | None
) -> None:
    """Writes metrics.json and classification_report.txt. Raises `OSError`.

    `last` and `best` are the headline figures of those two models, None where there is no such model.
    """
    figures = {name: value for name, value in asdict(report).items() if name != "table"} | {
        "last": last,
        "best": best,
    }
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    write_atomically(
        directory / "metrics.json", lambda file: file.write(text.encode(errors="backslashreplace"))
    )

    tops = "".join(f"top-{k} accuracy: {share:.4f}\n" for k, share in report.tops().items())
    head = (
        f"{report.dataset}: {report.images} test images\n"
        f"snapshot: {report.snapshot} (epoch {report.epoch}, {report.weights} weights, {report.selected_by})\n"
        f"evaluated: {time.strftime('%Y-%m-%d %H:%M:%S')}\n\n"
        f"{tops}loss: {report.loss:.4f}\n\n"
    )
    text = (head + report.table).encode(errors="backslashreplace")
    write_atomically(directory / "classification_report.txt", lambda file: file.write(text))
