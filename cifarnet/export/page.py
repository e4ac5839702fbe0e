"""The format page: one HTML file that classifies pictures in a browser, offline.

page.html.j2 is its text; page_network.js and page.js are its script. The network is data in it: a
list of layers, and one array of weights.
"""

import base64
import copy
import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cifarnet.checkpoints.trained import ModelInfo
from cifarnet.core.errors import UserError, printable
from cifarnet.core.files import write_text
from cifarnet.core.templates import read_template
from cifarnet.images.normalise import Normalise
from cifarnet.inference.class_maps import caution
from cifarnet.inference.readback import Classify
from cifarnet.networks import blocks
from cifarnet.networks.fast import use_plain_forms
from cifarnet.reporting.map_tiles import MAP_COLORS

DATA = '<script id="network" type="application/json">'  # as in page.html.j2

# A layer has a kind, and `of`: the numbers of its inputs. Number 0 is the normalised image [C,H,W],
# number n the output of the nth layer. `weight` and `bias` are offsets in the array of weights.
Layer = dict[str, Any]


def write_page(
    network: nn.Module,
    info: ModelInfo,
    path: Path,
    thresholds: Sequence[Sequence[float | None]] = (),
    cautions: Sequence[str] = (),
) -> None:
    """Writes the page of `network`, the model of `info`, to `path`, whole or not at all.

    `thresholds` are rows of `threshold_rows`, if any, and `cautions` say when not to trust the
    network. Raises `UserError` if the page does not support a layer of the network, and `OSError`.
    """
    layers, weights = layers_of(network)
    data = {
        "classes": [printable(name) for name in info.classes],
        "mean": info.mean,
        "std": info.std,
        "size": info.image_size,
        "temperature": info.temperature,
        "layers": layers,
        "features": feature_map(layers),
        "thresholds": thresholds,
        "map_colors": MAP_COLORS,
        "weights": base64.b64encode(weights.numpy().tobytes()).decode(),
    }
    template = read_template(Path(__file__).with_name("page.html.j2"))
    parts = map(Path(__file__).with_name, ("page_network.js", "page.js"))
    script = "".join(part.read_text(encoding="utf-8") for part in parts)
    architecture = type(network).__name__
    write_text(
        path,
        template.render(
            info=info,
            architecture=architecture,
            caution=caution(info),
            cautions=[printable(line).replace("%", "\N{NO-BREAK SPACE}%") for line in cautions],
            data=data,
            script=script,
        ),
    )


def feature_map(layers: Sequence[Layer]) -> int | None:
    """The number of the feature map whose mean the head takes: its class activation maps add up to
    the logits. None: the head takes something else."""
    head = layers[-1]
    mean = layers[head["of"][0] - 1] if head["of"][0] else {}
    is_linear = head["kind"] == "convolution" and mean.get("kind") == "mean"
    return mean["of"][0] if is_linear else None


def read_page(path: Path) -> Classify:
    """The network in the file `path`: uint8 [N,3,S,S] -> logits float32 [N,C], as its script does.
    Raises `ValueError` for a file that `write_page` did not write."""
    text = path.read_text(encoding="utf-8")
    data = json.loads(text[text.index(DATA) + len(DATA) : text.index("</script>")])
    weights = torch.frombuffer(bytearray(base64.b64decode(data["weights"])), dtype=torch.float32)
    normalise = Normalise(tuple(data["mean"]), tuple(data["std"]), torch.device("cpu"))

    @torch.inference_mode()
    def run(pixels: Tensor) -> Tensor:
        values = [normalise(pixels)]
        for layer in data["layers"]:
            inputs = [values[number] for number in layer["of"]]
            values.append(KINDS[layer["kind"]](layer, weights, *inputs))
        return values[-1].flatten(1) / data["temperature"]

    return run


def _convolve(layer: Layer, weights: Tensor, x: Tensor) -> Tensor:
    """The output [N,out,H,W] of a convolution for x [N,in,H,W]."""
    shape = (layer["out"], x.shape[1] // layer["groups"], *2 * (layer["kernel_size"],))
    kernel = weights[layer["weight"] :][: math.prod(shape)].view(shape)
    bias = weights[layer["bias"] :][: layer["out"]]
    sliding = (layer[name] for name in ("stride", "padding", "dilation", "groups"))
    return F.conv2d(x, kernel, bias, *sliding)


# By kind: the output of a layer for tensors [N,C,H,W]; vectors have H = W = 1.
KINDS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolve,
    "relu": lambda layer, weights, x: x.clamp(min=0),
    "sigmoid": lambda layer, weights, x: x.sigmoid(),
    "add": lambda layer, weights, x, other: x + other,
    "multiply": lambda layer, weights, x, other: x * other,
    "mean": lambda layer, weights, x: x.mean((2, 3), keepdim=True),
    "max": lambda layer, weights, x: x.amax((2, 3), keepdim=True),
    "maxpool": lambda layer, weights, x: F.max_pool2d(x, layer["size"]),
}


# --- a network as data ---


