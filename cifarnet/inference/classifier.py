"""Classifiers: pixels in, probabilities out. One network, an ensemble, and averaged views."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from cifarnet.checkpoints.trained import ModelInfo, TrainedModel, check_classes
from cifarnet.core.errors import UserError
from cifarnet.images.imageset import resized
from cifarnet.images.normalise import Normalise
from cifarnet.inference.pixels import shown, to_batch

VIEWS = {  # by --tta: how many pixels each view is shifted down and right; whether it is mirrored
    "none": [(0, 0, False)],
    "flip": [(0, 0, False), (0, 0, True)],
    "shift": list(itertools.product((0, -1, 1), (0, -1, 1), (False, True))),
}


class Classifier(nn.Module):
    """Pixels uint8 [N,3,S,S] -> probabilities float32 [N,C], on the device of the pixels.

    It normalises inside and is in evaluation mode. `classes` name the probabilities, in their
    order. `image_size` is S, the side of its training images in pixels. `source` names it in
    reports and errors. `infos` are the trained models that it is made of.
    """

    tta = "none"

    def __init__(self, infos: Sequence[ModelInfo]) -> None:
        super().__init__()
        self.eval()
        self.infos, self.source = infos, ",".join(info.source for info in infos)
        self.classes, self.image_size = infos[0].classes, infos[0].image_size

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Raises `UserError` for another type or size; without gradients, which `logits` has."""
        size = (3, self.image_size, self.image_size)
        if pixels.dtype is not torch.uint8 or pixels.shape[1:] != size:
            raise UserError(
                f"a tensor {shown(pixels)} is not the input of {self.source}, uint8 "
                f"{['N', *size]}; classifier.pixels(image) gives it"
            )
        return self.logits(pixels).softmax(dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits float32 [N,C] of the probabilities, for pixels uint8 [N,3,S,S]."""
        raise NotImplementedError("each kind of classifier computes its own logits")

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Turns an image into the input uint8 [B,3,S,S]: see `to_batch`. It rounds floats, and
        resizes tensors too."""
        batch = to_batch(image, self.image_size)
        pixels = batch.round().to(torch.uint8) if batch.is_floating_point() else batch
        return resized(pixels, self.image_size)


class TorchClassifier(Classifier):
    """One network in PyTorch.

    An autocast around it has no effect where `amp` is false. None: only models that were trained
    with --amp are autocast. Raises `UserError` if the weights do not fit.
    """

    def __init__(self, model: TrainedModel, amp: bool | None = None) -> None:
        super().__init__([model])
        self.mean, self.std, self.temperature = model.mean, model.std, model.temperature
        self.network = model.build()
        self.amp = model.origin.settings.get("amp", False) if amp is None else amp

    def logits(self, pixels: Tensor) -> Tensor:
        images = Normalise(self.mean, self.std, pixels.device)(pixels)
        if self.amp:
            logits = self.network(images)
        else:
            with torch.autocast(images.device.type, enabled=False):
                logits = self.network(images)
        return logits if self.temperature == 1 else logits.float() / self.temperature


class Ensemble(Classifier):
    """Several classifiers: the mean of their probabilities. Raises `UserError` unless all have the
    same classes, in the same order, and the same image size."""

    def __init__(self, parts: Sequence[Classifier]) -> None:
        super().__init__([info for part in parts for info in part.infos])
        first = parts[0]
        for other in parts[1:]:
            if first.image_size != other.image_size:
                raise UserError(
                    f"{first.source} takes images of {first.image_size} pixels, {other.source} "
                    f"of {other.image_size}; name networks of the same image size"
                )
            check_classes(first.classes, other.classes, first.source, other.source)
        self.parts = nn.ModuleList(parts).eval()

    def logits(self, pixels: Tensor) -> Tensor:
        return log_mean(part.logits(pixels) for part in self.parts)


class Augmented(Classifier):
    """Test-time augmentation: the mean of the probabilities of `views`. The views pass one after
    the other: they take time, but no more memory. Raises `UserError` for an unknown `tta`."""

    def __init__(self, classifier: Classifier, tta: str) -> None:
        super().__init__(classifier.infos)
        if tta not in VIEWS:
            raise UserError(f"there is no test-time augmentation {tta!r}; use {', '.join(VIEWS)}")
        self.classifier, self.tta = classifier, tta

    def logits(self, pixels: Tensor) -> Tensor:
        return log_mean(self.classifier.logits(view) for view in views(pixels, self.tta))


def log_mean(logits: Iterable[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities, float32 [N,C], of logits [N,C] each."""
    each = torch.stack([part.float().log_softmax(dim=1) for part in logits])
    return each.logsumexp(dim=0) - math.log(len(each))


def views(pixels: Tensor, tta: str) -> Iterator[Tensor]:
    """Yields the views of the images [N,3,H,W] that `tta` names.

    none: the images. flip: the images and their mirror images. shift: the images and their eight
    shifts by one pixel, each with its mirror image: 18 views. A shifted image repeats its border
    row or column, which most often resembles what lies beyond. It brings in no new colour.
    """
    for down, right, mirrored in VIEWS[tta]:
        rows, columns = (
            (torch.arange(side, device=pixels.device) - by).clamp(0, side - 1)
            for side, by in zip(pixels.shape[2:], (down, right), strict=True)
        )
        view = pixels[:, :, rows][..., columns]
        yield view.flip(3) if mirrored else view
