"""One type for a trained model, and its weights file: weights.safetensors.

A weights file and a snapshot hold the same fields of a model under the same names: `FIELDS`, and
the tensors.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cifarnet.checkpoints.checks import check_fields, check_finite, fits
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import read_file, write_atomically
from cifarnet.core.seal import PLACEHOLDER, is_sealed, seal
from cifarnet.core.text import composed
from cifarnet.networks.build import build_model, parameter_count
from cifarnet.settings import Settings, settings_from_dict
from cifarnet.settings.network import NetworkSettings

FORMAT = 2  # of weights files, snapshots and the metadata of ONNX files
MOST_EPOCHS = 1_000_000  # the limit of --epochs
TEMPERATURE_RANGE = 0.01, 100.0
UNCALIBRATED = {"temperature": 1.0, "calibrated_on": ""}  # files of earlier versions lack these


@dataclass(frozen=True)
class Origin:
    """Where a trained model comes from, and how good it is."""

    dataset: str
    epoch: int
    weights: str  # "raw", or "ema": the averaged ones
    selected_by: str  # how the epoch was chosen, in words
    accuracy: float | None  # top-1 on the test images, in [0, 1]; None: not measured
    accuracy_from: str  # where that figure comes from, in words
    computed_on: str  # device and precision of the training, in words
    settings: dict[str, Any]  # the flags of its run; an exported model keeps no paths


@dataclass(frozen=True)
class ModelInfo:
    """All that is known of a trained model beside its weights."""

    network: NetworkSettings
    image_size: int  # pixels
    classes: tuple[str, ...]  # the names of the logits, in their order
    mean: tuple[float, ...]  # of each channel of the training images, in [0, 1]
    std: tuple[float, ...]
    origin: Origin
    sha256: str  # of the weights: see `fingerprint`
    source: str  # the name that the user gave
    temperature: float = 1.0  # divides the logits: see `fit_temperature`
    calibrated_on: str = ""  # the images that it was fitted on, in words; empty: not fitted

    def fields(self) -> dict[str, Any]:
        """The values of `FIELDS`, as plain values."""
        values = {name: getattr(self, name) for name in FIELDS}
        values |= {name: list(values[name]) for name in ("classes", "mean", "std")}
        parts = {name: dataclasses.asdict(values[name]) for name in ("network", "origin")}
        return values | parts

    def metadata(self) -> dict[str, str]:
        """The fields and the format, each as JSON, for files whose metadata are texts."""
        return {name: json.dumps(v) for name, v in {"format": FORMAT, **self.fields()}.items()}

    @property
    def settings(self) -> Settings:
        """The settings of the training."""
        return settings_from_dict(self.origin.settings)

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        with torch.device("meta"):  # takes neither time nor random numbers
            return parameter_count(build_model(self.network, len(self.classes)))


# The fields of a model in a file, with the types that they have there.
FIELDS = typing.get_type_hints(ModelInfo) | {"network": dict[str, Any]}
del FIELDS["source"]


@dataclass(frozen=True)
class TrainedModel(ModelInfo):
    """A trained network, with all that is needed to use it or to judge it."""

    weights: dict[str, Tensor] = dataclasses.field(kw_only=True)  # the network's state_dict

    def build(self) -> nn.Module:
        """The trained network, on the CPU in evaluation mode: see `build_model`. Raises `UserError`
        if the weights belong to another network."""
        network = build_model(self.network, len(self.classes))
        load_weights(network, self.weights)
        return network.eval()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads the state_dict `weights`. Raises `UserError` if it belongs to another network."""
    if not fits(network.state_dict(), weights):
        raise UserError(
            f"the weights do not fit this {type(network).__name__}; use others, or another "
            f"--network"
        )
    network.load_state_dict(weights)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state_dict: equal for equal weights and running statistics."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].cpu().flatten().view(torch.uint8).numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def model_info(fields: Mapping[str, Any], source: str) -> ModelInfo:
    """The model that a file describes by `fields`, with `FIELDS` among them. Raises `ValueError`,
    or `UserError` for a wrong setting, for what no run writes."""
    if fields.get("format") != FORMAT:
        raise ValueError(
            f"it has the format {str(fields.get('format'))[:20]} of another version, not {FORMAT}"
        )
    fields = UNCALIBRATED | fields
    check_fields(FIELDS, fields)
    words = ("dataset", "selected_by", "accuracy_from", "computed_on")
    origin = Origin(
        **fields["origin"] | {name: printable(fields["origin"][name]) for name in words}
    )
    settings_from_dict(origin.settings)
    classes = tuple(map(composed, fields["classes"]))
    mean, std = (tuple(fields[name]) for name in ("mean", "std"))
    unknown = fields["network"].keys() - typing.get_type_hints(NetworkSettings)
    if unknown:
        raise ValueError(f"its network has an unknown setting, {min(unknown)}")
    if not (
        1 <= origin.epoch <= MOST_EPOCHS
        and 2 <= len(classes) == len(set(classes))
        and len(mean) == len(std) == 3
        and min(std) > 0
        and 16 <= fields["image_size"] <= 1024
        and origin.weights in ("raw", "ema")
        and (origin.accuracy is None or 0 <= origin.accuracy <= 1)
        and TEMPERATURE_RANGE[0] <= fields["temperature"] <= TEMPERATURE_RANGE[1]
    ):
        raise ValueError("its figures are inconsistent")
    network, size, sha256 = (fields[name] for name in ("network", "image_size", "sha256"))
    parts = (NetworkSettings(**network), size, classes, mean, std, origin, sha256, source)
    return ModelInfo(*parts, fields["temperature"], printable(fields["calibrated_on"]))


