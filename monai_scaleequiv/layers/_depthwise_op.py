"""Large depthwise convolution as one operator of torch, which autograd and torch.compile take as a whole."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from monai_scaleequiv.layers._second_derivatives import gradients_with_graph
from monai_scaleequiv.maths import crop_to_reach, fft_depthwise_conv, fft_depthwise_gradients, kernel_reach

# Products of a tap and a voxel per point of the FFT's circle, from which the FFT is the faster one in 3D: on its own,
# and where one of its transforms is computed anyway. Measured in single precision on a CPU with two threads, and on an
# H200, where the FFT takes a third of the time at 269 (a kernel of 21 on 12 voxels), and five times it at 35 (on 6).
_PRODUCTS_PER_POINT = {"cpu": (500, 225), "cuda": (100, 100)}
_MANY_TAPS = 2000  # torch's own convolution unrolls the image into taps times voxels
_TAPS_IN_2D = 13 * 13  # up to which torch's own convolution is very fast in 2D


def is_fft_faster(
    size: Sequence[int], kernel_size: Sequence[int], is_shared: bool = False, device_type: str = "cpu"
) -> bool:
    """Whether an image of this size is better convolved by FFT; ``is_shared``: one transform is computed anyway."""
    axes = list(zip(size, kernel_reach(size, kernel_size), strict=True))
    if len(axes) == 2:
        return prod(2 * r + 1 for _, r in axes) > _TAPS_IN_2D
    products = prod(n * (2 * r + 1) - r * (r + 1) for n, r in axes)  # taps that lie on padding left out
    alone, shared = _PRODUCTS_PER_POINT.get(device_type, _PRODUCTS_PER_POINT["cpu"])
    return products > (shared if is_shared else alone) * prod(n + r for n, r in axes)


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


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, spectrum: torch.Tensor | None = None,
    is_training: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Convolution by the faster way, with the kernel's ``spectrum`` if there is one, in the image's own precision.

    Half precision is to store, not to transform: it computes in single precision, and rounds once.
    """
    x = x.contiguous()  # as the result is expected to be
    exact, size, device_type = _exact_dtype(x, weight), x.shape[2:], x.device.type
    inner = crop_to_reach(weight, size)
    # In training gradients go by FFT, and on small images with many taps the convolution then does as well: alone it
    # takes up to 1.4 times as long (one thread), and less than half of the memory.
    is_shared = is_training and inner[0].numel() > _MANY_TAPS
    bias = None if bias is None else bias.to(exact)
    if spectrum is not None or is_fft_faster(size, weight.shape[2:], is_shared, device_type):
        return fft_depthwise_conv(x, weight.to(exact), spectrum, bias)
    return depthwise_conv(x.to(exact), inner.to(exact).contiguous(), bias).to(x.dtype)


# An operator rather than an autograd.Function: the graph that torch.compile makes holds one node, so that the sizes of
# the transforms may depend on the image's size, and complex tensors do not reach its code generator.
@torch.library.custom_op("monai_scaleequiv::large_depthwise_conv", mutates_args=())
def large_depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, spectrum: torch.Tensor | None = None,
    is_training: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The same, with gradients. For them it keeps image and kernel as they are stored."""
    with torch.autocast(x.device.type, enabled=False):
        return convolve(x, weight, bias, spectrum, is_training)


@torch.library.custom_op("monai_scaleequiv::large_depthwise_gradients", mutates_args=())
def large_depthwise_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_input: bool, of_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of image and kernel; an empty tensor stands for one that is not wanted."""
    grad, x, size, exact = grad.contiguous(), x.contiguous(), x.shape[2:], _exact_dtype(x, weight)
    input_by_fft = of_input and is_fft_faster(size, weight.shape[2:], of_weight, x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        # Torch's own gradient of the weight is the bottleneck of a training from an edge of 5 on, and its own gradient
        # of the input is slower than a convolution with the mirrored kernel.
        kernel = weight.to(exact)
        grad_x, grad_weight = fft_depthwise_gradients(grad, x, kernel, input_by_fft, of_weight)
        if of_input and not input_by_fft:
            inner = crop_to_reach(kernel, size).contiguous()
            grad_x = depthwise_conv(grad.to(exact), inner, flip=True).to(x.dtype)
    return (
        x.new_empty([0]) if grad_x is None else grad_x,
        weight.new_empty([0]) if grad_weight is None else grad_weight.to(weight.dtype),
    )


def _exact_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


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
    ctx.bias_dtype = inputs[2].dtype if len(inputs) > 2 and inputs[2] is not None else None


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_input, of_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight, grad_bias = None, None, None
    if torch.is_grad_enabled():
        grad_x, grad_weight = gradients_with_graph(partial(convolve, is_training=True), ctx.saved_tensors, grad)
    elif of_input or of_weight:
        both = large_depthwise_gradients(grad, *ctx.saved_tensors, of_input, of_weight)
        grad_x, grad_weight = both[0] if of_input else None, both[1] if of_weight else None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        grad_bias = grad.sum([axis for axis in range(grad.dim()) if axis != 1], dtype=ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None


large_depthwise_conv.register_autograd(_backward, setup_context=_setup_context)
