"""Depthwise convolution with a large kernel."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._depthwise_op import convolve, depthwise_conv, is_fft_faster, large_depthwise_conv
from monai_scaleequiv.layers._input_checks import check_arguments, check_image
from monai_scaleequiv.layers._torchs_own import takes_torchs_own
from monai_scaleequiv.maths import fft_kernel_spectrum


class LargeKernelConv(nn.Module):
    r"""Depthwise convolution with a large kernel and zero padding that keeps the size.

    :math:`y_c(i) = b_c + \sum_t w_c(t)\, x_c(i + t - p)`, p half the kernel, without the taps that can only meet
    padding, directly or by FFT, whichever is faster for the image's size; the weight's gradient by FFT. In evaluation
    the kernel's spectrum is kept until the kernel changes, on a CPU. It computes in single precision at least, and
    stores in the image's own, under autocast too. Scripted, traced, exported and under ``torch.func`` it is torch's own
    convolution; under ``torch.compile`` it is one operator. Subclasses give another kernel by
    :py:meth:`effective_kernel`.

    Args:
        spatial_dims: 2 or 3.
        channels: number of channels of the input (B, C, D, H, W) or (B, C, H, W), and of the output.
        kernel_size: edge of the kernel in voxels, odd, one for all axes or one per axis.
        bias: whether to add a bias.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Example::

        >>> LargeKernelConv(3, channels=4, kernel_size=21)(torch.rand(1, 4, 24, 24, 6)).shape
        torch.Size([1, 4, 24, 24, 6])

    Source: 21^3 depthwise kernels in segmentation: Lee et al. 2023 (RepUX-Net, arXiv 2303.05785).
    """

    def __init__(
        self, spatial_dims: int, channels: int, kernel_size: Sequence[int] | int = 21, bias: bool = False
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, channels=channels)
        edges = ensure_tuple_rep(kernel_size, spatial_dims)
        if any(k < 1 or k % 2 != 1 for k in edges):
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
        self.spatial_dims, self.channels, self.kernel_size = spatial_dims, channels, [int(k) for k in edges]
        # The same law as in torch's convolutions.
        bound = math.prod(self.kernel_size) ** -0.5
        self.bias = nn.Parameter(nn.init.uniform_(torch.empty(channels), -bound, bound)) if bias else None
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty([channels, 1, *self.kernel_size]), -bound, bound))
        self._cache: tuple[tuple[int, ...], torch.Tensor, torch.Tensor] | None = None

    def effective_kernel(self) -> torch.Tensor:
        """The kernel that the image is convolved with, of shape (channels, 1, *kernel_size): the weight."""
        return self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.channels)
        if torch.jit.is_scripting():
            return depthwise_conv(x, self.effective_kernel(), self.bias)
        return self._fast(x)

    @torch.jit.unused
    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        if takes_torchs_own():
            return depthwise_conv(x, self.effective_kernel(), self.bias)
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            kernel, spectrum = self.effective_kernel(), None
            is_plain = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            if is_plain and not self.training:
                spectrum = self._cached_spectrum(kernel.detach(), x)
            # Without gradients the operator itself would only take time; subclasses of tensors go through it as one.
            run = convolve if is_plain and type(x) is torch.Tensor else large_depthwise_conv
            return run(x, kernel, self.bias, spectrum, self.training)

    @torch.jit.unused
    def _cached_spectrum(self, kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        # Of the last size, found by the kernel's values (comparing them takes a hundredth of the transform), so that it
        # cannot go stale. On other devices than the CPU a transform takes no longer than waiting for the comparison;
        # fake tensors have no values to compare.
        size = tuple(x.shape[2:])
        is_kept = type(kernel) is torch.Tensor and kernel.device.type == x.device.type == "cpu"
        if not is_kept or not is_fft_faster(size, self.kernel_size):
            return None
        kernel = kernel.to(torch.promote_types(torch.promote_types(x.dtype, kernel.dtype), torch.float32))
        cache = self._cache  # another thread may put another in its place meanwhile
        if cache is None or cache[0] != size or not _are_equal(cache[1], kernel):
            cache = (size, kernel.clone(), fft_kernel_spectrum(kernel, size))
            self._cache = cache
        return cache[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def train(self, mode: bool = True) -> Self:
        self._cache = None
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
