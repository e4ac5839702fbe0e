"""Forms of the blocks that are faster and compute the same function.

`use_fast_forms(model)` swaps them in. `bench.py` measures both: "step, ... plain forms" and
"step, ... fast forms".
"""

import functools
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.networks.blocks import (
    ConvBlock,
    DenseConv2d,
    DepthwiseConv2d,
    PooledConv,
    SeparableBlock,
)

Branch = tuple[Tensor, DenseConv2d, nn.BatchNorm2d]  # stands for bn(conv(x)), x [B,in,H,W]
NO_DROPOUT = nn.Dropout2d(0.0)


class FastDepthwiseConv2d(DepthwiseConv2d):
    """Avoids depthwise kernels that are slow in oneDNN (CPU) and cuDNN (CUDA).

    Dilated kernels are slow, so the layer convolves interleaved sub-images without dilation. Input
    gradients are slow, so the layer computes them as a forward pass. On the CPU, with a stride and
    in bf16, they take fifty times as long as the forward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        divides = stride == 1 and x.shape[2] % dilation == 0 and x.shape[3] % dilation == 0
        tried = x.device.type in ("cpu", "cuda")
        if not tried or stride > 2 or (dilation > 1 and not divides):
            return super().forward(x)
        x, weight = _autocast(x), _autocast(self.weight)
        if dilation == 1:
            return _Depthwise.apply(x, weight, stride)
        return _from_sub_images(_Depthwise.apply(_sub_images(x, dilation), weight, 1), dilation)


class FastConvBlock(ConvBlock):
    """Computes convolution and normalisation together: see `norm_relu_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu_dropout([(x, self.conv, self.bn)], self.dropout)


class FastSeparableBlock(SeparableBlock):
    """Computes pointwise convolutions and normalisations together: see `norm_relu_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        depthwise, pointwise = self.conv
        branches, added = [(depthwise(x), pointwise, self.bn)], ()
        if isinstance(self.shortcut, nn.Identity):
            added = (x,)
        elif self.shortcut is not None:
            branches.append((x, *self.shortcut))
        if not self.attention:
            return self.repeats(norm_relu_dropout(branches, self.dropout, added))
        y = self.attention(norm_relu_dropout(branches, NO_DROPOUT, added))
        return self.repeats(self.dropout(y))


class FastPooledConv(PooledConv):
    """Computes convolution and normalisation as one convolution in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.bn.training:
            return super().forward(x)
        return torch.relu(self.pool(_evaluated(x, self.conv, self.bn)))


FAST_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv2d: FastDepthwiseConv2d,
    ConvBlock: FastConvBlock,
    SeparableBlock: FastSeparableBlock,
    PooledConv: FastPooledConv,
}


def use_fast_forms(model: nn.Module) -> nn.Module:
    """Switches the blocks of `model` to their fast forms, in place; returns `model`.

    Only the class of a module changes, and with it `forward`: weights and their names stay.
    """
    for module in model.modules():
        module.__class__ = FAST_FORMS.get(type(module), type(module))
    return model


def use_plain_forms(model: nn.Module, keep: Collection[type[nn.Module]] = ()) -> nn.Module:
    """Undoes `use_fast_forms`, except for the kinds in `keep`; returns `model`."""
    plain_forms = {fast: plain for plain, fast in FAST_FORMS.items() if plain not in keep}
    for module in model.modules():
        module.__class__ = plain_forms.get(type(module), type(module))
    return model


# --- depthwise convolutions ---


def _autocast(x: Tensor) -> Tensor:
    """Casts x as autocast would: it does not do so for autograd functions."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _sub_images(x: Tensor, d: int) -> Tensor:
    """Splits each image into d*d interleaved ones: [B,C,H,W] -> [B*d*d,C,H/d,W/d], channels_last.

    A kernel of dilation d only combines pixels whose rows and columns are equal modulo d. So an
    undilated convolution of the sub-images gives the same, and zero padding d becomes padding 1.
    """
    b, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b * d * d, h // d, w // d, c).permute(0, 3, 1, 2)


