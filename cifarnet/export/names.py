"""The formats of export.py by name. Imports no torch: a wrong name fails at once."""

from collections.abc import Sequence
from typing import NamedTuple

from cifarnet.checkpoints.paths import WEIGHTS_FILE


class ExportName(NamedTuple):
    """What a format is called on the disk, and what it needs."""

    file: str  # the usual name of the file; of the folder, if it has no suffix
    packages: Sequence[str] = ()  # optional ones, to write and to read it


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXPORT_NAMES = {  # by --format; `FORMATS` says how each is written and read
    "safetensors": ExportName(WEIGHTS_FILE),
    "onnx": ExportName("model.onnx", ONNX_PACKAGES),
    "onnx-int8": ExportName("model-int8.onnx", ONNX_PACKAGES),
    "hub": ExportName("hub"),
    "page": ExportName("page.html"),
}
