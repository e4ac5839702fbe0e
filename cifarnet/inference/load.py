"""Loads classifiers by the names of their trained models."""

from collections.abc import Sequence

from cifarnet.checkpoints.paths import resolve_model_path
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.inference.classifier import Augmented, Classifier, Ensemble, TorchClassifier
from cifarnet.inference.onnx import read_onnx


def load_member(name: str, amp: bool | None = None) -> Classifier:
    """The classifier of one trained model, as `load_trained` finds it, or of an ONNX file. `amp`:
    see `TorchClassifier`. Raises `UserError`."""
    path = resolve_model_path(name)
    if path.suffix == ".onnx":
        return read_onnx(path, name)
    return TorchClassifier(load_trained(name), amp)


def combine(members: Sequence[Classifier], tta: str = "none") -> Classifier:
    """One classifier of `members`: itself, or their ensemble, with test-time augmentation. Raises
    `UserError` if they do not fit together."""
    classifier = members[0] if len(members) == 1 else Ensemble(members)
    return classifier if tta == "none" else Augmented(classifier, tta)


def load_classifier(names: Sequence[str], tta: str = "none", amp: bool | None = None) -> Classifier:
    """The classifier of the trained models `names`, on the CPU; of several, their ensemble. `tta`
    is the test-time augmentation: see `views`. `amp`: see `TorchClassifier`. Raises `UserError`."""
    return combine([load_member(name, amp) for name in names], tta)
