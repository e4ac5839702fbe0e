"""Depthwise convolutions without the kernels that are slow in oneDNN (CPU) and cuDNN (CUDA)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.networks.blocks import DepthwiseConv2d

FASTER_ON = ("cpu", "cuda")  # the devices on which this was measured


class FastDepthwiseConv2d(DepthwiseConv2d):
    """Replaces dilated kernels and the kernels of input gradients.

    A dilated convolution becomes an undilated one of interleaved sub-images. The input gradient
    becomes a forward convolution: on the CPU, with a stride and in bf16, torch's takes fifty times
    as long as its forward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        divides = stride == 1 and x.shape[2] % dilation == 0 and x.shape[3] % dilation == 0
        if x.device.type not in FASTER_ON or stride > 2 or (dilation > 1 and not divides):
            return super().forward(x)
        x, weight = autocast(x), autocast(self.weight)
        if dilation == 1:
            return _Depthwise.apply(x, weight, stride)
        return _from_sub_images(_Depthwise.apply(_sub_images(x, dilation), weight, 1), dilation)


def autocast(x: Tensor) -> Tensor:
    """Casts x as autocast would. torch does not do so for autograd functions."""
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
