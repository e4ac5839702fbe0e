"""Classifiers in ONNX files. onnxruntime is optional: it is imported where it is used."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cifarnet.checkpoints.trained import ModelInfo, info_from_metadata
from cifarnet.core.errors import UserError
from cifarnet.core.files import read_file
from cifarnet.core.seal import is_sealed
from cifarnet.inference.classifier import Classifier

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUTS = "image", ("logits", "probabilities")
FATAL = 4  # of onnxruntime's log levels, the highest


class OnnxClassifier(Classifier):
    """The model in an ONNX file that export.py wrote, on the CPU."""

    def __init__(self, session: "onnxruntime.InferenceSession", info: ModelInfo) -> None:
        """Raises `ValueError` if the file has other inputs or outputs than `info` asks for."""
        super().__init__([info])
        inputs, outputs = (
            {value.name: (value.type, value.shape) for value in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        dtype, (count, *shape) = inputs.get(INPUT, ("", [0]))
        logits = ("tensor(float)", [count, len(info.classes)])
        if (
            (len(inputs), dtype) != (1, "tensor(uint8)")
            or shape != [3, info.image_size, info.image_size]
            or isinstance(count, int)  # any number of images has a name
            or outputs != dict.fromkeys(OUTPUTS, logits)
        ):
            raise ValueError("other inputs or outputs")
        self.session = session

    def logits(self, pixels: Tensor) -> Tensor:
        (logits,) = self.session.run(OUTPUTS[:1], {INPUT: pixels.cpu().numpy()})
        return torch.from_numpy(logits).to(pixels.device)


def read_onnx(path: Path, source: str) -> OnnxClassifier:
    """The classifier in the ONNX file `path`, which the user calls `source`.

    The `sha256` of its `infos` is that of the file: a quantised network is not the one that it was
    made of. Raises `UserError` for any file that export.py did not write.
    """
    import onnxruntime

    content = read_file(path)
    if not is_sealed(content):
        raise UserError(
            f"{path} is truncated, damaged, or of another program; "
            f"use an .onnx file that export.py wrote"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = FATAL  # the error below says it in one line
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        info = info_from_metadata(session.get_modelmeta().custom_metadata_map, path, source)
        sha256 = hashlib.sha256(content).hexdigest()
        return OnnxClassifier(session, dataclasses.replace(info, sha256=sha256))
    except UserError:
        raise
    except Exception:  # a crafted file can raise anything
        raise UserError(
            f"{path} takes other inputs or gives other outputs than an .onnx file that export.py "
            f"wrote; use another one"
        ) from None
