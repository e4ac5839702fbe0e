"""The policy on whole batches, on the device, with tensor operations."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.augment.policy import CONTRAST, HUE, SATURATION, Draws, Policy, draw


class BatchedEngine:
    """Applies a `Policy` to whole batches on `device`.

    `mean` holds the channel means of the data set, in [0, 1]: the colour of padding and holes.
    For the same draws the pixels equal those of `PerImageEngine`, within the tolerances of
    tests/augment/test_batched.py: both round to 8 bits between two steps.
    """

    def __init__(
        self, policy: Policy, mean: tuple[float, float, float], device: torch.device
    ) -> None:
        self.policy, self.device = policy, device
        colour = torch.tensor([round(255.0 * m) for m in mean], device=device)
        self.mean = colour.float().view(1, 3, 1, 1)
        self.outside = self.mean if policy.border == "mean" else torch.zeros_like(self.mean)
        self.places = torch.arange(policy.size, device=device)
        # `chunk` images are worked on at a time, `block` images are augmented together. On the CPU
        # a chunk fits the cache as float32 (64 to 128 images were fastest). Elsewhere a chunk is so
        # large that launching the 200 or so operations does not limit the speed.
        chunk, self.block = (64, 512) if device.type == "cpu" else (8192, 8192)
        self.chunk = max(1, chunk * 32**2 // policy.size**2)

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """Returns augmented copies of `images`, both uint8 [B,3,S,S]; `key` is the seed."""
        images = torch.from_numpy(images).to(self.device)
        return self.apply(images, draw(self.policy, len(images), *key)).cpu().numpy()

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Returns copies of `images`, uint8 [B,3,S,S] on the device, changed as `draws` says."""
        images = self._crop_and_flip(images, draws)
        self._warp(images, draws)
        self._punch(images, draws)
        self._jitter(images, draws)
        return images

    def _crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """Moves whole pixels: one gather from the padded images."""
        pad, size = self.policy.pad, self.policy.size
        width = size + 2 * pad
        padded = self.outside.to(torch.uint8).repeat(len(images), 1, width, width)
        padded[:, :, pad : pad + size, pad : pad + size] = images
        row, column = self._to_device(draws.offset).unsqueeze(2).unbind(1)  # [B,1]
        flip = self._to_device(draws.flip)[:, None]
        columns = torch.where(flip, self.places.flip(0), self.places) + column
        source = ((self.places + row) * width)[:, :, None] + columns[:, None, :]  # [B,S,S]
        source = source.view(len(images), 1, -1).expand(-1, 3, -1)
        return padded.view(len(images), 3, -1).gather(2, source).view_as(images)

    def _warp(self, images: Tensor, draws: Draws) -> None:
        """Shifts, scales and rotates in place, by bilinear interpolation of the cropped images."""
        chosen = draws.affine.nonzero().squeeze(1)
        angle = draws.rotate[chosen].deg2rad()
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        # A matrix leads from a pixel of the result to its source; an image reaches from -1 to 1.
        inverse = turn / draws.scale[chosen].view(-1, 1, 1)
        origin = -inverse @ draws.shift[chosen].float().unsqueeze(2) * (2 / self.policy.size)
        matrices = self._to_device(torch.cat([inverse, origin], 2)).unsqueeze(3)  # [n,2,3,1]
        centres = (2 * self.places + 1) / self.policy.size - 1  # of the pixels
        chosen = self._to_device(chosen)
        for part, matrix in zip(chosen.split(self.chunk), matrices.split(self.chunk), strict=True):
            x, y, origin = matrix.unbind(2)  # [n,2,1]
            grid = (x * centres).unsqueeze(2) + (y * centres + origin).unsqueeze(3)  # [n,2,S,S]
            grid = grid.permute(0, 2, 3, 1)
            # Zeros come in from outside: less the border's colour before, plus it after, they are
            # that colour.
            values = images.index_select(0, part).float().sub_(self.outside)
            values = F.grid_sample(values, grid, padding_mode="zeros", align_corners=False)
            images.index_copy_(0, part, values.add_(self.outside + 0.5).to(torch.uint8))

    def _jitter(self, images: Tensor, draws: Draws) -> None:
        """Changes brightness, contrast, saturation and hue in place, in each image's own order.

        The first three share one formula (`_blend`). Hue takes many more operations, so images are
        sorted by its position in their order: those whose hue is due lie side by side.
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
                due = slice(bounds[step], bounds[step + 1])
                if due.start < due.stop:
                    _turn_hue(values[due], turn[due])
                if step < 3:
                    _blend(values, kinds[:, step], factors[:, step])
            images.index_copy_(0, part, values.to(torch.uint8))

    def _punch(self, images: Tensor, draws: Draws) -> None:
        """Fills the holes in place."""
        chosen = draws.hole.nonzero().squeeze(1)
        corner = self._to_device(draws.corner[chosen])[:, :, None]
        row, column = (corner + self.places[: self.policy.hole]).unbind(1)  # [n,16]
        inside = (row[:, :, None] * self.policy.size + column[:, None, :]).flatten(1)
        colour = self.mean.to(torch.uint8).flatten()
        images.flatten(2)[self._to_device(chosen)[:, None], :, inside] = colour

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)


def _blend(values: Tensor, kind: Tensor, factor: Tensor) -> None:
    """Multiplies brightness, contrast or saturation by `factor`, in place.

    `values` is float32 [n,3,H,W] and holds whole numbers from 0 to 255. `kind` (0 brightness, 1
    contrast, 2 saturation) and `factor` are [n,1,1,1]. The formula is x * factor + grey * a + b. As
    in albumentations, brightness and contrast round down, and saturation rounds to the nearest.
    """
    grey = values[:, :1] * 0.299  # Rec. 601, as OpenCV
    grey.add_(values[:, 1:2], alpha=0.587).add_(values[:, 2:], alpha=0.114).round_()
    rest, saturation = 1 - factor, (kind == SATURATION).float()
    level = grey.mean((2, 3), keepdim=True) * rest * (kind == CONTRAST) + saturation * 0.5
    values.mul_(factor).add_(grey.mul_(rest * saturation).add_(level)).clamp_(0, 255).floor_()


def _turn_hue(values: Tensor, turn: Tensor) -> None:
    """Moves the hue by `turn` [n], in turns, in place; value and saturation (HSV) stay.

    `values` is float32 [n,3,H,W] and holds whole numbers from 0 to 255. As in OpenCV and
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
