from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.pictures import write_twelve_bits

from cifarnet.core.errors import UserError
from cifarnet.images.pictures import to_pixels
from cifarnet.inference.pixels import to_batch, to_network_input

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
NORMALISE = partial(to_network_input, mean=MEAN, std=STD, size=32)


@given(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK"]), st.integers(8, 48))
def test_pictures_of_any_mode_are_resized_as_in_training(mode, size):
    picture = Image.new("RGB", (40, 20), (200, 100, 50)).convert(mode)
    batch = to_batch(picture, size)
    assert (batch.dtype, batch.shape) == (torch.uint8, (1, 3, size, size))
    assert torch.equal(batch[0], torch.from_numpy(to_pixels(picture, size)))


def test_integers_of_32_bits_in_a_tiff_are_refused(tmp_path):
    Image.new("I", (8, 8), 200).save(tmp_path / "scan.tif")
    with pytest.raises(UserError, match="no agreed range"):
        to_batch(Image.open(tmp_path / "scan.tif"), 32)


def test_grey_of_twelve_bits_is_scaled_in_a_picture_too(tmp_path):
    write_twelve_bits(tmp_path / "white.tif")
    assert (to_batch(Image.open(tmp_path / "white.tif"), 32) == 255).all()


def test_tensors_keep_their_size_and_their_values():
    floats, pixels = torch.rand(2, 3, 48, 40), torch.randint(0, 256, (3, 48, 40)).byte()
    for tensor in (floats, pixels):
        before = tensor.clone()
        assert NORMALISE(tensor).shape[-3:] == (3, 48, 40)
        assert torch.equal(tensor, before)
    assert torch.equal(to_batch(pixels, 32), pixels[None])
    torch.testing.assert_close(to_batch(floats, 32), floats * 255)


def test_a_network_gets_normalised_images():
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).byte()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected = (pixels / 255 - mean) / std
    torch.testing.assert_close(NORMALISE(pixels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(NORMALISE(pixels / 255), expected, rtol=1e-5, atol=1e-5)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    assert torch.equal(NORMALISE(picture), NORMALISE(pixels[:1]))


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32), (32, 32), (2, 1, 32, 32)], ids=str)
def test_tensors_of_other_shapes_or_types_are_refused(shape):
    with pytest.raises(UserError, match="is not an image; give uint8"):
        to_batch(torch.zeros(shape), 32)
    with pytest.raises(UserError, match=r"int64 \[3, 32, 32\] is not an image"):
        to_batch(torch.zeros(3, 32, 32, dtype=torch.int64), 32)


@pytest.mark.parametrize("value", [-0.1, 255.0, float("nan")])
def test_floats_of_another_range_are_refused(value):
    with pytest.raises(UserError, match=r"floats outside \[0,1\]"):
        to_batch(torch.full((3, 32, 32), value), 32)
