"""ONNX files of a classifier: writing them, quantising them, and running them.

Such a file takes pixels and holds what a `Classifier` does: normalisation, network, class names.
The packages onnx, onnxscript and onnxruntime are optional: they are imported where they are used.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cifarnet.core.errors import UserError
from cifarnet.core.files import write_atomically
from cifarnet.core.packages import check_package
from cifarnet.inference.classifier import Classifier
from cifarnet.networks.fast import use_plain_forms

if TYPE_CHECKING:
    import onnx
    import onnxruntime

PRODUCER = "CIFARNet"
INPUT, OUTPUTS = "image", ("logits", "probabilities")
OPSET = 18  # what torch's exporter writes; it converts to other ones
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64
# The head stays in floats: it would cut off logits above those of the calibration images.
QUANTISED = ("Conv", "Relu", "Add", "MaxPool")
METADATA_PROPS, LENGTH_DELIMITED = 14, 2  # in protobuf's format: a field of a model, and its type
FATAL = 4  # of onnxruntime's log levels, the highest


# --- writing ---


def write_onnx(classifier: Classifier, metadata: Mapping[str, str], path: Path) -> None:
    """Writes `classifier` as the ONNX file `path`, whole or not at all. Raises `OSError`.

    Its input `image` is uint8 [N,3,S,S], for any N. Its outputs `logits` and `probabilities` are
    float32 [N,C]. Batch normalisation is folded into the convolutions. Equal networks give equal
    files.
    """
    _write(_converted(classifier), metadata, path)


def write_int8(
    classifier: Classifier, images: Tensor, metadata: Mapping[str, str], path: Path
) -> None:
    """Writes `classifier` as `write_onnx` does, with weights and activations as 8-bit integers.

    `images` uint8 [N,3,S,S] are training images: they determine the range of each activation
    (static quantisation; Jacob et al. 2018, arXiv 1712.05877). Input and outputs stay the same.
    Raises `OSError`.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(CALIBRATION_BATCH))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    model = _converted(classifier)
    # The exporter has folded what the quantiser would else warn of.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="cifarnet-int8-") as folder:
        quantised = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            quantised,
            Reader(),
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # 7 bits of weight: no sum overflows on CPUs without VNNI
        )
        _write(_tidied(onnx.load(quantised)), metadata, path)


def _converted(classifier: Classifier) -> "onnx.ModelProto":
    """`classifier` as an ONNX model, in the plain forms of its blocks."""
    plain = use_plain_forms(copy.deepcopy(classifier)).cpu()
    example = torch.zeros(2, 3, classifier.size, classifier.size, dtype=torch.uint8)
    program = torch.onnx.export(
        _WithProbabilities(plain).eval(),
        (example,),
        input_names=[INPUT],
        output_names=OUTPUTS,
        dynamic_shapes=({0: "N"},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return _tidied(program.model_proto)


class _WithProbabilities(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(image)
        return logits, logits.softmax(dim=1)


def _tidied(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` without the notes of the programs that made it.

    They hold paths of this machine and running numbers: equal networks would give other files.
    """
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{place}"
    model.producer_name, graph.name = PRODUCER, PRODUCER
    model.ClearField("producer_version")
    return model


def _write(model: "onnx.ModelProto", metadata: Mapping[str, str], path: Path) -> None:
    import onnx

    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write(content + _seal(content)))


def _seal(content: bytes) -> bytes:
    """The checksum of `content`, as one more entry of the metadata, to append to it.

    protobuf allows fields to be appended to a message. The runtime itself would not notice a
    changed weight.
    """
    checksum = hashlib.sha256(content).hexdigest().encode()
    entry = b"".join(
        bytes([number << 3 | LENGTH_DELIMITED, len(text)]) + text
        for number, text in ((1, b"checksum"), (2, checksum))
    )
    return bytes([METADATA_PROPS << 3 | LENGTH_DELIMITED, len(entry)]) + entry


# --- reading ---


class OnnxClassifier(Classifier):
    """The network in an ONNX file, on the CPU: it runs as `write_onnx` or `write_int8` wrote it.

    `metadata` is what was written with it, `sha256` the checksum of the file's content.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", sha256: str, source: str) -> None:
        """Raises `ValueError` if the file has other inputs or outputs, or no class names."""
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        classes = json.loads(self.metadata.get("classes", "null"))
        inputs, outputs = (
            {value.name: (value.type, value.shape) for value in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        kind, (count, *shape) = inputs.get(INPUT, ("", [0]))
        size = shape[-1] if shape else 0
        logits = ("tensor(float)", [count, len(classes)])
        if (
            (len(inputs), kind, shape) != (1, "tensor(uint8)", [3, size, size])
            or isinstance(count, int)  # any number of images has a name
            or outputs != dict.fromkeys(OUTPUTS, logits)
        ):
            raise ValueError("other inputs or outputs")
        super().__init__(classes, size, source)
        self.session, self.sha256 = session, sha256

    def forward(self, pixels: Tensor) -> Tensor:
        (logits,) = self.session.run(OUTPUTS[:1], {INPUT: pixels.cpu().numpy()})
        return torch.from_numpy(logits).to(pixels.device)


def read_onnx(path: Path, source: str) -> OnnxClassifier:
    """The classifier in the ONNX file `path`, which the user calls `source`.

    Raises `UserError` for any file that `write_onnx` or `write_int8` did not write, and where
    onnxruntime is not installed.
    """
    check_package("onnxruntime", source)
    import onnxruntime

    try:
        file = path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); use another file") from None
    content = file[: -len(_seal(b""))]
    if file != content + _seal(content):
        raise UserError(
            f"{path} is truncated, damaged, or of another program; "
            f"use an .onnx file that export.py wrote"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = FATAL  # the error below says it in one line
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return OnnxClassifier(session, hashlib.sha256(content).hexdigest(), source)
    except Exception:  # a crafted file can raise anything
        raise UserError(
            f"{path} takes other inputs or gives other outputs than an .onnx file that export.py "
            f"wrote; use another one"
        ) from None
