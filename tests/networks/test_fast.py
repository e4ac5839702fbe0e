import copy

import pytest
import torch
from torch import nn

from cifarnet.networks.attention import add_attention
from cifarnet.networks.blocks import ConvBlock, DepthwiseConv2d, PooledConv, SeparableBlock
from cifarnet.networks.fast import use_fast_forms, use_plain_forms
from cifarnet.networks.fast_depthwise import FastDepthwiseConv2d
from cifarnet.networks.scaling import deepen


def grown(**settings: object) -> SeparableBlock:
    """A block that is repeated, with attention in both."""
    block = SeparableBlock(4, 12, 0.3, **settings)
    deepen([block], 2)
    add_attention([block, *block.repeats], "cbam")
    return block


BLOCKS = {
    "conv": lambda: ConvBlock(4, 12, 0.3),
    "separable": lambda: SeparableBlock(4, 12, 0.3),
    "dilated": lambda: SeparableBlock(4, 12, 0.3, dilation=4),
    "strided": lambda: SeparableBlock(4, 12, 0.3, stride=2, shortcut=False),
    "grown": lambda: grown(dilation=4),
    "grown, strided": lambda: grown(stride=2, shortcut=False),
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
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


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
