"""Fast forms of the blocks: the same functions as the plain forms. `use_fast_forms(model)` swaps
them in. `bench.py` measures both: "step, ... plain forms" and "step, ... fast forms"."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from cifarnet.networks.blocks import ConvBlock, DepthwiseConv2d, PooledConv, SeparableBlock
from cifarnet.networks.fast_depthwise import FastDepthwiseConv2d
from cifarnet.networks.folded_norm import conv_norm, norm_relu_dropout


class FastConvBlock(ConvBlock):
    """Computes convolution and normalisation together: see `norm_relu_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu_dropout([(x, self.conv, self.bn)], _rate(self.dropout))


class FastSeparableBlock(SeparableBlock):
    """Computes pointwise convolutions and normalisations together: see `norm_relu_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        depthwise, pointwise = self.conv
        branches, addends = [(depthwise(x), pointwise, self.bn)], ()
        if isinstance(self.shortcut, nn.Identity):
            addends = (x,)
        elif self.shortcut is not None:
            branches.append((x, *self.shortcut))
        if not self.attention:
            return self.repeats(norm_relu_dropout(branches, _rate(self.dropout), addends))
        y = self.attention(norm_relu_dropout(branches, 0.0, addends))
        return self.repeats(self.dropout(y))


def _rate(dropout: nn.Dropout2d) -> float:
    return dropout.p if dropout.training else 0.0


class FastPooledConv(PooledConv):
    """Computes convolution and normalisation as one convolution in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pool(conv_norm(x, self.conv, self.bn)))


FAST_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv2d: FastDepthwiseConv2d,
    ConvBlock: FastConvBlock,
    SeparableBlock: FastSeparableBlock,
    PooledConv: FastPooledConv,
}


def use_fast_forms(model: nn.Module) -> nn.Module:
    """Switches the blocks of `model` to their fast forms in place and returns it. Only the class of
    a module changes, and with it `forward`: weights and their names stay."""
    for module in model.modules():
        module.__class__ = FAST_FORMS.get(type(module), type(module))
    return model


def use_plain_forms(model: nn.Module, keep: Collection[type[nn.Module]] = ()) -> nn.Module:
    """Undoes `use_fast_forms` except for the plain classes in `keep`; returns `model`."""
    plain_forms = {fast: plain for plain, fast in FAST_FORMS.items() if plain not in keep}
    for module in model.modules():
        module.__class__ = plain_forms.get(type(module), type(module))
    return model
