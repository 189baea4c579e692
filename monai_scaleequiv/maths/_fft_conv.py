"""Depthwise convolution and its gradients by real FFT."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

# Real elements of one chunk of channels on a CPU: smaller ones leave threads without work, larger ones leave its cache.
# Another device wants few, large transforms, for launching its kernels takes longer than they do.
_CHUNK = {"cpu": 2**20}
_LEAST_CHUNKS = {"cpu": 4}  # so that little memory is needed for small images as well
_CHUNK_ELSEWHERE = 2**24  # 64 MiB in single precision


def kernel_reach(size: Sequence[int], kernel_size: Sequence[int]) -> list[int]:
    """Distance from the centre, per axis, of the farthest tap of an odd kernel that can meet a voxel of the image."""
    return [min(k // 2, n - 1) for n, k in zip(size, kernel_size, strict=True)]


def crop_to_reach(weight: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The inner taps of kernels (..., *kernel), those that can meet a voxel of an image of this size."""
    first = weight.dim() - len(size)
    for axis, reach in enumerate(kernel_reach(size, weight.shape[first:]), first):
        weight = weight.narrow(axis, weight.shape[axis] // 2 - reach, 2 * reach + 1)
    return weight


def fft_kernel_spectrum(weight: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Conjugate spectrum (C, *half) of kernels on the circle of :py:func:`fft_depthwise_conv` for this size."""
    kernel = crop_to_reach(weight, size).flatten(0, 1)
    # At once: inside a compiled graph, torch 2.13 loses the mark of a lazy conjugate.
    return torch.conj_physical(_kernel_transform(kernel, _periods(size, kernel.shape[1:])))


def fft_depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, spectrum: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Depthwise convolution with zero padding that keeps the size, by FFT.

    :math:`y_c(i) = b_c + \sum_t w_c(t)\, x_c(i + t - p)`, p the reach of the kernel, for images (B, C, *size) and odd
    kernels (C, 1, *kernel), whose :py:func:`fft_kernel_spectrum` may be given. It computes in the kernel's precision,
    single or double, whatever the image is stored in. With p zeros in front the circle needs n + p points, the least
    without aliasing, rounded up to a product of 2, 3 and 5.

    Example::

        >>> x, weight = torch.rand(1, 2, 9, 10), torch.rand(2, 1, 7, 7)
        >>> expected = torch.nn.functional.conv2d(x, weight, padding=3, groups=2)
        >>> torch.allclose(fft_depthwise_conv(x, weight), expected, atol=1e-5)
        True
    """
    size = x.shape[2:]
    edges = crop_to_reach(weight, size).shape[2:]
    periods = _periods(size, edges)
    y = x.new_empty(x.shape)
    for channels in _chunks(x, periods):
        of_kernel = fft_kernel_spectrum(weight[channels], size) if spectrum is None else spectrum[channels]
        product = _image_transform(x[:, channels].to(weight.dtype), edges, periods).mul_(of_kernel)
        part = _inverse(product, periods, [0] * len(size), size)
        y[:, channels] = part if bias is None else part.add_(bias[channels].reshape([-1] + [1] * len(size)))
    return y


def fft_depthwise_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_input: bool = True, of_weight: bool = True
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    r"""Gradients of :py:func:`fft_depthwise_conv` for the output's gradient ``grad``; None for one that is not wanted.

    :math:`\partial x_c(j) = \sum_t w_c(t)\, g_c(j - t + p)` and
    :math:`\partial w_c(t) = \sum_i g_c(i)\, x_c(i + t - p)`, on the same circle, as x and the kernel are stored.
    """
    size = x.shape[2:]
    kernel = crop_to_reach(weight, size).flatten(0, 1)
    edges = kernel.shape[1:]
    periods = _periods(size, edges)
    grad_x = x.new_empty(x.shape) if of_input else None
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if of_weight else None
    for channels in _chunks(x, periods):
        of_grad = _transform(grad[:, channels].to(weight.dtype), periods)
        if grad_weight is not None:
            product = (
                _image_transform(x[:, channels].to(weight.dtype), edges, periods)
                .mul_(torch.conj_physical(of_grad))
                .sum(0)
            )
            inner = crop_to_reach(grad_weight, size).squeeze(1)
            inner[channels] = _inverse(product, periods, [0] * len(size), edges)
        if grad_x is not None:
            product = of_grad.mul_(_kernel_transform(kernel[channels], periods))
            grad_x[:, channels] = _inverse(product, periods, [k // 2 for k in edges], size)
    return grad_x, grad_weight


def _periods(size: Sequence[int], edges: Sequence[int]) -> list[int]:
    return [next_fast_len(n + k // 2, real=True) for n, k in zip(size, edges, strict=True)]


def _chunks(x: torch.Tensor, periods: Sequence[int]) -> list[slice]:
    channels = x.shape[1] if x.numel() > 0 else 0  # an empty batch is none that MKL transforms
    most = _CHUNK.get(x.device.type, _CHUNK_ELSEWHERE) // max(1, x.shape[0] * prod(periods))
    step = max(1, min(most, -(-channels // _LEAST_CHUNKS.get(x.device.type, 1))))
    return [slice(start, start + step) for start in range(0, channels, step)]


def _transform(x: torch.Tensor, periods: Sequence[int]) -> torch.Tensor:
    if x.shape[0] * x.shape[1] == 1:  # MKL takes 6 ms for 36^3 in one go, 0.2 ms axis by axis; two cost 0.3 ms
        return _kernel_transform(x, periods)
    return torch.fft.rfftn(x, s=list(periods), dim=list(range(2, x.dim())))


def _image_transform(x: torch.Tensor, edges: Sequence[int], periods: Sequence[int]) -> torch.Tensor:
    pad: list[int] = []
    for n, k, period in zip(x.shape[2:], edges, periods, strict=True):
        pad = [k // 2, period - n - k // 2, *pad]
    return _transform(F.pad(x, pad), periods)


def _kernel_transform(kernel: torch.Tensor, periods: Sequence[int]) -> torch.Tensor:
    # The first axis last, so that no transform runs over slices that are all zeros. The others at once: one by one they
    # take up to three times as long.
    if len(periods) == 1:
        return torch.fft.rfft(kernel, n=periods[0], dim=-1)
    spectrum = torch.fft.rfftn(kernel, s=list(periods[1:]), dim=list(range(1 - len(periods), 0)))
    return torch.fft.fft(spectrum, n=periods[0], dim=-len(periods))


def _inverse(spectrum: torch.Tensor, periods: Sequence[int], start: list[int], length: Sequence[int]) -> torch.Tensor:
    # Axis by axis, so that no transform runs over rows that are thrown away.
    for axis in range(len(periods) - 1):
        dim = axis - len(periods)
        spectrum = torch.fft.ifft(spectrum, dim=dim).narrow(dim, start[axis], length[axis])
    return torch.fft.irfft(spectrum, n=periods[-1], dim=-1).narrow(-1, start[-1], length[-1])
