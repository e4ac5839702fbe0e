import copy

import pytest
import torch
from torch import nn

from cifarnet.networks.attention import add_attention
from cifarnet.networks.blocks import (
    ConvBlock,
    DenseConv2d,
    DepthwiseConv2d,
    PooledConv,
    SeparableBlock,
)
from cifarnet.networks.fast import (
    FastDepthwiseConv2d,
    norm_relu_dropout,
    use_fast_forms,
    use_plain_forms,
)
from cifarnet.networks.scaling import deepen

FORMS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1)]  # stride, dilation
SIZES = [(32, 32), (16, 24), (15, 17), (20, 31), (7, 12), (1, 1), (3, 8)]


def plain_copy(layer: FastDepthwiseConv2d) -> DepthwiseConv2d:
    return use_plain_forms(copy.deepcopy(layer))


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
    reference = plain_copy(layer)
    for layout in (torch.contiguous_format, torch.channels_last):
        layer.weight.grad = reference.weight.grad = None
        images = torch.randn(2, 6, *size, dtype=dtype).to(memory_format=layout)
        for ours, plain in zip(
            outputs_and_gradients(layer, images),
            outputs_and_gradients(reference, images),
            strict=True,
        ):
            tolerance = (
                1e-4 if dtype is torch.float32 else 1e-10
            )  # a weight's gradient sums up to 2,048 products
            torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("stride", "dilation"), FORMS)
def test_gradients_equal_finite_differences(stride, dilation):
    layer = FastDepthwiseConv2d(2, 3, stride, dilation).double()
    images = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)), (images, layer.weight)
    )


@pytest.mark.parametrize(("stride", "dilation"), FORMS)
def test_under_autocast_the_forms_agree_to_16_bits(stride, dilation):
    layer = FastDepthwiseConv2d(8, 3, stride, dilation)
    images = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    exact = outputs_and_gradients(plain_copy(layer), images)
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


def branches(dtype, kernel_sizes) -> nn.ModuleList:
    torch.manual_seed(0)
    pairs = nn.ModuleList()
    for kernel_size in kernel_sizes:
        conv, bn = DenseConv2d(6, 10, kernel_size).to(dtype), nn.BatchNorm2d(10).to(dtype)
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.normal_(bn.bias)
        pairs.append(nn.ModuleList([conv, bn]))
    return pairs


def images_with_offsets(batch, dtype):
    """Channel means are several deviations from 0: there rounding easily spoils a variance."""
    images = torch.randn(batch, 6, 9, 7, dtype=torch.float64) + torch.arange(-3, 3).view(1, 6, 1, 1)
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def run(pairs, inputs, dropout):
    return norm_relu_dropout([(x, *pair) for x, pair in zip(inputs, pairs, strict=True)], dropout)


def run_plain(pairs, inputs, dropout):
    terms = [bn(conv(x)) for x, (conv, bn) in zip(inputs, pairs, strict=True)]
    return dropout(torch.relu(sum(terms)))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kernel_sizes", [(1,), (3,), (1, 1), (3, 1, 1)])
