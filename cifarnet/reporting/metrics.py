"""The evaluation pass, and the figures that follow from its predictions."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor

from cifarnet.checkpoints.trained import ModelInfo
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError
from cifarnet.core.ranks import gathered
from cifarnet.reporting.confidence import threshold_table
from cifarnet.reporting.predictions import (
    Bin,
    Predictions,
    build_predictions,
    calibration_error,
    interval,
    ranked,
    reliability,
)


@torch.inference_mode()
def collect_logits(
    compute_logits: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N,C] and labels int64 [N] of all batches and ranks, on the CPU.

    `compute_logits` is a network in evaluation mode, or a classifier's `logits`. The images of the
    first rank come first. Raises `RunError` for logits that are not finite: float16 overflows.
    """
    logits, labels = [], []
    for images, targets in batches:
        with runtime.autocast():
            logits.append(compute_logits(images))
        labels.append(targets)
    parts = gathered(
        (torch.cat(logits).cpu(), torch.cat(labels).cpu()) if labels else None, runtime
    )
    logits, labels = map(torch.cat, zip(*filter(None, parts), strict=True))
    if not logits.isfinite().all():
        precision, amp = runtime.precision, runtime.amp_dtype
        advice = "try --no-amp" if amp else "train with a lower --lr"
        raise RunError(f"the outputs of the network are not finite in {precision}; {advice}")
    return logits, labels


class Scores(NamedTuple):
    """Cross-entropy in nats, and top-k accuracies in [0, 1]: the share of images whose label is
    among the k highest logits. With fewer than k classes it is 1."""

    loss: float
    top1: float
    top3: float
    top5: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """The headline figures of logits [N,C] and labels [N], N > 0."""
    hits = ranked(logits) == labels[:, None]  # [N,C], one true each
    loss = F.cross_entropy(logits.double(), labels).item()
    return Scores(loss, *(hits[:, :k].any(dim=1).double().mean().item() for k in (1, 3, 5)))


@dataclass(frozen=True)
class Report:
    """All figures of one network on one set of images; shares in [0, 1]."""

    top1: float
    top3: float
    top5: float
    loss: float
    calibration_error: float
    interval: tuple[float, float]  # of top-1: 95 %, by the number of images
    images: int
    macro: dict[str, float]  # precision, recall, f1
    weighted: dict[str, float]
    per_class: dict[str, dict[str, float]]  # precision, recall, f1, support
    confusion_matrix: list[list[int]]  # rows: true class; columns: predicted class
    dataset: str
    snapshot: str
    epoch: int | str  # of an ensemble: those of its members, separated by commas
    weights: str  # "raw", or "ema": the averaged ones
    selected_by: str  # how the epoch was chosen, in words
    sha256: str  # of the weights and running statistics
    table: str  # scikit-learn's classification report
    predictions: Predictions
    members: list[dict[str, Any]] = field(default_factory=list)  # see `describe_network`
    tta: str = "none"  # test-time augmentation
    parameters: int | None = None  # of all networks together
    run: dict[str, Any] = field(default_factory=dict)  # its id, command, log and settings
    temperature: float | None = 1.0  # that the logits were divided by; None: of an ensemble
    calibrated_on: str = ""  # see `ModelInfo`
    may_be_fitted_here: bool = False  # the temperature, on some of the images of this report
    images_sha256: str = ""  # see `ImageSet`
    calibration_error_before: float | None = None  # without the temperature, where there is one
    bins_before: list[Bin] = field(default_factory=list)
    thresholds: list[dict[str, Any]] = field(default_factory=list)  # see `threshold_table`

    def summary(self) -> str:
        """One summary line, in percent."""
        tops = ", ".join(f"top-{k} {share:.2%}" for k, share in self.tops().items())
        return f"{tops}, macro F1 {self.macro['f1']:.4f}, loss {self.loss:.4f}"

    def calibration(self) -> str:
        """The calibration error, in words."""
        words = f"calibration error: {self.calibration_error:.2%}"
        if self.calibration_error_before is None:
            return words
        return f"{words}, without the temperature: {self.calibration_error_before:.2%}"

    def epoch_in_words(self) -> str:
        """The epoch, and whether the weights are averaged ones."""
        averaged = ", averaged weights" if self.weights == "ema" else ", some weights averaged"
        return f"epoch {self.epoch}" + ("" if self.weights == "raw" else averaged)

    def network(self) -> str:
        """The network in words, with its test-time augmentation."""
        ensemble = f"ensemble of {len(self.members)}: " if self.members else ""
        return ensemble + self.snapshot + ("" if self.tta == "none" else f", --tta {self.tta}")

    def tops(self) -> dict[int, float]:
        """Top-k accuracy by k; without those that are always 1, as there are k classes or fewer."""
        tops = {1: self.top1, 3: self.top3, 5: self.top5}
        return {k: top for k, top in tops.items() if k == 1 or k < len(self.per_class)}

    def headline(self) -> dict[str, Any]:
        """The figures that stand beside each other in metrics.json, for last and best model."""
        names = ("snapshot", "epoch", "top1", "top3", "top5", "loss")
        names += ("temperature", "calibration_error", "calibration_error_before")
        return {name: getattr(self, name) for name in names}


