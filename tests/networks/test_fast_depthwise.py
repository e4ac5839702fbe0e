import copy

import pytest
import torch

from cifarnet.networks.fast import use_plain_forms
from cifarnet.networks.fast_depthwise import FastDepthwiseConv2d

FORMS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1)]  # stride, dilation
SIZES = [(32, 32), (16, 24), (15, 17), (20, 31), (7, 12), (1, 1), (3, 8)]


def outputs_and_gradients(layer, images):
    images = images.clone().requires_grad_()
    y = layer(images)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    return y.detach(), images.grad, layer.weight.grad


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), FORMS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_form_equals_the_plain_convolution(dtype, size, stride, dilation, kernel_size):
    torch.manual_seed(0)
    layer = FastDepthwiseConv2d(6, kernel_size, stride, dilation).to(dtype)
    reference = use_plain_forms(copy.deepcopy(layer))
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]  # of sums of 2,048 products
    for layout in (torch.contiguous_format, torch.channels_last):
        layer.weight.grad = reference.weight.grad = None
        images = torch.randn(2, 6, *size, dtype=dtype).to(memory_format=layout)
        results = (outputs_and_gradients(each, images) for each in (layer, reference))
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("stride", "dilation"), FORMS)
def test_under_autocast_the_forms_agree_to_16_bits(stride, dilation):
    layer = FastDepthwiseConv2d(8, 3, stride, dilation)
    images = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    exact = outputs_and_gradients(use_plain_forms(copy.deepcopy(layer)), images)
    with torch.autocast("cpu", torch.bfloat16):
        ours = outputs_and_gradients(layer, images)
    assert ours[0].dtype is torch.bfloat16
    assert ours[1].dtype is ours[2].dtype is torch.float32
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(
            got.float(), wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item()
        )


def test_frozen_parts_get_no_gradient():
    layer = FastDepthwiseConv2d(4, 3, stride=2)
    layer.weight.requires_grad_(False)
    images = torch.randn(1, 4, 8, 8, requires_grad=True)
    layer(images).sum().backward()
    assert layer.weight.grad is None
    assert images.grad is not None
