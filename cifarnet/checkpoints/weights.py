"""A trained network in a file that other programs read too: writing, finding and reading `weights.safetensors`."""

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cifarnet.core.errors import UserError, did_you_mean
from cifarnet.core.files import write_atomically

RESULTS = Path(__file__).parents[2] / "results"  # results/<name>/weights.safetensors
FILE = "weights.safetensors"


@dataclass(frozen=True)
class Weights:
    """The weights of a trained network, and all that using or judging it needs."""

    model: dict[str, Tensor]  # the network's state_dict
    epoch: int
    config: dict[str, Any]
    classes: list[str]
    mean: list[float]
    std: list[float]
    dataset: str
    selected_by: str  # how the epoch was chosen, in words
    accuracy: float | None  # top-1 on the test images, in [0, 1]; None: not known
    accuracy_from: str  # where that figure is from, in words
    source: str  # what the user names it


METADATA = tuple(name for name in Weights.__dataclass_fields__ if name not in ("model", "source"))


def write_weights(weights: Weights, path: Path) -> None:
    """Writes `weights` to `path`, whole or not at all: tensors, and everything else as metadata, each a JSON string.

    Raises `OSError`.
    """
    model = {name: value.cpu().contiguous() for name, value in weights.model.items()}
    metadata = {name: json.dumps(getattr(weights, name)) for name in METADATA}
    metadata["sha256"] = json.dumps(_checksum(model, metadata))
    write_atomically(path, lambda file: file.write(save(model, metadata)))


def _checksum(model: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Of all that a file says: safetensors itself would not notice a weight that changed on the disk."""
    said = json.dumps([[name, metadata[name]] for name in METADATA]).encode()
    return hashlib.sha256(said + _content(model)).hexdigest()


def fingerprint(model: dict[str, Tensor]) -> str:
    """What tells the weights and running statistics of a state_dict from all others: their sha256."""
    return hashlib.sha256(_content(model)).hexdigest()


def _content(model: dict[str, Tensor]) -> bytes:
    values = ((name, model[name].cpu().flatten().view(torch.uint8)) for name in sorted(model))
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in values)


def find_weights(name: str) -> Path:
    """The file that `name` means: results/<name>/weights.safetensors where there is one, else the path `name`; with a
    separator in it, as in `./hour`, always the path. Raises `UserError`."""
    for path in ([] if "/" in name else [RESULTS / name / FILE]) + [Path(name)]:
        with contextlib.suppress(OSError):  # a name too long for a file
            if path.is_file():
                return path
    there = sorted(path.parent.name for path in RESULTS.glob(f"*/{FILE}"))
    known = f"known by name: {', '.join(there)}; else" if there else f"{RESULTS} holds none;"
    hints = f"{did_you_mean(name, there)} {known} name a file that export.py wrote".lstrip()
    raise UserError(f"there are no weights {name!r}; {hints}")


def read_weights(name: str) -> Weights:
    """Reads the file that `find_weights` finds, onto the CPU. Raises `UserError` for anything but what
    `write_weights` wrote."""
    path = find_weights(name)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            model = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception:  # a damaged or crafted file can raise anything
        raise UserError(
            f"{path} is truncated, damaged or no safetensors file; use another one"
        ) from None
    missing = [key for key in (*METADATA, "sha256") if key not in metadata]
    if missing:
        raise UserError(
            f"{path} lacks the metadata {missing[0]!r}; use a file that export.py wrote"
        )
    if metadata["sha256"] != json.dumps(_checksum(model, metadata)):
        raise UserError(
            f"{path} is damaged: its checksum does not fit its content; use another one"
        )
    trained = Weights(
        model=model, source=name, **{key: json.loads(metadata[key]) for key in METADATA}
    )
    if not isinstance(trained.config, dict) or not fit_a_network(
        trained.classes, trained.mean, trained.std
    ):
        raise UserError(
            f"{path}: its metadata do not fit together; use a file that export.py wrote"
        )
    return trained


def fit_a_network(classes: Any, mean: Any, std: Any) -> bool:
    """Whether these, read from a file, can be class names and the statistics of three channels."""
    return (
        all(isinstance(values, list) for values in (classes, mean, std))
        and len(classes) >= 2
        and all(isinstance(name, str) for name in classes)
        and len(mean) == len(std) == 3
        and all(isinstance(value, float) and math.isfinite(value) for value in [*mean, *std])
        and min(std) > 0
    )
