import math

import pytest
import torch
import torch.nn.functional as F

from cifarnet.networks.attention import ATTENTION, add_attention
from cifarnet.networks.blocks import SeparableBlock
from cifarnet.networks.lite import InvertedResidual


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def convolved(plane, kernel):
    """One plane [H,W] or row [N], convolved with zeros around it, sum by sum."""
    sides = [side // 2 for side in kernel.shape]
    around = F.pad(plane, [side for side in reversed(sides) for _ in range(2)])
    out = torch.empty_like(plane)
    for place in torch.cartesian_prod(*map(torch.arange, plane.shape)).reshape(-1, plane.ndim):
        window = tuple(slice(int(p), int(p) + k) for p, k in zip(place, kernel.shape, strict=True))
        out[tuple(place)] = (around[window] * kernel).sum()
    return out


# --- each paper's formula, for one image [C,H,W], written a second time ---


def eca(x, weights):
    """The weight of channel i sees the k/2 channels beside it on each side."""
    (kernel,) = (w.flatten() for w in weights.values())
    means = torch.stack([channel.mean() for channel in x])
    return torch.stack([c * sigmoid(w) for c, w in zip(x, convolved(means, kernel), strict=True)])


def two_layers(z, weights, prefix=""):
    return weights[f"{prefix}layers.2.weight"] @ (weights[f"{prefix}layers.0.weight"] @ z).relu()


def se(x, weights):
    scores = two_layers(x.flatten(1).mean(1), weights)
    return torch.stack([channel * sigmoid(s) for channel, s in zip(x, scores, strict=True)])


def simam(x, weights):
    """The sigmoid of the inverse of the least energy e of each neuron t."""
    out = torch.empty_like(x)
    for channel, to in zip(x, out, strict=True):
        mu = channel.sum() / channel.numel()
        variance = ((channel - mu) ** 2).sum() / channel.numel()
        e = 4 * (variance + 1e-4) / ((channel - mu) ** 2 + 2 * variance + 2e-4)
        to[:] = channel * (1 / e).sigmoid()
    return out


def spatial(x, weights, name="conv.weight"):
    kernel = weights[name][0]
    scores = convolved(x.mean(0), kernel[0]) + convolved(x.max(0).values, kernel[1])
    return x * scores.sigmoid()


def cbam(x, weights):
    flat = x.flatten(1)
    scores = two_layers(flat.mean(1), weights) + two_layers(flat.max(1).values, weights)
    return spatial(x * scores.sigmoid()[:, None, None], weights, "spatial.conv.weight")


FORMULAS = {"eca": eca, "se": se, "simam": simam, "cbam": cbam, "spatial": spatial}
each_kind = pytest.mark.parametrize("name", ATTENTION)


@each_kind
@pytest.mark.parametrize("shape", [(3, 40, 6, 5), (1, 128, 1, 1), (2, 8, 9, 4)])
def test_each_equals_its_papers_formula(name, shape):
    torch.manual_seed(0)
    module = ATTENTION[name](shape[1]).double()
    x = torch.randn(shape, dtype=torch.float64).relu()
    weights = {key: value.detach() for key, value in module.state_dict().items()}
    expected = torch.stack([FORMULAS[name](image, weights) for image in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 16, 48, 64, 128, 240, 256, 384, 512, 2048])
def test_the_kernel_of_eca_has_the_papers_size(channels):
    """By the rule of the paper's code: round down, then up to the next odd number."""
    size = int(abs((math.log2(channels) + 1) / 2))
    (kernel,) = ATTENTION["eca"](channels).parameters()
    assert kernel.shape == (1, 1, size if size % 2 else size + 1)


@pytest.mark.parametrize("name", ["se", "cbam"])
@pytest.mark.parametrize(("channels", "hidden"), [(40, 8), (128, 8), (240, 15), (768, 48)])
def test_the_hidden_layer_is_a_sixteenth_but_at_least_eight(name, channels, hidden):
    shapes = [p.shape for p in ATTENTION[name](channels).layers.parameters()]
    assert shapes == [(hidden, channels), (channels, hidden)]


def test_a_block_applies_it_after_the_activation_and_before_dropout():
    torch.manual_seed(0)
    block = SeparableBlock(4, 16, 0.5)
    add_attention([block], "cbam")
    x = torch.randn(3, 4, 6, 6)
    torch.manual_seed(1)
    y = block(x)
    torch.manual_seed(1)
    activated = torch.relu(block.bn(block.conv(x)) + block.shortcut(x))
    torch.testing.assert_close(y, F.dropout2d(block.attention(activated), 0.5))


def test_a_block_of_litenet_applies_it_before_the_addition():
    torch.manual_seed(0)
    block = InvertedResidual(16)
    add_attention([block], "cbam")
    x = torch.randn(3, 16, 6, 6)
    y = block.bn(block.conv(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), x + block.attention(y))


@each_kind
def test_under_autocast_each_follows_float32(name):
    torch.manual_seed(0)
    module, x = ATTENTION[name](32), torch.randn(4, 32, 8, 8).relu()
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x.bfloat16())
    assert y.dtype is torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), module(x), rtol=0.02, atol=0.02)