@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_the_folded_normalisation_equals_batch_norm(dtype, tolerance, batch, kernel_sizes, p):
    fast, plain = branches(dtype, kernel_sizes), branches(dtype, kernel_sizes)
    for _ in range(3):  # the running statistics move
        images = [images_with_offsets(batch, dtype) for _ in kernel_sizes]
        results = []
        for pairs, forward in ((fast, run), (plain, run_plain)):
            torch.manual_seed(1)  # of the dropped channels
            inputs = [x.clone().requires_grad_() for x in images]
            y = forward(pairs, inputs, nn.Dropout2d(p))
            (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)).sum().backward()
            results.append([y, *(x.grad for x in inputs), *(q.grad for q in pairs.parameters())])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(
                ours, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
            )
        fast.zero_grad()
        plain.zero_grad()
        for ours, expected in zip(fast.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    fast.eval()
    plain.eval()
    dropout = nn.Dropout2d(p).eval()
    torch.testing.assert_close(
        run(fast, images, dropout), run_plain(plain, images, dropout), rtol=1e-4, atol=1e-4
    )


def test_inputs_and_parameters_that_need_no_gradient_get_none():
    (pair,) = pairs = branches(torch.float32, (3,))
    pair[1].bias.requires_grad_(False)
    images = images_with_offsets(4, torch.float32)
    run(pairs, [images], nn.Dropout2d(0.1)).sum().backward()
    assert images.grad is None
    assert pair[1].bias.grad is None
    assert pair[0].weight.grad is not None


def test_the_folded_normalisation_agrees_to_16_bits_under_autocast():
    fast, exact = branches(torch.float32, (3, 1)), branches(torch.float32, (3, 1))
    images = [images_with_offsets(64, torch.float32) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        y = run(fast, images, nn.Dropout2d(0))
    assert y.dtype is torch.bfloat16
    expected = run_plain(exact, images, nn.Dropout2d(0))
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.2)
    for ours, expected in zip(fast, exact, strict=True):
        torch.testing.assert_close(ours[1].running_var, expected[1].running_var, rtol=0.01, atol=0)
        torch.testing.assert_close(
            ours[1].running_mean, expected[1].running_mean, rtol=0.01, atol=2e-3
        )


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_normalisation_beside_another_keeps_its_running_statistics(frozen):
    fast, plain = branches(torch.float64, (1, 1)), branches(torch.float64, (1, 1))
    images = [images_with_offsets(8, torch.float64) for _ in fast]
    for pairs in (fast, plain):
        pairs[frozen][1].eval()
    ours, expected = run(fast, images, nn.Dropout2d(0)), run_plain(plain, images, nn.Dropout2d(0))
    torch.testing.assert_close(ours, expected)
    for own, other in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(own, other)


# --- swapping the forms ---


def attended(block: SeparableBlock) -> SeparableBlock:
    add_attention([block], "cbam")
    return block


def repeated(block: SeparableBlock) -> SeparableBlock:
    deepen([block], 2)
    return block


BLOCKS = {
    "conv": lambda: ConvBlock(4, 12, 0.3),
    "separable": lambda: SeparableBlock(4, 12, 0.3),
    "dilated": lambda: SeparableBlock(4, 12, 0.3, dilation=4),
    "strided": lambda: SeparableBlock(4, 12, 0.3, stride=2, shortcut=False),
    "attended": lambda: attended(SeparableBlock(4, 12, 0.3)),
    "repeated": lambda: repeated(SeparableBlock(4, 12, 0.3, dilation=4)),
    "both": lambda: attended(repeated(SeparableBlock(4, 12, 0.3, stride=2, shortcut=False))),
    "pooled": lambda: PooledConv(4, 12, 2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_fast_block_computes_what_the_plain_one_does(name):
    torch.manual_seed(0)
    plain = BLOCKS[name]().double()
    fast = use_fast_forms(copy.deepcopy(plain))
    assert type(fast) is not type(plain)
    assert isinstance(fast, type(plain))
    for mode in (True, True, False):
        images = torch.randn(5, 4, 8, 12, dtype=torch.float64)
        results = []
        for block in (plain.train(mode), fast.train(mode)):
            torch.manual_seed(1)  # the same channels are dropped
            inputs = images.clone().requires_grad_()
            y = block(inputs)
            block.zero_grad()
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
            gradients = [p.grad for p in block.parameters()]
            results.append([y, inputs.grad, *gradients, *block.buffers()])
        for expected, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_forms_change_there_and_back_and_weights_stay():
    model = nn.Sequential(*(make() for make in BLOCKS.values()))
    kinds = [type(module) for module in model.modules()]
    before = model.state_dict()
    fast = [type(module) for module in use_fast_forms(model).modules()]
    assert use_fast_forms(model) is model
    assert [type(module) for module in model.modules()] == fast != kinds
    kept = use_plain_forms(copy.deepcopy(model), keep=(DepthwiseConv2d,))
    assert {type(module) for module in kept.modules()} - set(kinds) == {FastDepthwiseConv2d}
    assert [type(module) for module in use_plain_forms(model).modules()] == kinds
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in before.items())
