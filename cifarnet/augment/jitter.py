"""Jitter: change brightness, contrast, saturation and hue, in random order."""

import torch
from torch import Tensor

from cifarnet.augment.step import ImageForm, Step, uniform
from cifarnet.core.device import to_device
from cifarnet.core.late import LateModule
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.flags import numbers_in

A = LateModule("albumentations")

CONTRAST, SATURATION, HUE = 1, 2, 3  # columns of the drawn factors; 0 is the brightness


class Jitter(Step):
    """Changes colours by factors in [1 - x, 1 + x], and the hue by a move in [-x, x]."""

    name = "jitter"

    def __init__(self, settings: AugmentationSettings, size: int) -> None:
        self.probability = settings.probabilities["jitter_p"]
        *gains, hue = numbers_in(settings.jitter)
        # Of brightness, contrast, saturation, and hue in turns of the colour wheel.
        self.ranges = [*((1 - gain, 1 + gain) for gain in gains), (-hue, hue)]

    def for_image(self, mean: tuple[int, ...]) -> list[ImageForm]:
        return [A.ColorJitter(*self.ranges, p=self.probability)]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`factors` float32 [B,4]: brightness, contrast, saturation, and hue in turns. `order`
        int64 [B,4]: columns of `factors`, in the order in which they are applied."""
        factors = [uniform(*ends, count, generator) for ends in self.ranges]
        order = torch.rand(count, 4, generator=generator).argsort(1)
        return {"factors": torch.stack(factors, 1), "order": order}

    def for_batch(self, images: Tensor, drawn: dict[str, Tensor], mean: Tensor) -> Tensor:
        factors, order, device = drawn["factors"], drawn["order"], images.device
        kinds = order[order != HUE].view(-1, 3)
        gains = to_device(factors.gather(1, kinds), device).view(-1, 3, 1, 1, 1)
        kinds = to_device(kinds, device).view(-1, 3, 1, 1, 1)
        turn = factors[:, HUE]
        values = images.float()
        for position in range(4):
            due = ((order[:, position] == HUE) & (turn != 0)).nonzero().squeeze(1)
            if len(due):  # the hue takes most operations: only images that need it
                where = to_device(due, device)
                turned = _turn_hue(values.index_select(0, where), to_device(turn[due], device))
                values.index_copy_(0, where, turned)
            if position < 3:
                _blend(values, kinds[:, position], gains[:, position])
        return values.byte()


def _blend(values: Tensor, kind: Tensor, factor: Tensor) -> None:
    """Multiplies brightness, contrast or saturation by `factor`, in place.

    `values` is float32 [B,3,H,W] and holds whole numbers from 0 to 255. `kind` (0 brightness, 1
    contrast, 2 saturation) and `factor` are [B,1,1,1]. The formula is x * factor + grey * a + b. As
    in albumentations, brightness and contrast round down, and saturation rounds to the nearest.
    """
    grey = values[:, :1] * 0.299  # Rec. 601, as OpenCV
    grey.add_(values[:, 1:2], alpha=0.587).add_(values[:, 2:], alpha=0.114).round_()
    rest, saturation = 1 - factor, (kind == SATURATION).float()
    level = grey.mean((2, 3), keepdim=True) * rest * (kind == CONTRAST) + saturation * 0.5
    values.mul_(factor).add_(grey.mul_(rest * saturation).add_(level)).clamp_(0, 255).floor_()


def _turn_hue(values: Tensor, turn: Tensor) -> Tensor:
    """Moves the hue by `turn` [B], in turns, in place; value and saturation (HSV) stay.

    `values` is float32 [B,3,H,W] and holds whole numbers from 0 to 255. As in OpenCV and
    albumentations, hues are multiples of 2 degrees and moves are rounded down.
    """
    red, green, blue = values.unbind(1)
    high, low = values.amax(1), values.amin(1)
    chroma = high - low
    green_or_blue = torch.where(
        high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    )
    hue = torch.where(high == red, green - blue, green_or_blue)
    hue.div_(chroma.clamp(min=1))  # in sixths of a turn
    hue.mul_(30).add_((180 * turn).floor().view(-1, 1, 1) + 0.5).floor_().div_(180)  # in turns
    hue.sub_(hue.floor()).mul_(6)
    # As a function of the hue, each channel's share of the chroma is a trapezium about `middle`.
    for channel, middle in enumerate((3, 2, 4)):
        share = (hue - middle).abs_()
        share = share.sub_(1) if channel == 0 else share.neg_().add_(2)
        torch.addcmul(low, share.clamp_(0, 1), chroma, out=share)
        values[:, channel] = share.floor_()
    return values
