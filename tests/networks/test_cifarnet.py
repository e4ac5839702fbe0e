import copy

import torch
import torch.nn.functional as F
from support.networks import reference_forward
from torch import nn

from cifarnet.networks.build import parameter_count
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.networks.fast import use_fast_forms

ROWS = {"c1": 1_160, "c2": 11_112, "c3": 63_552, "c4": 95_088, "head": 3_850}


def test_parameters_row_by_row():
    model = CIFARNet()
    rows = {name: parameter_count(part) for name, part in model.named_children()}
    assert rows == ROWS | {"dropout": 0}
    assert parameter_count(model) == sum(ROWS.values()) == 174_762


def test_convolutions_have_4d_weights_and_no_bias():
    convolutions = [module for module in CIFARNet().modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 9
    assert all(conv.weight.ndim == 4 and conv.bias is None for conv in convolutions)


def test_shapes_block_by_block():
    model, x = CIFARNet(classes=7).eval(), torch.randn(2, 3, 32, 32)
    shapes = {"c1": (40, 32, 32), "c2": (128, 32, 32), "c3": (240, 32, 32), "c4": (384, 16, 16)}
    for block, shape in shapes.items():
        x = getattr(model, block)(x)
        assert x.shape == (2, *shape)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model(torch.randn(1, 3, 45, 30)).shape == (1, 7)


def test_the_forward_pass_is_the_published_one():
    torch.manual_seed(0)
    model = CIFARNet(dropout=(0.5,) * 4)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # moves the running statistics away from 0 and 1
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    state = {name: value.double() for name, value in model.state_dict().items()}
    expected = reference_forward(state, images.double())
    torch.testing.assert_close(model(images).double(), expected, rtol=1e-4, atol=1e-5)


def test_fast_and_plain_forms_are_the_same_function():
    """In 64 bits no rounding hides a difference: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    plain = CIFARNet().double()
    fast = use_fast_forms(copy.deepcopy(plain))
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    for model in (fast, plain):
        F.cross_entropy(model(images), labels).backward()
    for (name, ours), expected in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, ours), expected in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(fast.eval()(images), plain.eval()(images), rtol=1e-9, atol=1e-12)


def test_logits_are_32_bit_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert CIFARNet()(torch.randn(2, 3, 32, 32)).dtype is torch.float32
