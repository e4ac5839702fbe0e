"""The formats of export.py: how each is written, and how it is read back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cifarnet.checkpoints.load import load_trained
from cifarnet.checkpoints.trained import TrainedModel, write_weights
from cifarnet.core.log import print_line
from cifarnet.export.model_card import write_hub
from cifarnet.export.onnx import CALIBRATION_IMAGES, write_int8, write_onnx
from cifarnet.export.page import read_page, write_page
from cifarnet.images.imageset import Splits, limited
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.onnx import read_onnx
from cifarnet.inference.readback import Classify


class Source(NamedTuple):
    """What is exported."""

    model: TrainedModel
    splits: Splits | None  # the images of its training; None: not available
    figures: dict[str, Any] | None  # of its metrics.json, see `Metrics`; None: not available


class Format(NamedTuple):
    """A kind of export. What it writes is read back and compared with the network."""

    write: Callable[[Source, Path], None]
    read: Callable[[Path], Classify]
    difference: float = float("inf")  # the largest allowed difference of a logit
    same: float = 0.0  # the least share of the images with equal top-1, in [0, 1]
    needs_images: bool = False  # to write it


def _write_safetensors(source: Source, path: Path) -> None:
    write_weights(source.model, path)


def _read_safetensors(path: Path) -> Classify:  # the file, or a folder with it
    return TorchClassifier(load_trained(str(path))).logits


def _write_onnx(source: Source, path: Path) -> None:
    write_onnx(TorchClassifier(source.model), path)


def _write_int8(source: Source, path: Path) -> None:
    splits = source.splits
    count = max(CALIBRATION_IMAGES, len(splits.train.classes))
    images = limited(splits.train, count, "--format").images
    print_line(f"calibrating with {len(images)} training images of {splits.name}")
    write_int8(TorchClassifier(source.model), images, path)


def _read_onnx(path: Path) -> Classify:
    return read_onnx(path, path.name).logits


def _write_hub(source: Source, path: Path) -> None:
    write_hub(source.model, source.figures, path)


def _write_page(source: Source, path: Path) -> None:
    write_page(source.model.build(), source.model, path)


FORMATS = {  # by --format; `EXPORT_NAMES` has the names of their files
    "safetensors": Format(_write_safetensors, _read_safetensors, difference=0.0),
    "onnx": Format(_write_onnx, _read_onnx, difference=1e-3),
    "onnx-int8": Format(_write_int8, _read_onnx, same=0.97, needs_images=True),
    "hub": Format(_write_hub, _read_safetensors, difference=0.0),
    "page": Format(_write_page, read_page, difference=1e-3),
}