def describe_network(infos: Sequence[ModelInfo], dataset: str) -> dict[str, Any]:
    """The fields of a report on `dataset` that describe its network, or an ensemble of several: its
    sha256 is that of its members' sha256, in their order."""
    parameters = sum(info.parameters for info in infos)
    members = [_describe_member(info, dataset) for info in infos]
    if len(members) == 1:
        return {**members[0], "parameters": parameters}
    values = {name: [str(member[name]) for member in members] for name in members[0]}
    return {
        "snapshot": ",".join(values["snapshot"]),
        "epoch": ", ".join(values["epoch"]),
        "weights": " and ".join(dict.fromkeys(values["weights"])),
        "selected_by": "; ".join(dict.fromkeys(values["selected_by"])),
        "sha256": hashlib.sha256("".join(values["sha256"]).encode()).hexdigest(),
        "members": members,
        "parameters": parameters,
        "temperature": None,
        "calibrated_on": "; ".join(filter(None, dict.fromkeys(values["calibrated_on"]))),
    }


def _describe_member(info: ModelInfo, dataset: str) -> dict[str, Any]:
    origin = info.origin
    elsewhere = "" if dataset == origin.dataset else f"; trained on {origin.dataset}"
    return {
        "snapshot": info.source,
        "epoch": origin.epoch,
        "weights": origin.weights,
        "selected_by": origin.selected_by + elsewhere,
        "sha256": info.sha256,
        "temperature": info.temperature,
        "calibrated_on": info.calibrated_on,
    }


def build_report(
    logits: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    no_class: Mapping[str, np.ndarray] | None = None,
    **about: Any,
) -> Report:
    """The report on logits [N,C] and labels [N]; a class that is missing or never predicted is 0.

    `no_class`: see `threshold_table`. `about` are the fields of a report that do not follow from
    logits and labels: dataset, and those of `describe_network`, at least.
    """
    loss, top1, top3, top5 = scores(logits, labels)
    predictions = build_predictions(logits, labels)
    before: list[Bin] = []
    temperature = about.get("temperature")
    if temperature not in (None, 1) and about.get("tta", "none") == "none":
        before = reliability(build_predictions(logits.double() * temperature, labels))
    true, predicted = predictions.true, predictions.predicted
    indices = list(range(len(classes)))
    arguments = {"labels": indices, "zero_division": 0}

    each = metrics.classification_report(true, predicted, output_dict=True, **arguments)
    matrix = metrics.confusion_matrix(true, predicted, labels=indices)
    table = metrics.classification_report(
        true, predicted, target_names=list(classes), digits=4, **arguments
    )
    return Report(
        top1=top1,
        top3=top3,
        top5=top5,
        loss=loss,
        calibration_error=calibration_error(reliability(predictions)),
        interval=interval(top1, len(labels)),
        images=len(labels),
        macro=_shares(each["macro avg"]),
        weighted=_shares(each["weighted avg"]),
        per_class={
            name: {**_shares(each[str(i)]), "support": int(each[str(i)]["support"])}
            for i, name in enumerate(classes)
        },
        confusion_matrix=matrix.tolist(),
        table=table,
        predictions=predictions,
        calibration_error_before=calibration_error(before) if before else None,
        bins_before=before,
        thresholds=threshold_table(predictions, no_class or {}),
        **about,
    )


def _shares(row: dict[str, float]) -> dict[str, float]:
    """Precision, recall and F1 of a row of scikit-learn's classification report."""
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    return {name: float(row[key]) for name, key in keys.items()}
