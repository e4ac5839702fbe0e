import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.networks.blocks import SeparableBlock
from cifarnet.networks.build import build_model
from cifarnet.networks.scaling import deepen, enlarged, enlarged_side, repeats, widened
from cifarnet.settings import Settings
from cifarnet.settings.network import NetworkSettings


@given(st.integers(1, 2000), st.floats(0.1, 8))
def test_channels_are_the_nearest_multiple_of_eight(channels, width):
    found = widened(channels, width)
    assert found % 8 == 0
    assert abs(found - channels * width) <= 4 or found == 8 > channels * width


@given(st.integers(1, 9), st.floats(1, 8))
def test_repeats_are_shared_out_evenly_and_the_last_blocks_come_first(blocks, depth):
    counts = repeats(blocks, depth)
    assert blocks + sum(counts) == math.ceil(blocks * depth)
    assert counts == sorted(counts)
    assert counts[-1] - counts[0] <= 1


def test_a_repeat_adds_its_input_and_has_the_settings_of_its_block():
    torch.manual_seed(0)
    block = SeparableBlock(4, 12, 0.0, stride=2, shortcut=False)
    x = torch.randn(2, 4, 8, 8)
    first = block(x)
    deepen([block], 2)
    (repeat,) = block.repeats
    expected = torch.relu(repeat.bn(repeat.conv(first)) + first)
    assert expected.shape == (2, 12, 4, 4)
    torch.testing.assert_close(block(x), expected)
    dilated = SeparableBlock(4, 12, 0.3, dilation=4)
    deepen([dilated], 2)
    (repeat,) = dilated.repeats
    assert (repeat.conv[0].dilation, repeat.dropout.p) == ((4, 4), 0.3)


@given(st.integers(1, 128), st.floats(1, 4))
def test_sides_of_enlarged_images_are_the_nearest_multiple_of_four(side, factor):
    found = enlarged_side(side, factor)
    assert found == side if factor == 1 else found % 4 == 0
    assert abs(found - side * factor) <= 2 or found == 4 > side * factor


def test_images_are_enlarged_as_others_do():
    images = torch.randn(2, 3, 32, 20)
    ours = enlarged(images, 1.3225)
    assert ours.shape == (2, 3, 44, 28)
    for image, large in zip(images, ours, strict=True):
        expected = cv2.resize(
            image.permute(1, 2, 0).numpy(), (28, 44), None, 0, 0, cv2.INTER_LINEAR
        )
        np.testing.assert_allclose(large.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_the_compound_scale_is_efficientnets():
    assert Settings().network.scaling == (1, 1, 1)
    assert Settings.from_flags(width=0.5, depth=2).network.scaling == (2, 0.5, 1)
    assert Settings.from_flags(compound_scale=2).network.scaling == pytest.approx(
        (1.44, 1.21, 1.3225)
    )
    model = build_model(NetworkSettings(compound_scale=2), 10)
    channels = [m.bn.num_features for m in (model.c1, model.c2, model.c3, model.c4)]
    assert channels == [48, 152, 288, 464]  # 40, 128, 240, 384 times 1.21
    assert [len(m.repeats) for m in (model.c2, model.c3, model.c4)] == [0, 1, 1]
    seen = []
    model.c1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 3, 44, 44)]  # 32 times 1.3225 is 42.3


def test_all_else_equal_the_other_weights_start_the_same():
    """A pair of runs with and without then differs in nothing else."""
    states = []
    for changes in ({}, {"attention": "cbam", "depth": 2.0}):
        torch.manual_seed(0)
        states.append(build_model(NetworkSettings(**changes), 10).state_dict())
    published, grown = states
    assert len(grown) > len(published)
    assert all(torch.equal(grown[name], value) for name, value in published.items())