def _from_sub_images(parts: Tensor, d: int) -> Tensor:
    """Undoes `_sub_images`: [B*d*d,C,H/d,W/d] -> [B,C,H,W], channels_last."""
    n, c, h, w = parts.shape
    x = parts.permute(0, 2, 3, 1).reshape(n // d**2, d, d, h, w, c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n // d**2, h * d, w * d, c).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """An undilated depthwise convolution of stride 1 or 2: x [B,C,H,W], weight [C,1,k,k].

    Its input gradient is a convolution of stride 1. Tap k joins output row i to input row
    stride*i+k-padding. So the gradient of the input is the gradient of the output, spread to every
    second row and column if the stride is 2, convolved with the flipped kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        padding, channels = weight.shape[-1] // 2, len(weight)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            spread = grad
            if ctx.stride == 2:
                spread = torch.zeros_like(x)  # [B,C,H,W]
                spread[:, :, ::2, ::2] = grad
            grad_x = F.conv2d(spread, weight.flip(2, 3), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(
                x, weight.shape, grad, ctx.stride, padding, groups=channels
            )
        return grad_x, grad_weight, None


# --- convolution and normalisation together ---


def norm_relu_dropout(
    branches: Sequence[Branch], dropout: nn.Dropout2d, added: Sequence[Tensor] = ()
) -> Tensor:
    """dropout(relu(y)), y the sum of bn(conv(x)) over the branches: [B,in,H,W] -> [B,out,H,W].

    Tensors `added` [B,out,H,W] are part of the sum as they are.

    conv is linear in the k x k patches of x, so the mean and covariance of the patches give the
    mean and variance of conv(x). These small matrices turn conv and bn into one convolution, which
    saves several passes over the largest tensors of the network, and the memory to keep them.
    In evaluation the running statistics do the same on every device.
    """
    device = branches[0][0].device.type
    training = {bn.training for _, _, bn in branches}
    if training == {False}:
        terms = [_evaluated(*branch) for branch in branches]
        return dropout(torch.relu(_sum([*terms, *added])))
    if False in training or device != "cpu":
        terms = [bn(conv(x)) for x, conv, bn in branches]
        return dropout(torch.relu(_sum([*terms, *added])))
    p = dropout.p if dropout.training else 0.0
    tensors = []
    for x, conv, bn in branches:
        pixels, weight = _patches(_autocast(x), conv)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        tensors += [pixels, weight, bn.weight, bn.bias]
    with torch.autocast(device, enabled=False):  # statistics in 32 bits
        y, *statistics = _NormedSum.apply([bn.eps for _, _, bn in branches], 1 / (1 - p), *tensors)
    for (_, _, bn), mean, var in zip(branches, statistics[::2], statistics[1::2], strict=True):
        _update_running(bn, mean, var, y.numel() // y.shape[1])
    for x in added:  # y is multiplied by 1/(1-p) already
        y = torch.add(y, x, alpha=1 / (1 - p))
    return _ReluDropout.apply(y, p)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


def _evaluated(x: Tensor, conv: DenseConv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)) as one convolution, with the running statistics."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    bias = bn.bias - scale * bn.running_mean
    return F.conv2d(x, conv.weight * scale[:, None, None, None], bias, padding=conv.padding)


def _patches(x: Tensor, conv: DenseConv2d) -> tuple[Tensor, Tensor]:
    """Lays out each pixel's k x k patch as channels, so that `conv` becomes a matrix product.

    x [B,in,H,W] -> [B,k*k*in,H,W], and the weight of `conv` [out,in,k,k] -> [out,k*k*in].
    """
    k = conv.kernel_size[0]
    if k == 1:
        return x, conv.weight.flatten(1)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, k // 2, k // 2, k // 2, k // 2))  # [B,H+k-1,W+k-1,in]
    x = x.unfold(1, k, 1).unfold(2, k, 1)  # [B,H,W,in,k,k]
    patches = x.permute(0, 1, 2, 4, 5, 3).flatten(3).permute(0, 3, 1, 2)
    return patches, conv.weight.permute(0, 2, 3, 1).flatten(1)


class _NormedSum(torch.autograd.Function):
    """gain * the sum of bn(conv(x)) over branches -> [B,out,H,W], then mean and variance of each.

    Each branch is four tensors: x [B,in,H,W], weight [out,in], scale and shift [out] of bn. Mean
    and variance [out] are those of conv(x), for the running statistics.
    """

    @staticmethod
    def forward(ctx: Any, eps: list[float], gain: float, *tensors: Tensor) -> tuple:
        ctx.folded, statistics, biases = [], [], []
        xs = tensors[::4]
        for i, x in enumerate(xs):
            with torch.enable_grad():  # the small matrices have a graph of their own
                own = (*tensors[4 * i + 1 : 4 * i + 4], *_moments(x))
                leaves = [tensor.detach().requires_grad_() for tensor in own]
                weight, bias, mean, var = _fold(leaves[:3], leaves[3:], eps[i], gain)
            ctx.folded.append((weight, bias, leaves))
            statistics += [mean.detach(), var.detach()]
            biases.append(bias.detach())
        ctx.save_for_backward(*xs)
        first, *others = (weight.detach().to(xs[0].dtype) for weight, _, _ in ctx.folded)
        y = F.conv2d(xs[0], first[:, :, None, None], _sum(biases).to(xs[0].dtype))
        y = y.contiguous(memory_format=torch.channels_last)
        for x, weight in zip(xs[1:], others, strict=True):
            _pixels(y).addmm_(_pixels(x), weight.T)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple:
        grad = grad.contiguous(memory_format=torch.channels_last)
        count, grads, grad_bias = grad.numel() // grad.shape[1], [None, None], None
        for i, (x, (weight, bias, leaves)) in enumerate(
            zip(ctx.saved_tensors, ctx.folded, strict=True)
        ):
            wanted = [False, True, grad_bias is None]  # the bias's gradient: once for all branches
            kernel = weight.detach()[:, :, None, None].to(x.dtype)
            _, grad_weight, grad_bias_here = torch.ops.aten.convolution_backward(
                grad, x, kernel, [len(bias)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
            )
            grad_bias = grad_bias_here if grad_bias is None else grad_bias
            grad_folded = (grad_weight.flatten(1).to(weight.dtype), grad_bias.to(bias.dtype))
            *of_parameters, of_mean, of_second = torch.autograd.grad(
                (weight, bias), leaves, grad_folded
            )
            grad_x = None
            if ctx.needs_input_grad[2 + 4 * i]:
                # x acts through its moments and through the convolution; both end in one tensor.
                symmetric = ((of_second + of_second.T) / count).to(x.dtype)
                pixels = torch.addmm((of_mean / count).to(x.dtype), _pixels(x), symmetric)
                pixels.addmm_(_pixels(grad), kernel.flatten(1))
                grad_x = pixels.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            grads += [grad_x, *of_parameters]
        return tuple(grads)


def _pixels(x: Tensor) -> Tensor:
    """A view of x [B,C,H,W], channels_last, as a matrix [B*H*W,C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and second moment [C,C] of the pixels of x [B,C,H,W], in 32 bits or more."""
    b, c, h, w = x.shape
    # About 1,024 pixels, or one image, at a time: rounding their sums to 16 bits then averages out.
    together = math.gcd(b, max(1, 1024 // (h * w)))
    pixels = x.permute(0, 2, 3, 1).reshape(b // together, together * h * w, c)
    wide = torch.promote_types(x.dtype, torch.float32)
    second = torch.bmm(pixels.transpose(1, 2), pixels).sum(0, dtype=wide)
    ones = pixels.new_ones(len(pixels), 1, pixels.shape[1])
    mean = torch.bmm(ones, pixels).sum((0, 1), dtype=wide)
    count = x.numel() / x.shape[1]
    return mean / count, second / count


def _fold(
    parameters: Sequence[Tensor], moments: Sequence[Tensor], eps: float, gain: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight [out,in] and bias [out] of gain * bn(conv(x)); mean and variance [out] of conv(x).

    `parameters`: weight [out,in], scale and shift [out]. `moments`: those of x, [in] and [in,in].
    """
    (weight, scale, shift), (mean_in, second) = parameters, moments
    mean = weight @ mean_in
    var = ((weight @ (second - torch.outer(mean_in, mean_in))) * weight).sum(1).clamp(min=0)
    factor = scale * torch.rsqrt(var + eps)
    return gain * factor[:, None] * weight, gain * (shift - factor * mean), mean, var


@torch.no_grad()
def _update_running(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics of `bn` as torch does; a momentum of None means the average."""
    bn.num_batches_tracked += 1
    share = 1 / bn.num_batches_tracked if bn.momentum is None else bn.momentum
    bn.running_mean.lerp_(mean, share)
    bn.running_var.lerp_(var * (count / max(1, count - 1)), share)


class _ReluDropout(torch.autograd.Function):
    """Spatial dropout of relu(y), for y [B,C,H,W] that is already multiplied by 1/(1-p).

    Zeroes channels, with the random draws of `F.dropout2d`. The gradient is that of ReLU alone: a
    zero passes none.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, p: float) -> Tensor:
        y = torch.relu(y)
        if p > 0:
            y = y * y.new_empty(*y.shape[:2], 1, 1).bernoulli_(1 - p)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None
