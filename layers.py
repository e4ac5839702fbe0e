"""The building blocks of CIFARNet: one set of weights each, computed in the form that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with "same" padding and no bias: [B,C,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)].

    Weights [C,1,k,k], k odd, as those of `nn.Conv2d(C, C, k, stride, padding, dilation, groups=C)`, and the
    same results. On the CPU oneDNN's depthwise kernels are quick only without dilation, and its bf16 gradient
    for the input of a strided one takes fifty times the forward pass, so there two forms are computed by way
    of an undilated convolution of stride 1 (`bench.py` has the figures).
    """

    plain = False

    def __init__(self, channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        if x.device.type == "cpu" and not self.plain:
            if stride == 1 and dilation > 1 and x.shape[2] % dilation == 0 and x.shape[3] % dilation == 0:
                return _dilated_as_interleaved(x, self.weight, dilation)
            if stride == 2 and dilation == 1 and x.requires_grad:
                if torch.is_autocast_enabled("cpu"):  # autograd functions are not cast on their own
                    dtype = torch.get_autocast_dtype("cpu")
                    return _Stride2Depthwise.apply(x.to(dtype), self.weight.to(dtype))
                return _Stride2Depthwise.apply(x, self.weight)
        return super().forward(x)


def _dilated_as_interleaved(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """A dilation-d depthwise convolution of x [B,C,H,W] as an undilated one of its d*d interleaved sub-images.

    A tap of the dilated kernel only meets pixels whose row and column leave the same remainder modulo d, so
    each such sub-image can be convolved on its own; zero padding by d becomes zero padding by 1.
    """
    b, c, h, w = x.shape
    d = dilation
    parts = x.permute(0, 2, 3, 1).reshape(b, h // d, d, w // d, d, c)
    parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(b * d * d, h // d, w // d, c)
    parts = F.conv2d(parts.permute(0, 3, 1, 2), weight, padding=weight.shape[-1] // 2, groups=c)
    parts = parts.permute(0, 2, 3, 1).reshape(b, d, d, h // d, w // d, c)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(b, h, w, c).permute(0, 3, 1, 2)  # [B,C,H,W], channels_last


class _Stride2Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 2 whose input gradient is a convolution of stride 1.

    Output row i meets input row 2i+k-p through tap k, so the gradient of input row j gathers the output
    gradient, spread out to even rows with zeros between, through the flipped kernel.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2, padding=weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        pad, channels = weight.shape[-1] // 2, weight.shape[0]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)  # [B,C,H,W]
            spread[:, :, ::2, ::2] = grad
            grad_x = F.conv2d(spread, weight.flip(2, 3), padding=pad, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, 2, pad, groups=channels)
        return grad_x, grad_weight


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution without bias: [B,in,H,W] -> [B,out,H,W]; `plain` keeps `pointwise_norm` from fusing it."""

    plain = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)


class _Moments(torch.autograd.Function):
    """Mean [C] and second moment [C,C] of the pixels of x [B,C,H,W] as vectors of channels, in 32 bits at least."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B,HW,C]
        ctx.save_for_backward(x)
        # An image at a time: what the sums of one lose to 16 bits then averages out over the batch.
        wide = torch.promote_types(x.dtype, torch.float32)
        second = torch.bmm(pixels.transpose(1, 2), pixels).sum(0, dtype=wide)
        mean = torch.bmm(pixels.new_ones(len(x), 1, pixels.shape[1]), pixels).sum((0, 1), dtype=wide)
        count = x.numel() / x.shape[1]
        return mean / count, second / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_mean: Tensor, grad_second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        count = x.numel() / x.shape[1]
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(-1, c)
        symmetric = ((grad_second + grad_second.T) / count).to(x.dtype)
        grad = torch.addmm((grad_mean / count).to(x.dtype), pixels, symmetric)
        return grad.view(b, h, w, c).permute(0, 3, 1, 2)


def pointwise_norm(x: Tensor, conv: PointwiseConv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)), with the normalisation folded into the convolution: [B,in,H,W] -> [B,out,H,W].

    What is normalised is linear in x, so its mean and variance follow from the mean and covariance of x. On
    the CPU, and with fewer channels going in than out, products of small matrices so replace several passes
    over the largest tensors of the network, which are then not kept either. In evaluation the running
    statistics take the place of the batch's.
    """
    if conv.plain or (bn.training and x.device.type != "cpu"):
        return bn(conv(x))
    with torch.autocast(x.device.type, enabled=False):  # statistics in 32 bits
        weight = conv.weight.flatten(1)  # [out,in]
        if bn.training:
            mean_in, second = _Moments.apply(x)
            mean = weight @ mean_in
            var = ((weight @ (second - torch.outer(mean_in, mean_in))) * weight).sum(1).clamp(min=0)
            _update_running(bn, mean, var, x.numel() // x.shape[1])
        else:
            mean, var = bn.running_mean, bn.running_var
        scale = bn.weight * torch.rsqrt(var + bn.eps)
        weight, bias = (weight * scale[:, None])[:, :, None, None], bn.bias - scale * mean
    return F.conv2d(x, weight, bias)


@torch.no_grad()
def _update_running(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    bn.num_batches_tracked += 1
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(var * (count / max(1, count - 1)), bn.momentum)


class DepthwiseSeparableConv2d(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1, nothing in between (Howard et al. 2017, arXiv 1704.04861, without the
    inner normalisation): [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            DepthwiseConv2d(in_channels, 3, stride, dilation),
            PointwiseConv2d(in_channels, out_channels),
        )


def use_plain_forms(model: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    """Has the layers of `model` of these kinds (none: of all) computed by torch's own modules; returns `model`."""
    for module in model.modules():
        if isinstance(module, kinds or (DepthwiseConv2d, PointwiseConv2d)):
            module.plain = True
    return model
