import pytest
import torch
from torch import nn

from cifarnet.networks.blocks import DenseConv2d
from cifarnet.networks.folded_norm import norm_relu_dropout


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
    rate = dropout.p if dropout.training else 0.0
    return norm_relu_dropout([(x, *pair) for x, pair in zip(inputs, pairs, strict=True)], rate)


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
        buffers = (list(pairs.buffers()) for pairs in (fast, plain))
        torch.testing.assert_close(*buffers, rtol=tolerance, atol=tolerance)
    dropout = nn.Dropout2d(p).eval()
    ours, expected = run(fast.eval(), images, dropout), run_plain(plain.eval(), images, dropout)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


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
    buffers = (list(pairs.buffers()) for pairs in (fast, exact))
    torch.testing.assert_close(*buffers, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_normalisation_beside_another_keeps_its_running_statistics(frozen):
    fast, plain = branches(torch.float64, (1, 1)), branches(torch.float64, (1, 1))
    images = [images_with_offsets(8, torch.float64) for _ in fast]
    for pairs in (fast, plain):
        pairs[frozen][1].eval()
    ours, expected = run(fast, images, nn.Dropout2d(0)), run_plain(plain, images, nn.Dropout2d(0))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(list(fast.buffers()), list(plain.buffers()))
