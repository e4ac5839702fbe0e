"""Classifiers: pixels in, logits out. One network, an ensemble, and test-time augmentation."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cifarnet.core.errors import UserError
from cifarnet.settings.evaluation import TTA

SHIFTS = tuple((down, right) for down in (0, -1, 1) for right in (0, -1, 1))  # in pixels


class Classifier(nn.Module):
    """Pixels uint8 [N,3,S,S] -> logits float32 [N,C], on the device of the pixels.

    It normalises inside and is in evaluation mode. `classes` name the logits, in their order.
    `size` is S, the side of its training images in pixels. `source` names it in reports and errors.
    """

    tta = "none"

    def __init__(self, classes: Sequence[str], size: int, source: str) -> None:
        super().__init__()
        self.eval()
        self.classes, self.size, self.source = tuple(classes), size, source


class TorchClassifier(Classifier):
    """One network, on the device of the pixels, and `normalise`, which turns them into its input.

    An autocast around it has no effect where `amp` is false.
    """

    def __init__(
        self,
        network: nn.Module,
        normalise: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        size: int,
        source: str,
        amp: bool = True,
    ) -> None:
        super().__init__(classes, size, source)
        self.network, self.normalise, self.amp = network.eval(), normalise, amp

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.normalise(pixels)
        if self.amp:
            return self.network(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images)


class Ensemble(Classifier):
    """Several classifiers: the logarithm of the mean of their probabilities.

    Raises `UserError` unless all have the same classes, in the same order, and the same size.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        first = members[0]
        super().__init__(first.classes, first.size, ",".join(one.source for one in members))
        for other in members[1:]:
            _check_alike(first, other)
        self.members = nn.ModuleList(members).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return log_mean(member(pixels) for member in self.members)


class Augmented(Classifier):
    """Test-time augmentation: the logarithm of the mean of the probabilities of `views`.

    The views pass one after the other: they take time, but no more memory. Raises `UserError` for
    an unknown `tta`.
    """

    def __init__(self, classifier: Classifier, tta: str) -> None:
        super().__init__(classifier.classes, classifier.size, classifier.source)
        if tta not in TTA:
            raise UserError(f"there is no test-time augmentation {tta!r}; use {', '.join(TTA)}")
        self.classifier, self.tta = classifier, tta

    def forward(self, pixels: Tensor) -> Tensor:
        return log_mean(self.classifier(view) for view in views(pixels, self.tta))


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
    for down, right in SHIFTS if tta == "shift" else SHIFTS[:1]:
        view = _shifted(pixels, down, right)
        yield view
        if tta != "none":
            yield view.flip(3)


def _shifted(pixels: Tensor, down: int, right: int) -> Tensor:
    rows, columns = (
        (torch.arange(side, device=pixels.device) - by).clamp(0, side - 1)
        for side, by in zip(pixels.shape[2:], (down, right), strict=True)
    )
    return pixels[:, :, rows][..., columns]


def _check_alike(first: Classifier, other: Classifier) -> None:
    """Raises `UserError` unless both take the same images and name the same classes."""
    if first.size != other.size:
        why = f"takes images of {first.size} pixels, {other.source} of {other.size}"
    elif len(first.classes) != len(other.classes):
        why = f"knows {len(first.classes)} classes, {other.source} {len(other.classes)}"
    elif first.classes != other.classes:
        pairs = enumerate(zip(first.classes, other.classes, strict=True), start=1)
        at, (ours, theirs) = next((at, pair) for at, pair in pairs if len(set(pair)) > 1)
        why = f"has {ours} as class {at}, {other.source} {theirs}"
    else:
        return
    raise UserError(
        f"{first.source} {why}; name networks with the same classes, in the same order, and the "
        f"same image size"
    )