def trained_model(info: ModelInfo, weights: dict[str, Tensor]) -> TrainedModel:
    """The model of `info` and `weights`. Raises `ValueError` unless these are its weights."""
    check_finite(weights)
    if info.sha256 != fingerprint(weights):
        raise ValueError("its weights belong to another model")
    return TrainedModel(**vars(info), weights=weights)


def info_from_metadata(metadata: Mapping[str, str], path: Path, source: str) -> ModelInfo:
    """The model that the file `path` describes in its `metadata`, written by `metadata()`. Raises
    `UserError` for a file that export.py did not write, or of another format."""
    try:
        names = metadata.keys() & {"format", *FIELDS}
        return model_info({name: json.loads(metadata[name]) for name in names}, source)
    except (RecursionError, UserError, ValueError) as problem:  # as of nested or wrong JSON
        raise UserError(
            f"{path} is not usable ({problem}); use a file that export.py wrote"
        ) from None


def write_weights(model: TrainedModel, path: Path, half: bool = False) -> None:
    """Writes `model` as a safetensors file, whole or not at all. Raises `OSError`.

    The tensors are the file's tensors, rounded to float16 if `half`. The other fields are JSON
    texts in its metadata; that of the accuracy then says if rounding changed a weight.
    """
    weights = {name: value.cpu().contiguous() for name, value in model.weights.items()}
    if half:
        weights = {
            n: value.half() if value.is_floating_point() else value for n, value in weights.items()
        }
        sha256, origin = fingerprint(_float16_as_float32(weights)), model.origin
        if sha256 != model.sha256 and origin.accuracy is not None:
            measured = f"{origin.accuracy_from}, before the rounding to 16 bits"
            origin = dataclasses.replace(origin, accuracy_from=measured)
        model = dataclasses.replace(model, sha256=sha256, origin=origin)
    content = safetensors.torch.save(weights, model.metadata() | {"checksum": PLACEHOLDER})
    write_atomically(path, lambda file: file.write(seal(content)))


def is_half(path: Path) -> bool:
    """Whether the weights file `path` has 16-bit floats. Raises `OSError`."""
    with safetensors.safe_open(path, "pt") as file:
        return any(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118


def _float16_as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        n: value.float() if value.dtype is torch.float16 else value for n, value in weights.items()
    }


def read_weights(path: Path, source: str) -> TrainedModel:
    """Reads the weights file `path`, which the user calls `source`, onto the CPU. Raises
    `UserError` for any file that `write_weights` did not write."""
    content = read_file(path)
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        weights = _float16_as_float32(safetensors.torch.load(content))
    except Exception:  # a damaged or crafted file can raise anything
        raise UserError(
            f"{path} is truncated, damaged or not a safetensors file of export.py; use another one"
        ) from None
    info = info_from_metadata(metadata, path, source)
    if not is_sealed(content):
        raise UserError(f"{path} is damaged: its checksum does not match; use another one")
    try:
        return trained_model(info, weights)
    except ValueError as problem:
        raise UserError(
            f"{path} is not usable ({problem}); use a file that export.py wrote"
        ) from None


def check_classes(
    trained: Sequence[str],
    classes: Sequence[str],
    network: str = "the network",
    other: str = "the data set",
) -> None:
    """Raises `UserError` unless `trained` and `classes` are equal. `network` and `other` say in its
    message whose they are."""
    if tuple(trained) == tuple(classes):
        return
    pairs = enumerate(zip(trained, classes, strict=False))
    differs = next((at for at, (a, b) in pairs if a != b), 0)
    start = max(0, differs - 2)  # the first difference is shown
    theirs, ours = (f"{len(names)} ({_three(names, start)})" for names in (trained, classes))
    raise UserError(
        f"class names differ: {network} knows {theirs}; {other} has {ours}; "
        f"both must have the same classes in the same order"
    )


def _three(names: Sequence[str], start: int) -> str:
    before, after = ["..."] * (start > 0), ["..."] * (len(names) > start + 3)
    return ", ".join([*before, *names[start : start + 3], *after])
