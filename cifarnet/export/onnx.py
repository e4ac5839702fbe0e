"""Writes ONNX files: pixels in; logits and probabilities out. In float32, or quantised. The
packages onnx, onnxscript and onnxruntime are optional: they are imported where they are used."""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cifarnet.checkpoints.trained import ModelInfo
from cifarnet.core.files import write_atomically
from cifarnet.core.seal import PLACEHOLDER, seal
from cifarnet.inference.classifier import Classifier, TorchClassifier
from cifarnet.inference.onnx import INPUT, OUTPUTS
from cifarnet.networks.fast import use_plain_forms

if TYPE_CHECKING:
    import onnx

PRODUCER = "CIFARNet"
OPSET = 18  # what torch's exporter writes; it converts to other ones
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64
# The head stays in floats: it would cut off logits above those of the calibration images.
QUANTISED = ("Conv", "Relu", "Add", "MaxPool")


def write_onnx(classifier: TorchClassifier, path: Path) -> None:
    """Writes `classifier` as the ONNX file `path`, whole or not at all. Raises `OSError`.

    Its input `image` is uint8 [N,3,S,S], for any N. Its outputs `logits` and `probabilities` are
    float32 [N,C]. Batch normalisation is folded into the convolutions. Equal networks give equal
    files.
    """
    _write(_to_onnx(classifier), classifier.infos[0], path)


def write_int8(classifier: TorchClassifier, images: Tensor, path: Path) -> None:
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

    model = _to_onnx(classifier)
    # The exporter has folded what the quantiser would otherwise warn of.
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
        (info,) = classifier.infos
        origin = info.origin
        if origin.accuracy is not None:
            measured = f"{origin.accuracy_from}, before the quantisation"
            origin = dataclasses.replace(origin, accuracy_from=measured)
        _write(_clean(onnx.load(quantised)), dataclasses.replace(info, origin=origin), path)


def _to_onnx(classifier: TorchClassifier) -> "onnx.ModelProto":
    """`classifier` as an ONNX model, in the plain forms of its blocks."""
    plain = use_plain_forms(copy.deepcopy(classifier)).cpu()
    size = classifier.image_size
    program = torch.onnx.export(
        _WithProbabilities(plain).eval(),
        (torch.zeros(2, 3, size, size, dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=OUTPUTS,
        dynamic_shapes=({0: "N"},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return _clean(program.model_proto)


class _WithProbabilities(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier.logits(image)
        return logits, logits.softmax(dim=1)


def _clean(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Removes the notes of the programs that made `model`, in place, and returns it. They hold
    paths of this machine and running numbers: equal networks would give other files."""
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
    model.producer_name, graph.name = PRODUCER, PRODUCER
    model.ClearField("producer_version")
    return model


def _write(model: "onnx.ModelProto", info: ModelInfo, path: Path) -> None:
    """Writes `model` with the metadata of `info` and a checksum. Raises `OSError`. onnxruntime
    itself would not notice a changed weight."""
    import onnx

    metadata = info.metadata() | {"source": json.dumps(Path(info.source).name)}
    for key, value in [*sorted(metadata.items()), ("checksum", PLACEHOLDER)]:  # it comes last
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write(seal(content)))