SLIDING = ("kernel_size", "stride", "padding", "dilation")
PIXELWISE = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
AS_PIXELS = (slice(None), slice(None), None, None)  # [B,C] -> [B,C,1,1]


class _Tracer(fx.Tracer):
    """Records the calls of functions and layers."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(blocks.channel_means,))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = isinstance(module, nn.Conv2d | nn.Linear)  # subclasses: torch would look into them
        return ours or super().is_leaf_module(module, name)


def layers_of(network: nn.Module) -> tuple[list[Layer], Tensor]:
    """The layers of `network` in evaluation, and their weights float32 [n] in one array.

    Batch normalisation becomes part of the convolution before it, if there is one. Raises
    `UserError` for a layer that the page does not support.
    """
    network = use_plain_forms(copy.deepcopy(network)).cpu().float().eval()
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, ValueError):
        raise _refusal(f"{type(network).__name__}, whose layers depend on the image") from None
    layers: list[Layer] = []
    numbers: dict[fx.Node, int] = {}  # of the values
    for node in graph.nodes:
        if node.op == "placeholder":
            numbers[node] = 0
        elif node.op.startswith("call_"):
            called = network.get_submodule(node.target) if node.op == "call_module" else node.target
            of = [numbers[value] for value in node.args if isinstance(value, fx.Node)]
            layer = _layer(called, node, layers[of[0] - 1] if any(of[:1]) else {})
            if layer is not None:
                layers.append({"of": of} | layer)
            numbers[node] = of[0] if layer is None else len(layers)
    return layers, _in_one_array(layers)


def _layer(called: Any, node: fx.Node, before: Layer) -> Layer | None:
    """The layer for the call `node` of a module, a function or a method; `before` is its input.
    None: the output is that of `before`. Weights are tensors here. Raises `UserError`."""
    inputs = sum(isinstance(value, fx.Node) for value in node.args)
    match called:
        case nn.Identity() | nn.Dropout() | nn.Dropout2d():
            return None
        case operator.getitem if node.args[1] == AS_PIXELS:  # here vectors have this shape already
            return None
        case nn.BatchNorm2d():
            scale = called.weight * torch.rsqrt(called.running_var + called.eps)
            shift = called.bias - scale * called.running_mean
            alone = len(node.args[0].users) == 1  # nothing else uses its input
            if before.get("kind") == "convolution" and alone:
                before["weight"] = before["weight"] * scale[:, None, None, None]
                before["bias"] = shift + scale * before["bias"]
                return None
            depthwise = {"kind": "convolution", "out": len(scale), "groups": len(scale)}
            return depthwise | PIXELWISE | {"weight": scale[:, None, None, None], "bias": shift}
        case nn.Conv2d() if called.padding_mode == "zeros":
            sides = {name: getattr(called, name) for name in SLIDING}
            if all(height == width for height, width in sides.values()):
                fields = {name: side for name, (side, _) in sides.items()}
                return fields | {"groups": called.groups} | _convolution(called)
        case nn.Linear():  # a convolution of one pixel
            return PIXELWISE | {"groups": 1} | _convolution(called)
        case nn.MaxPool2d() if called.padding == 0 and called.stride == called.kernel_size:
            return {"kind": "maxpool", "size": called.kernel_size}
        case nn.ReLU() | torch.relu | F.relu | "relu":
            return {"kind": "relu"}
        case nn.Sigmoid() | torch.sigmoid | "sigmoid":
            return {"kind": "sigmoid"}
        case operator.add | torch.add if inputs == 2:
            return {"kind": "add"}
        case operator.mul | torch.mul if inputs == 2:
            return {"kind": "multiply"}
        case blocks.channel_means:
            return {"kind": "mean"}
        case "mean" | "amax" if node.args[1:] == ((2, 3),):
            return {"kind": "max" if called == "amax" else "mean"}
    stack = list(node.meta.get("nn_module_stack", {}).values())  # the modules around the call
    names = [f"the layer {kind.__name__} {path}" for path, kind in stack[-1:]]
    if not isinstance(called, nn.Module):
        names.insert(0, f"the function {getattr(called, '__name__', called)}")
    raise _refusal(" in ".join(names))


def _convolution(layer: nn.Conv2d | nn.Linear) -> Layer:
    """The weights of `layer`, as those of a convolution with a bias."""
    weight = layer.weight.detach()
    weight = weight[:, :, None, None] if weight.ndim == 2 else weight  # [out,in,k,k]
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return {"kind": "convolution", "out": len(weight), "weight": weight, "bias": bias}


def _in_one_array(layers: Sequence[Layer]) -> Tensor:
    """All weights of `layers` in one array float32 [n]; in `layers`, offsets replace them."""
    parts, offset = [], 0
    for layer in layers:
        for name in ("weight", "bias"):
            if name in layer:
                parts.append(layer[name].detach().flatten())
                layer[name] = offset
                offset += len(parts[-1])
    return torch.cat(parts)


def _refusal(what: str) -> UserError:
    return UserError(f"the page cannot hold {what}; use another --format, such as onnx")
