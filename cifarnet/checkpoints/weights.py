"""Writing and reading weights.safetensors: a trained network in a file that other programs read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cifarnet.checkpoints.checks import check_fields, check_finite
from cifarnet.checkpoints.places import find_weights
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import write_atomically
from cifarnet.settings import settings_from_dict


@dataclass(frozen=True)
class Weights:
    """A trained network, with all that is needed to use it or to judge it."""

    model: dict[str, Tensor]  # the network's state_dict
    epoch: int
    config: dict[str, Any]  # the settings it was trained with
    classes: list[str]
    mean: list[float]  # of each channel of the training images, in [0, 1]
    std: list[float]
    dataset: str
    selected_by: str  # how the epoch was chosen, in words
    accuracy: float | None  # top-1 on the test images, in [0, 1]; None: not known
    accuracy_from: str  # where that figure comes from, in words
    source: str  # the name that the user gave

    def metadata(self) -> dict[str, str]:
        """All fields that a file keeps beside the tensors, each as JSON."""
        return {name: json.dumps(getattr(self, name)) for name in METADATA}

    @property
    def sha256(self) -> str:
        """The checksum that identifies the network in reports."""
        return fingerprint(self.model)


MOST_EPOCHS = 1_000_000  # the limit of --epochs
METADATA = tuple(name for name in Weights.__dataclass_fields__ if name not in ("model", "source"))


def write_weights(weights: Weights, path: Path) -> None:
    """Writes `weights` to `path`, whole or not at all. Raises `OSError`.

    The tensors are the file's tensors; each other field is a JSON string in its metadata.
    """
    model = {name: value.cpu().contiguous() for name, value in weights.model.items()}
    metadata = weights.metadata()
    metadata["sha256"] = json.dumps(_checksum(model, metadata))
    write_atomically(path, lambda file: file.write(save(model, metadata)))


def _checksum(model: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """The checksum of a whole file. safetensors itself would not notice a changed weight."""
    said = json.dumps([[name, metadata[name]] for name in METADATA]).encode()
    return hashlib.sha256(said + _content(model)).hexdigest()


def fingerprint(model: dict[str, Tensor]) -> str:
    """The sha256 of a state_dict: equal for equal weights and running statistics."""
    return hashlib.sha256(_content(model)).hexdigest()


def _content(model: dict[str, Tensor]) -> bytes:
    values = ((name, model[name].cpu().flatten().view(torch.uint8)) for name in sorted(model))
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in values)


def read_weights(name: str) -> Weights:
    """Reads the file that `find_weights` finds, onto the CPU.

    Raises `UserError` for any file that `write_weights` did not write.
    """
    path = find_weights(name)
    if path.suffix == ".onnx":
        raise UserError(
            f"{path}: predict.py and evaluate.py alone read an ONNX file; name the snapshot or the "
            f"weights that it was made from"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            model = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception:  # a damaged or crafted file can raise anything
        raise UserError(
            f"{path} is truncated, damaged or no safetensors file; use another one"
        ) from None
    there = {*METADATA, "sha256"} <= metadata.keys()
    if there and metadata["sha256"] != json.dumps(_checksum(model, metadata)):
        raise UserError(f"{path} is damaged: its checksum does not fit; use another one")
    return weights_from(metadata, model, name, path)


def weights_from(
    metadata: Mapping[str, str], model: dict[str, Tensor], name: str, path: Path
) -> Weights:
    """The trained network `name`, read from the file `path` as `metadata` and `model`.

    Raises `UserError` unless they are what export.py writes.
    """
    missing = [key for key in (*METADATA, "sha256") if key not in metadata]
    if missing:
        raise UserError(
            f"{path} lacks the metadata {missing[0]!r}; use a file that export.py wrote"
        )
    try:
        said = {key: json.loads(metadata[key]) for key in METADATA}
        fields = said | {"model": model, "source": name}
        check_fields(Weights, fields)
        trained = Weights(**fields)
        check_network(trained)
        check_finite(model)
        if trained.accuracy is not None and not 0 <= trained.accuracy <= 1:
            raise ValueError("its accuracy is no share")
    except (RecursionError, UserError, ValueError) as problem:  # as of nested or wrong JSON
        raise UserError(
            f"{path} is not usable ({problem}); use a file that export.py wrote"
        ) from None
    words = ("dataset", "selected_by", "accuracy_from")
    return replace(trained, **{name: printable(getattr(trained, name)) for name in words})


def check_network(said: Any) -> None:
    """Checks what `Weights` and a `TrainState` both say of their network.

    Raises `ValueError`, or `UserError` for a wrong setting, unless the fields fit together.
    """
    settings_from_dict(said.config)
    if not (
        1 <= said.epoch <= MOST_EPOCHS
        and 2 <= len(said.classes) == len(set(said.classes))
        and len(said.mean) == len(said.std) == 3
        and min(said.std) > 0
    ):
        raise ValueError("its figures do not fit together")
