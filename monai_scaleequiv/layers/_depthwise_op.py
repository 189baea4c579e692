"""Large depthwise convolution as one operator of torch, which autograd and torch.compile take as a whole."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from monai_scaleequiv.maths import crop_to_reach, fft_depthwise_conv, fft_depthwise_gradients, kernel_reach

# Products of a tap and a voxel per point of the FFT's circle, from which the FFT is the faster one in 3D (measured on a
# CPU in single precision with two threads): on its own, and where one of its transforms is computed anyway.
_PRODUCTS_PER_POINT = 500
_PRODUCTS_PER_POINT_IF_SHARED = 225
_MANY_TAPS = 2000  # torch's own convolution unrolls the image into taps times voxels
_TAPS_IN_2D = 13 * 13  # up to which torch's own convolution is very fast in 2D


def is_fft_faster(size: Sequence[int], kernel_size: Sequence[int], is_shared: bool = False) -> bool:
    """Whether an image of this size is better convolved by FFT; ``is_shared``: one transform is computed anyway."""
    axes = list(zip(size, kernel_reach(size, kernel_size), strict=True))
    if len(axes) == 2:
        return prod(2 * r + 1 for _, r in axes) > _TAPS_IN_2D
    products = prod(n * (2 * r + 1) - r * (r + 1) for n, r in axes)  # taps that lie on padding left out
    least = _PRODUCTS_PER_POINT_IF_SHARED if is_shared else _PRODUCTS_PER_POINT
    return products > least * prod(n + r for n, r in axes)


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, flip: bool = False
) -> torch.Tensor:
    """Torch's own convolution with zero padding that keeps the size; ``flip`` mirrors the kernel."""
    size, channels = weight.shape[2:], weight.shape[0]
    padding = [k // 2 for k in size]
    if flip:
        weight = weight.flip([2 + axis for axis in range(len(size))])
    if len(size) == 3:
        return F.conv3d(x, weight, bias, padding=padding, groups=channels)
    return F.conv2d(x, weight, bias, padding=padding, groups=channels)


# An operator rather than an autograd.Function: the graph that torch.compile makes holds one node, so that the sizes of
# the transforms may depend on the image's size, and complex tensors do not reach its code generator.
@torch.library.custom_op("monai_scaleequiv::large_depthwise_conv", mutates_args=())
def large_depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, spectrum: torch.Tensor | None = None, is_training: bool = False
) -> torch.Tensor:
    """Convolution by the faster way, with the kernel's ``spectrum`` if there is one."""
    x = x.contiguous()  # as the result is expected to be
    inner = crop_to_reach(weight, x.shape[2:])
    # In training gradients go by FFT, and on small images with many taps the convolution then does as well: alone it
    # takes up to 1.4 times as long (one thread), and less than half of the memory.
    is_shared = is_training and inner[0].numel() > _MANY_TAPS
    with torch.autocast(x.device.type, enabled=False):
        if spectrum is not None or is_fft_faster(x.shape[2:], weight.shape[2:], is_shared):
            return fft_depthwise_conv(x, weight, spectrum)
        return depthwise_conv(x, inner)


@torch.library.custom_op("monai_scaleequiv::large_depthwise_gradients", mutates_args=())
def large_depthwise_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_input: bool, of_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both gradients; an empty tensor stands for one that is not wanted."""
    grad, x, size = grad.contiguous(), x.contiguous(), x.shape[2:]
    input_by_fft = of_input and is_fft_faster(size, weight.shape[2:], is_shared=of_weight)
    with torch.autocast(x.device.type, enabled=False):
        # Torch's own gradient of the weight is the bottleneck of a training from an edge of 5 on, and its own gradient
        # of the input is slower than a convolution with the mirrored kernel.
        grad_x, grad_weight = fft_depthwise_gradients(grad, x, weight, input_by_fft, of_weight)
        if of_input and not input_by_fft:
            grad_x = depthwise_conv(grad, crop_to_reach(weight, size), flip=True)
    return grad.new_empty(0) if grad_x is None else grad_x, grad.new_empty(0) if grad_weight is None else grad_weight


@large_depthwise_conv.register_fake
def _(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


@large_depthwise_gradients.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_input: bool, of_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape if of_input else 0), weight.new_empty(weight.shape if of_weight else 0)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_input, of_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = large_depthwise_gradients(grad, *ctx.saved_tensors, of_input, of_weight)
    return grad_x if of_input else None, grad_weight if of_weight else None, None, None


large_depthwise_conv.register_autograd(_backward, setup_context=_setup_context)
