"""Class activation maps: how much each part of an image counts for a class.

Zhou et al. 2016, arXiv 1512.04150. In CIFARNet and LiteNet the head is a linear layer on the mean
of the feature map, so the maps are exact: a logit is the mean of its map plus the bias of the head.
"""

import torch
from torch import Tensor

from cifarnet.checkpoints.trained import ModelInfo
from cifarnet.images.normalise import Normalise
from cifarnet.inference.classifier import Classifier, TorchClassifier

WITHOUT_MAPS = {  # by --network: why
    "residual": "residual takes the maximum of the feature map, not the mean; use another network"
}
# By --network: the side of the receptive field of a value of the maps, in pixels.
RECEPTIVE_FIELDS = {"cifarnet": 15, "lite": 42}


def why_no_maps(classifier: Classifier) -> str:
    """Why no map adds up to the logits of `classifier`, in words; empty if the maps are exact."""
    if len(classifier.infos) > 1 or classifier.tta != "none":
        return "an average over networks or views has no single map; use one network without --tta"
    if not isinstance(classifier, TorchClassifier):
        return f"{classifier.source} keeps no feature maps; use the weights that it was made from"
    return WITHOUT_MAPS.get(classifier.infos[0].network.network, "")


def caution(info: ModelInfo) -> str:
    """What a reader of the maps of a model should know, as a sentence; empty if it has none."""
    attention, (depth, *_) = info.network.attention, info.network.scaling
    if info.network.network in WITHOUT_MAPS:
        return ""
    if attention != "none":
        return f"With attention ({attention}), each part may depend on the whole image."
    field = RECEPTIVE_FIELDS[info.network.network]
    if field >= info.image_size:
        return "Each part depends on nearly the whole image."
    more = "more than " if depth > 1 else ""
    return f"Each part depends on {more}the {field}x{field} pixels around it."


@torch.inference_mode()
def class_maps(classifier: TorchClassifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """The maps float32 [N,K,h,w] for the classes `labels`, int64 [N,K], of uint8 [N,3,S,S].

    h and w are a half (CIFARNet) or a quarter of the sides of the images, times the enlargement.
    Computed in float32 whatever --amp says. Needs a classifier that `why_no_maps` says nothing of.
    """
    network = classifier.network
    images = Normalise(classifier.mean, classifier.std, pixels.device)(pixels)
    with torch.autocast(images.device.type, enabled=False):
        features = network.features(images)  # [N,F,h,w]
        return torch.einsum("nfhw,nkf->nkhw", features, network.head.weight[labels])
