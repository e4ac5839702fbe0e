"""Pictures as tensors: the input of a classifier or of a network."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from cifarnet.core.errors import UserError
from cifarnet.images.normalise import Normalise
from cifarnet.images.pictures import to_pixels


def to_batch(picture: Image.Image | Tensor, size: int) -> Tensor:
    """The picture as a batch [B,3,H,W], uint8 or floats in [0, 255].

    Takes a PIL image of any size and mode and resizes it to `size` as in training (B is 1); or a
    tensor [3,H,W] or [B,3,H,W], uint8 or floats in [0, 1], on any device, and keeps its size.
    Raises `UserError` for other tensors.
    """
    is_tensor = isinstance(picture, Tensor)
    if is_tensor:
        pixels = picture
    else:
        copy = picture.copy()
        copy.format = picture.format  # `to_pixels` needs both; PIL drops them
        if hasattr(picture, "tag_v2"):
            copy.tag_v2 = picture.tag_v2
        pixels = torch.from_numpy(to_pixels(copy, size))
    is_float = pixels.is_floating_point()
    fits = pixels.ndim in (3, 4) and pixels.shape[-3] == 3
    if not fits or not (is_float or pixels.dtype is torch.uint8):
        raise UserError(
            f"a tensor {shown(pixels)} is not an image; "
            f"give uint8, or floats in [0,1], of [3,H,W] or [B,3,H,W]"
        )
    if is_float and not ((pixels >= 0) & (pixels <= 1)).all():
        raise UserError(
            "a tensor of floats outside [0,1] is not an image; divide by 255, or give uint8"
        )
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    return pixels * 255 if is_float else pixels


def shown(tensor: Tensor) -> str:
    """The type and shape of `tensor` in words, as in "uint8 [3, 32, 32]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def to_network_input(
    picture: Image.Image | Tensor, mean: Sequence[float], std: Sequence[float], size: int
) -> Tensor:
    """The picture as input of a network, float32 [B,3,H,W], normalised: see `to_batch`. `mean` and
    `std` of the three channels are in [0, 1]."""
    batch = to_batch(picture, size)
    return Normalise(tuple(mean), tuple(std), batch.device)(batch)
