"""The building blocks of the networks: one set of weights each, computed in the form that is fastest where it runs."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with "same" padding and no bias: [B,C,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)].

    Weights [C,1,k,k], k odd, as those of `nn.Conv2d(C, C, k, stride, padding, dilation, groups=C)`, and the
    same results. On the CPU oneDNN's depthwise kernels are quick only without dilation, and their input
    gradients take twice the forward pass without a stride and fifty times with one in bf16: there dilated
    convolutions are computed as undilated ones, and input gradients as forward passes (`bench.py` has the figures).
    """

    plain = False

    def __init__(
        self, channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        divides = stride == 1 and x.shape[2] % dilation == 0 and x.shape[3] % dilation == 0
        if self.plain or x.device.type != "cpu" or stride > 2 or (dilation > 1 and not divides):
            return super().forward(x)
        x, weight = _autocast(x), _autocast(self.weight)
        if dilation == 1:
            return _Depthwise.apply(x, weight, stride)
        return _from_sub_images(_Depthwise.apply(_sub_images(x, dilation), weight, 1), dilation)


def _autocast(x: Tensor) -> Tensor:
    """x in the type that autocast asks for: autograd functions are not cast on their own."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _sub_images(x: Tensor, d: int) -> Tensor:
    """The d*d interleaved sub-images of each of x: [B,C,H,W] -> [B*d*d,C,H/d,W/d], channels_last.

    A tap of a kernel of dilation d only meets pixels whose row and column leave the same remainder modulo d: an
    undilated convolution of the sub-images does the same, and zero padding by d becomes zero padding by 1.
    """
    b, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b * d * d, h // d, w // d, c).permute(0, 3, 1, 2)


def _from_sub_images(parts: Tensor, d: int) -> Tensor:
    """What `_sub_images` took apart: [B*d*d,C,H/d,W/d] -> [B,C,H,W], channels_last."""
    n, c, h, w = parts.shape
    x = parts.permute(0, 2, 3, 1).reshape(n // d**2, d, d, h, w, c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n // d**2, h * d, w * d, c).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """An undilated depthwise convolution, of stride 1 or 2, whose input gradient is a convolution of stride 1.

    Output row i meets input row stride*i+k-p through tap k, so the gradient of input row j gathers the output
    gradient, spread out to even rows with zeros between if the stride is 2, through the flipped kernel.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        pad, channels = weight.shape[-1] // 2, len(weight)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            spread = grad
            if ctx.stride == 2:
                spread = torch.zeros_like(x)  # [B,C,H,W]
                spread[:, :, ::2, ::2] = grad
            grad_x = F.conv2d(spread, weight.flip(2, 3), padding=pad, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(
                x, weight.shape, grad, ctx.stride, pad, groups=channels
            )
        return grad_x, grad_weight, None


class DenseConv2d(nn.Conv2d):
    """A convolution of stride 1 with "same" padding and no bias: [B,in,H,W] -> [B,out,H,W]; `norm_relu_dropout` and
    `conv_norm` compute it together with what follows it, unless it is `plain`."""

    plain = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )


class DepthwiseSeparableConv2d(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1, nothing in between (Howard et al. 2017, arXiv 1704.04861, without the
    inner normalisation): [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__(
            DepthwiseConv2d(in_channels, 3, stride, dilation),
            DenseConv2d(in_channels, out_channels, 1),
        )


def norm_relu_dropout(
    branches: Sequence[tuple[Tensor, DenseConv2d, nn.BatchNorm2d]], dropout: nn.Dropout2d
) -> Tensor:
    """dropout(relu(sum of bn(conv(x)) over the branches)): each x [B,in,H,W] -> [B,out,H,W].

    What a normalisation sees is linear in x, so its mean and variance follow from the mean and covariance of x (of
    the 3x3 patches of x). On the CPU, and with fewer channels going in than out, products of small matrices so
    replace several passes over the largest tensors of the network, which are then not kept either. In evaluation
    the running statistics take the place of the batch's.
    """
    x, conv, _ = branches[0]
    training = {bn.training for _, _, bn in branches}
    if conv.plain or len(training) == 2 or (training == {True} and x.device.type != "cpu"):
        return dropout(torch.relu(_sum(bn(conv(x)) for x, conv, bn in branches)))
    if training == {False}:
        return dropout(torch.relu(_sum(_evaluated(*branch) for branch in branches)))
    p = dropout.p if dropout.training else 0.0
    tensors = []
    for x, conv, bn in branches:
        pixels, weight = _patches(_autocast(x), conv)
        tensors += [
            pixels.contiguous(memory_format=torch.channels_last),
            weight,
            bn.weight,
            bn.bias,
        ]
    with torch.autocast(x.device.type, enabled=False):  # statistics in 32 bits
        y, *statistics = _NormedSum.apply([bn.eps for _, _, bn in branches], 1 / (1 - p), *tensors)
    for (_, _, bn), mean, var in zip(branches, statistics[::2], statistics[1::2], strict=True):
        _update_running(bn, mean, var, y.numel() // y.shape[1])
    return _ReluDropout.apply(y, p)


def conv_norm(x: Tensor, conv: DenseConv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)): x [B,in,H,W] -> [B,out,H,W]; one convolution where bn goes by its running statistics."""
    return bn(conv(x)) if bn.training or conv.plain else _evaluated(x, conv, bn)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


def _evaluated(x: Tensor, conv: DenseConv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)) as one convolution, by the running statistics."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    bias = bn.bias - scale * bn.running_mean
    return F.conv2d(x, conv.weight * scale[:, None, None, None], bias, padding=conv.padding)


def _patches(x: Tensor, conv: DenseConv2d) -> tuple[Tensor, Tensor]:
    """x and the weight of `conv` for a product of matrices: [B,in,H,W] and [out,in,k,k] -> [B,k*k*in,H,W] and
    [out,k*k*in]; each pixel with its neighbourhood."""
    k = conv.kernel_size[0]
    if k == 1:
        return x, conv.weight.flatten(1)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, k // 2, k // 2, k // 2, k // 2))  # [B,H+k-1,W+k-1,in]
    x = x.unfold(1, k, 1).unfold(2, k, 1)  # [B,H,W,in,k,k]
    return x.permute(0, 1, 2, 4, 5, 3).flatten(3).permute(0, 3, 1, 2), conv.weight.permute(
        0, 2, 3, 1
    ).flatten(1)


class _NormedSum(torch.autograd.Function):
    """gain * the sum of bn(conv(x)) over branches, each of four tensors: x [B,in,H,W], weight [out,in], and the
    normalisation's scale and shift [out]. -> [B,out,H,W] and each branch's mean and variance [out], to keep.

    All the gradients of one x are summed up where the products of matrices write them.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, eps: list[float], gain: float, *tensors: Tensor
    ) -> tuple:
        ctx.folded, statistics, biases = [], [], []
        xs = tensors[::4]
        for i, x in enumerate(xs):
            with torch.enable_grad():  # the small matrices have a graph of their own
                leaves = [
                    t.detach().requires_grad_()
                    for t in (*tensors[4 * i + 1 : 4 * i + 4], *_moments(x))
                ]
                weight, bias, mean, var = _fold(*leaves, eps[i], gain)
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
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor) -> tuple:
        grad = grad.contiguous(memory_format=torch.channels_last)
        count, grads, grad_bias = grad.numel() // grad.shape[1], [None, None], None
        for i, (x, (weight, bias, leaves)) in enumerate(
            zip(ctx.saved_tensors, ctx.folded, strict=True)
        ):
            wanted = [False, True, grad_bias is None]
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
                symmetric = ((of_second + of_second.T) / count).to(x.dtype)
                pixels = torch.addmm((of_mean / count).to(x.dtype), _pixels(x), symmetric)
                pixels.addmm_(_pixels(grad), kernel.flatten(1))
                grad_x = pixels.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            grads += [grad_x, *of_parameters]
        return tuple(grads)


def _pixels(x: Tensor) -> Tensor:
    """x [B,C,H,W], channels_last, as a matrix [B*H*W,C] that shares its memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and second moment [C,C] of the pixels of x [B,C,H,W] as vectors of channels, in 32 bits at least."""
    b, c, h, w = x.shape
    # A thousand pixels or an image at a time: what their sums lose to 16 bits then averages out over the batch.
    together = math.gcd(b, max(1, 1024 // (h * w)))
    pixels = x.permute(0, 2, 3, 1).reshape(b // together, together * h * w, c)
    wide = torch.promote_types(x.dtype, torch.float32)
    second = torch.bmm(pixels.transpose(1, 2), pixels).sum(0, dtype=wide)
    mean = torch.bmm(pixels.new_ones(len(pixels), 1, pixels.shape[1]), pixels).sum(
        (0, 1), dtype=wide
    )
    count = x.numel() / x.shape[1]
    return mean / count, second / count


def _fold(
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean_in: Tensor,
    second: Tensor,
    eps: float,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight [out,in] and bias [out] of the convolution that is gain * bn(conv(x)), and the mean and variance [out] of
    conv(x), x having mean `mean_in` [in] and second moment `second` [in,in]."""
    mean = weight @ mean_in
    var = ((weight @ (second - torch.outer(mean_in, mean_in))) * weight).sum(1).clamp(min=0)
    factor = scale * torch.rsqrt(var + eps)
    return gain * factor[:, None] * weight, gain * (shift - factor * mean), mean, var


@torch.no_grad()
def _update_running(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    bn.num_batches_tracked += 1
    share = (
        1 / bn.num_batches_tracked if bn.momentum is None else bn.momentum
    )  # None: the mean of all, as in torch
    bn.running_mean.lerp_(mean, share)
    bn.running_var.lerp_(var * (count / max(1, count - 1)), share)


class _ReluDropout(torch.autograd.Function):
    """Spatial dropout of relu(y), y [B,C,H,W] having been multiplied by 1/(1-p) before: what is then left to do is to
    zero channels, and the gradient is that of ReLU alone, as a zero passes none. The draws are those of `F.dropout2d`.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, y: Tensor, p: float) -> Tensor:
        y = torch.relu(y)
        if p > 0:
            y = y * y.new_empty(*y.shape[:2], 1, 1).bernoulli_(1 - p)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None


def use_plain_forms(model: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    """Has the layers of `model` of these kinds (none: of all) computed by torch's own modules; returns `model`."""
    for module in model.modules():
        if isinstance(module, kinds or (DepthwiseConv2d, DenseConv2d)):
            module.plain = True
    return model
