"""The augmentation policy, as one table of ranges and probabilities, and the two engines that carry it out."""

import os

from cifarnet.augment.policy import CONTRAST, HUE, SATURATION, Draws, Policy, draw

os.environ.setdefault(
    "NO_ALBUMENTATIONS_UPDATE", "1"
)  # or its import asks a server for newer versions


import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.images.imageset import SIZE


class BatchedEngine:
    """Carries out a `Policy` on whole batches, on `device`, with tensor operations only.

    Pixels are those of `AlbumentationsEngine` for the same draws, within the tolerances of
    tests/test_augment_batched.py: its conventions, and its 8-bit values between two steps, are kept.
    """

    def __init__(
        self, policy: Policy, mean: tuple[float, float, float], device: torch.device
    ) -> None:
        self.policy, self.device = policy, device
        self.fill = (
            torch.tensor([round(255.0 * m) for m in mean], device=device).float().view(1, 3, 1, 1)
        )
        self.places = torch.arange(SIZE, device=device)
        # Images worked on at a time: on the CPU what its cache holds as float32 (measured: 64 to 128 are best),
        # elsewhere so many that the calls, some two hundred whatever the number, do not set the pace.
        self.chunk, self.block = (64, 512) if device.type == "cpu" else (8192, 8192)

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """As `AlbumentationsEngine`: augmented copies of uint8 [B,3,32,32] for `key`."""
        images = torch.from_numpy(images).to(self.device)
        return self.apply(images, draw(self.policy, len(images), *key)).cpu().numpy()

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Copies of `images`, uint8 [B,3,32,32] on the device, changed as `draws` says."""
        images = self._crop_and_flip(images, draws)
        self._warp(images, draws)
        self._jitter(images, draws)
        self._punch(images, draws)
        return images

    def _crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """Whole pixels move: one gather from the padded images."""
        pad, width = self.policy.pad, SIZE + 2 * self.policy.pad
        padded = self.fill.to(torch.uint8).repeat(len(images), 1, width, width)
        padded[:, :, pad : pad + SIZE, pad : pad + SIZE] = images
        row, column = self._to_device(draws.offset).unsqueeze(2).unbind(1)  # [B,1]
        columns = (
            torch.where(self._to_device(draws.flip)[:, None], self.places.flip(0), self.places)
            + column
        )
        source = ((self.places + row) * width)[:, :, None] + columns[:, None, :]  # [B,32,32]
        source = source.view(len(images), 1, -1).expand(-1, 3, -1)
        return padded.view(len(images), 3, -1).gather(2, source).view_as(images)

    def _warp(self, images: Tensor, draws: Draws) -> None:
        """Shift, scale and rotation in place: a bilinear sample of the cropped images.

        What the crop cut off stays cut off, as it comes first, and it costs no second resampling, as it moves
        whole pixels.
        """
        chosen = draws.affine.nonzero().squeeze(1)
        angle = draws.rotate[chosen].deg2rad()
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        inverse = turn / draws.scale[chosen].view(
            -1, 1, 1
        )  # from a pixel of the result to its source
        origin = (
            -inverse @ draws.shift[chosen].float().unsqueeze(2) * (2 / SIZE)
        )  # the image reaches from -1 to 1
        matrices = self._to_device(torch.cat([inverse, origin], 2)).unsqueeze(3)  # [n,2,3,1]
        ends = (2 * self.places + 1) / SIZE - 1  # pixel centres
        chosen = self._to_device(chosen)
        for part, matrix in zip(chosen.split(self.chunk), matrices.split(self.chunk), strict=True):
            x, y, origin = matrix.unbind(2)  # [n,2,1]
            grid = (x * ends).unsqueeze(2) + (y * ends + origin).unsqueeze(3)  # [n,2,32,32]
            values = (
                images.index_select(0, part).float().sub_(self.fill)
            )  # so that zeros from outside are the fill
            values = F.grid_sample(
                values, grid.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False
            )
            images.index_copy_(0, part, values.add_(self.fill + 0.5).to(torch.uint8))

    def _jitter(self, images: Tensor, draws: Draws) -> None:
        """Brightness, contrast, saturation and hue in place, in each image's own order.

        The first three are one formula, x * factor + grey * a + b. Hue needs many more operations: images are
        sorted by its place in their order, so that those whose turn it is lie side by side.
        """
        place = torch.where(draws.factors[:, HUE] == 0, 4, (draws.order == HUE).int().argmax(1))
        chosen = draws.jitter.nonzero().squeeze(1)
        chosen = chosen[place[chosen].argsort()]
        for part in chosen.split(self.chunk):
            order = draws.order[part]
            kinds = order[order != HUE].view(-1, 3)
            factors = self._to_device(draws.factors[part].gather(1, kinds)).view(-1, 3, 1, 1, 1)
            kinds = self._to_device(kinds).view(-1, 3, 1, 1, 1)
            bounds = [0, *place[part].bincount(minlength=4).cumsum(0).tolist()]
            turn = self._to_device(draws.factors[part, HUE])
            part = self._to_device(part)
            values = images.index_select(0, part).float()
            for step in range(4):
                turned = slice(bounds[step], bounds[step + 1])
                if turned.start < turned.stop:
                    _turn_hue(values[turned], turn[turned])
                if step < 3:
                    _blend(values, kinds[:, step], factors[:, step])
            images.index_copy_(0, part, values.to(torch.uint8))

    def _punch(self, images: Tensor, draws: Draws) -> None:
        """Fills the holes, in place."""
        chosen = draws.hole.nonzero().squeeze(1)
        row, column = (
            self._to_device(draws.corner[chosen])[:, :, None] + self.places[: self.policy.hole]
        ).unbind(1)
        inside = (row[:, :, None] * SIZE + column[:, None, :]).flatten(1)  # [n,256]
        images.flatten(2)[self._to_device(chosen)[:, None], :, inside] = self.fill.to(
            torch.uint8
        ).flatten()

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)


def _blend(values: Tensor, kind: Tensor, factor: Tensor) -> None:
    """In place on `values`, float32 [n,3,H,W] holding whole numbers from 0 to 255: brightness, contrast or
    saturation times `factor`, as `kind` says (0, 1 or 2); the last two are [n,1,1,1].

    Brightness and contrast cut decimals off, saturation rounds them, as albumentations does it.
    """
    grey = values[:, :1] * 0.299  # Rec. 601, as OpenCV
    grey.add_(values[:, 1:2], alpha=0.587).add_(values[:, 2:], alpha=0.114).round_()
    rest, saturation = 1 - factor, (kind == SATURATION).float()
    level = grey.mean((2, 3), keepdim=True) * rest * (kind == CONTRAST) + saturation * 0.5
    values.mul_(factor).add_(grey.mul_(rest * saturation).add_(level)).clamp_(0, 255).floor_()


def _turn_hue(values: Tensor, turn: Tensor) -> None:
    """In place on `values`, float32 [n,3,H,W] holding whole numbers from 0 to 255: the hue moves by `turn` [n],
    in turns, at constant value and saturation (HSV).

    Hues are whole multiples of 2 degrees, and moves are rounded down, as OpenCV's and albumentations' are.
    """
    red, green, blue = values.unbind(1)
    high, low = values.amax(1), values.amin(1)
    chroma = high - low
    green_or_blue = torch.where(
        high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    )
    hue = torch.where(high == red, green - blue, green_or_blue).div_(
        chroma.clamp(min=1)
    )  # sixths of a turn
    hue.mul_(30).add_((180 * turn).floor().view(-1, 1, 1) + 0.5).floor_().div_(180)
    hue.sub_(hue.floor()).mul_(6)
    for channel, middle in enumerate(
        (3, 2, 4)
    ):  # each channel's share of the chroma is a trapezium of the hue
        share = (hue - middle).abs_()
        share = share.sub_(1) if channel == 0 else share.neg_().add_(2)
        torch.addcmul(low, share.clamp_(0, 1), chroma, out=share)
        values[:, channel] = share.floor_()
