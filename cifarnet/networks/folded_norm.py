"""Convolution and batch normalisation together, as one convolution.

conv is linear in the k x k patches of its input, so the mean and covariance of the patches give the
mean and variance of conv(x). These small matrices turn conv and bn into one convolution, which
saves several passes over the largest tensors of the network, and the memory to keep them.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.networks.blocks import DenseConv2d
from cifarnet.networks.fast_depthwise import autocast

Branch = tuple[Tensor, DenseConv2d, nn.BatchNorm2d]  # stands for bn(conv(x)), x [B,in,H,W]


def norm_relu_dropout(
    branches: Sequence[Branch], p: float, addends: Sequence[Tensor] = ()
) -> Tensor:
    """dropout(relu(y)), y the sum of bn(conv(x)) over the branches: [B,in,H,W] -> [B,out,H,W].

    `p` is the rate of the spatial dropout. `addends` [B,out,H,W] are added to the sum.

    On the CPU, training uses the statistics of the patches; other devices run conv and bn one after
    the other. Evaluation uses the running statistics on every device.
    """
    device = branches[0][0].device.type
    if device != "cpu" or not all(bn.training for _, _, bn in branches):
        terms = [conv_norm(*branch) for branch in branches]
        return F.dropout2d(torch.relu(_sum([*terms, *addends])), p)
    tensors = []
    for x, conv, bn in branches:
        pixels, weight = _patches(autocast(x), conv)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        tensors += [pixels, weight, bn.weight, bn.bias]
    with torch.autocast(device, enabled=False):  # statistics in 32 bits
        y, *statistics = _NormedSum.apply([bn.eps for _, _, bn in branches], 1 / (1 - p), *tensors)
    for (_, _, bn), mean, var in zip(branches, statistics[::2], statistics[1::2], strict=True):
        _update_running(bn, mean, var, y.numel() // y.shape[1])
    for x in addends:  # y is multiplied by 1/(1-p) already
        y = torch.add(y, x, alpha=1 / (1 - p))
    return _ReluDropout.apply(y, p)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


def conv_norm(x: Tensor, conv: DenseConv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)). In evaluation it is one convolution, with the running statistics."""
    if bn.training:
        return bn(conv(x))
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    bias = bn.bias - scale * bn.running_mean
    return F.conv2d(x, conv.weight * scale[:, None, None, None], bias, padding=conv.padding)


def _patches(x: Tensor, conv: DenseConv2d) -> tuple[Tensor, Tensor]:
    """Lays out each pixel's k x k patch as channels, so that `conv` becomes a matrix product. x
    [B,in,H,W] -> [B,k*k*in,H,W], and the weight of `conv` [out,in,k,k] -> [out,k*k*in]."""
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
                inputs = (*tensors[4 * i + 1 : 4 * i + 4], *_moments(x))
                leaves = [tensor.detach().requires_grad_() for tensor in inputs]
                weight, bias, mean, var = _fold(leaves[:3], leaves[3:], eps[i], gain)
            ctx.folded.append((weight, bias, leaves))
            statistics += [mean.detach(), var.detach()]
            biases.append(bias.detach())
        ctx.save_for_backward(*xs)
        first, *later = (weight.detach().to(xs[0].dtype) for weight, _, _ in ctx.folded)
        y = F.conv2d(xs[0], first[:, :, None, None], _sum(biases).to(xs[0].dtype))
        y = y.contiguous(memory_format=torch.channels_last)
        for x, weight in zip(xs[1:], later, strict=True):
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
            mask = [False, True, grad_bias is None]  # one gradient of the bias for all branches
            kernel = weight.detach()[:, :, None, None].to(x.dtype)
            _, grad_weight, branch_grad_bias = torch.ops.aten.convolution_backward(
                grad, x, kernel, [len(bias)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask
            )
            grad_bias = branch_grad_bias if grad_bias is None else grad_bias
            grad_folded = (grad_weight.flatten(1).to(weight.dtype), grad_bias.to(bias.dtype))
            *grad_parameters, grad_mean, grad_second = torch.autograd.grad(
                (weight, bias), leaves, grad_folded
            )
            grad_x = None
            if ctx.needs_input_grad[2 + 4 * i]:
                # x acts through its moments and through the convolution; both end in one tensor.
                symmetric = ((grad_second + grad_second.T) / count).to(x.dtype)
                pixels = torch.addmm((grad_mean / count).to(x.dtype), _pixels(x), symmetric)
                pixels.addmm_(_pixels(grad), kernel.flatten(1))
                grad_x = pixels.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            grads += [grad_x, *grad_parameters]
        return tuple(grads)


def _pixels(x: Tensor) -> Tensor:
    """A view of x [B,C,H,W], channels_last, as a matrix [B*H*W,C]."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and second moment [C,C] of the pixels of x [B,C,H,W], in 32 bits or more."""
    b, c, h, w = x.shape
    # About 1,024 pixels, or one image, at a time: rounding their sums to 16 bits then averages out.
    chunk = math.gcd(b, max(1, 1024 // (h * w)))
    pixels = x.permute(0, 2, 3, 1).reshape(b // chunk, chunk * h * w, c)
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
    """Moves the running statistics of `bn` as torch does."""
    bn.num_batches_tracked += 1
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(var * (count / max(1, count - 1)), bn.momentum)


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
