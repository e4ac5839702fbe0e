"""The formats of export.py: how each is written, and how it is read back.

What a format needs is imported when it is used: torch takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cifarnet.checkpoints.places import WEIGHTS_FILE
from cifarnet.core.log import say
from cifarnet.settings import settings_from_dict

if TYPE_CHECKING:
    from cifarnet.checkpoints.weights import Weights
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.readback import Classify


class Source(NamedTuple):
    """What is exported."""

    weights: Weights
    splits: Splits | None  # the images of its training; None: not at hand
    figures: dict[str, Any] | None  # of its metrics.json, see `Metrics`; None: not given


class Format(NamedTuple):
    """A kind of export. What it writes is read back and compared with the network."""

    out: str  # the usual name of the file; of the folder, if it has no suffix
    write: Callable[[Source, Path], None]
    read: Callable[[Path], Classify]
    difference: float = float("inf")  # the largest allowed difference of a logit
    same: float = 0.0  # the least share of the images with equal top-1, in [0, 1]
    needs_images: bool = False  # to write it
    packages: Sequence[str] = ()  # optional ones, to write and read it


def _write_safetensors(source: Source, path: Path) -> None:
    from cifarnet.checkpoints.weights import write_weights

    write_weights(source.weights, path)


def _read_safetensors(path: Path) -> Classify:  # the file, or a folder with it
    from cifarnet.checkpoints.weights import read_weights
    from model import build_classifier

    return build_classifier([read_weights(str(path))])


def _write_onnx(source: Source, path: Path) -> None:
    from cifarnet.inference.onnx import write_onnx
    from model import build_classifier

    write_onnx(build_classifier([source.weights]), _metadata(source.weights), path)


def _write_int8(source: Source, path: Path) -> None:
    from cifarnet.images.imageset import limited
    from cifarnet.inference.onnx import CALIBRATION_IMAGES, write_int8
    from model import build_classifier

    weights, splits = source.weights, source.splits
    count = max(CALIBRATION_IMAGES, len(splits.train.classes))
    images = limited(splits.train, count, "--format").images
    say(f"calibrating with {len(images)} training images of {splits.name}")
    classifier = build_classifier([weights])
    if weights.accuracy is not None:
        where = f"{weights.accuracy_from}, before the quantisation"
        weights = dataclasses.replace(weights, accuracy_from=where)
    write_int8(classifier, images, _metadata(weights), path)


def _metadata(weights: Weights) -> dict[str, str]:
    """What an ONNX file says of its network, each field as JSON."""
    more = {"sha256": weights.sha256, "source": Path(weights.source).name}
    return weights.metadata() | {name: json.dumps(text) for name, text in more.items()}


def _read_onnx(path: Path) -> Classify:
    from cifarnet.inference.onnx import read_onnx

    return read_onnx(path, path.name)


def _write_hub(source: Source, path: Path) -> None:
    from cifarnet.reporting.card import write_hub
    from model import restore

    write_hub(source.weights, restore(source.weights), source.figures, path)


def _write_page(source: Source, path: Path) -> None:
    from cifarnet.inference.page import About, write_page
    from model import parameter_count, restore

    weights = source.weights
    network = restore(weights)
    facts = [
        f"{type(network).__name__}, {parameter_count(network):,} parameters",
        f"trained on {weights.dataset}, epoch {weights.epoch}",
    ]
    if weights.accuracy is not None:
        facts.append(f"top-1 accuracy on its test images: {weights.accuracy:.2%}")
    size = settings_from_dict(weights.config).data.image_size
    write_page(network, About(weights.classes, weights.mean, weights.std, size, facts), path)


def _read_page(path: Path) -> Classify:
    from cifarnet.inference.page import read_page

    return read_page(path)


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "safetensors": Format(WEIGHTS_FILE, _write_safetensors, _read_safetensors, difference=0.0),
    "onnx": Format("model.onnx", _write_onnx, _read_onnx, difference=1e-3, packages=ONNX),
    "onnx-int8": Format(
        "model-int8.onnx", _write_int8, _read_onnx, same=0.97, packages=ONNX, needs_images=True
    ),
    "hub": Format("hub", _write_hub, _read_safetensors, difference=0.0),
    "page": Format("page.html", _write_page, _read_page, difference=1e-3),
}
