"""The entry point of torch.hub.

`torch.hub.load("<clone>", "cifarnet", pretrained="long", source="local")`
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

dependencies = ["torch", "numpy", "PIL", "safetensors"]


def cifarnet(pretrained: str | None = None, tta: str = "none") -> nn.Module:
    """Returns CIFARNet; with `pretrained`, the name of a result or a path, a trained network.

    Several names and paths, separated by commas, give an ensemble. `tta` is the test-time
    augmentation of a trained network: "none", "flip" or "shift". Raises `UserError`.

    A trained network is in evaluation mode and has two more attributes: `classes`, the names of its
    outputs, and `normalise`, which turns a PIL image or a tensor of pixels into its input.
    Without `pretrained`: CIFARNet for ten classes with fresh random weights.
    """
    model = _model_module()
    if pretrained is None:
        if tta != "none":
            raise model.UserError("tta is for trained networks; name one with pretrained")
        return model.build_model(model.NetworkSettings(), 10)
    network, network.classes, network.normalise = model.load_pretrained(pretrained, tta)
    return network


def _model_module() -> ModuleType:
    """Imports model.py of this repository under a name of its own.

    The caller's folder may have a `model` too: neither must hide the other. torch.hub takes the
    repository off `sys.path` after loading, but the package `cifarnet` stays importable.
    """
    name = "cifarnet_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("model.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module  # pickling the network needs it there
    return sys.modules[name]
