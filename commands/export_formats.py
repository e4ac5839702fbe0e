"""The formats of export.py. Imports no torch: a wrong name fails at once. A new format is a module
in cifarnet/export/ and an entry of `FORMATS`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cifarnet.checkpoints.paths import WEIGHTS_FILE
from cifarnet.core.late import LateModule
from cifarnet.core.log import print_line

if TYPE_CHECKING:
    from cifarnet.checkpoints.trained import TrainedModel
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.readback import Classify

snapshots = LateModule("cifarnet.checkpoints.snapshots")
trained = LateModule("cifarnet.checkpoints.trained")
model_card = LateModule("cifarnet.export.model_card")
onnx = LateModule("cifarnet.export.onnx")
page = LateModule("cifarnet.export.page")
imageset = LateModule("cifarnet.images.imageset")
classifier = LateModule("cifarnet.inference.classifier")
onnx_files = LateModule("cifarnet.inference.onnx")


class Source(NamedTuple):
    """What is exported."""

    model: "TrainedModel"
    splits: "Splits | None"  # the images of its training; None: not available
    figures: dict[str, Any] | None  # of its metrics.json, see `FIGURES`; None: not available
    thresholds: "Sequence[Sequence[float | None]]" = ()  # see `threshold_rows`
    cautions: Sequence[str] = ()  # when not to trust it, in sentences


class Format(NamedTuple):
    """A kind of export. What it writes is read back and compared with the network."""

    file: str  # the usual name of the file; of the folder, if it has no suffix
    write: Callable[[Source, Path], object]
    read: "Callable[[Path], Classify]"
    packages: Sequence[str] = ()  # optional ones, to write and to read it
    difference: float = float("inf")  # the largest allowed difference of a logit
    same: float = 0.0  # the least share of the images with equal top-1, in [0, 1]
    needs_images: bool = False  # to write it

    @property
    def limit(self) -> str:
        """How close its answers must be, in words."""
        if self.difference < float("inf"):
            return f"allowed: {self.difference:g}"
        return f"needed: equal top-1 for {self.same:.0%}"


def _read_weights(path: Path) -> "Classify":  # the file, or a folder with it
    return classifier.TorchClassifier(snapshots.load_trained(str(path))).logits


def _write_int8(source: Source, path: Path) -> None:
    splits = source.splits
    count = max(onnx.CALIBRATION_IMAGES, len(splits.train.classes))
    images = imageset.limited(splits.train, count, "--format").images
    print_line(f"calibrating with {len(images)} training images of {splits.name}")
    onnx.write_int8(classifier.TorchClassifier(source.model), images, path)


def _read_onnx(path: Path) -> "Classify":
    return onnx_files.read_onnx(path, path.name).logits


ONNX_PACKAGES = ("onnx.checker", "onnxscript", "onnxruntime.quantization")
FORMATS = {  # by --format
    "safetensors": Format(
        WEIGHTS_FILE,
        lambda source, path: trained.write_weights(source.model, path),
        _read_weights,
        difference=0.0,
    ),
    "safetensors-half": Format(
        "weights-half.safetensors",
        lambda source, path: trained.write_weights(source.model, path, half=True),
        _read_weights,
        same=0.99,
    ),
    "onnx": Format(
        "model.onnx",
        lambda source, path: onnx.write_onnx(classifier.TorchClassifier(source.model), path),
        _read_onnx,
        ONNX_PACKAGES,
        difference=1e-3,
    ),
    "onnx-int8": Format(
        "model-int8.onnx", _write_int8, _read_onnx, ONNX_PACKAGES, same=0.97, needs_images=True
    ),
    "hub": Format(
        "hub",
        lambda source, path: model_card.write_hub(source.model, source.figures, path),
        _read_weights,
        difference=0.0,
    ),
    "page": Format(
        "page.html",
        lambda source, path: page.write_page(
            source.model.build(), source.model, path, source.thresholds, source.cautions
        ),
        lambda path: page.read_page(path),
        difference=1e-3,
    ),
}
