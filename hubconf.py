"""The entry points of torch.hub.

`torch.hub.load("<clone>", "cifarnet", pretrained="lite", source="local")`
"""

from functools import partial

from torch import nn

from cifarnet.checkpoints.paths import split_names
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.inference.classifier import Classifier
from cifarnet.inference.load import load_classifier
from cifarnet.inference.pixels import to_network_input
from cifarnet.networks.build import build_model
from cifarnet.settings.network import NetworkSettings

dependencies = ["torch", "numpy", "PIL", "safetensors"]


def cifarnet(pretrained: str | None = None) -> nn.Module:
    """Returns a network: images float32 [B,3,H,W], normalised -> logits float32 [B,classes].

    Without `pretrained` it is CIFARNet for ten classes with fresh random weights. `pretrained` is
    the name of a result or a path. A trained network is in evaluation mode and has three more
    attributes: `classes`, the names of its outputs; `temperature`, which divides them to give
    calibrated probabilities; and `normalise`, which turns a PIL image or a tensor of pixels into
    its input. Raises `UserError`.
    """
    if pretrained is None:
        return build_model(NetworkSettings(), 10)
    trained = load_trained(pretrained)
    network = trained.build()
    network.classes, network.temperature = trained.classes, trained.temperature
    network.normalise = partial(
        to_network_input, mean=trained.mean, std=trained.std, size=trained.image_size
    )
    return network


def classifier(pretrained: str, tta: str = "none") -> Classifier:
    """Returns a trained classifier: pixels uint8 [N,3,S,S] -> probabilities float32 [N,classes].

    Several names and paths in `pretrained`, separated by commas, give an ensemble. `tta` is the
    test-time augmentation: "none", "flip" or "shift". Raises `UserError`.
    """
    return load_classifier(split_names(pretrained), tta)
