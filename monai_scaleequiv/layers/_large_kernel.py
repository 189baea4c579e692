"""Depthwise convolution with a large kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._depthwise_op import depthwise_conv, is_fft_faster, large_depthwise_conv
from monai_scaleequiv.layers._input_checks import check_channels, check_image, check_spatial_dims
from monai_scaleequiv.maths import crop_to_reach, fft_kernel_spectrum

__all__ = ["LargeKernelConv"]


class LargeKernelBase(nn.Module):
    """What depthwise convolutions with a large kernel share; a subclass owns the parameters and says what they mean."""

    def __init__(self, spatial_dims: int, channels: int, kernel_size: Sequence[int] | int, bias: bool) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels("channels", channels)
        self.kernel_size = list(ensure_tuple_rep(kernel_size, spatial_dims))
        if any(k < 1 or k % 2 != 1 for k in self.kernel_size):
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
        self.kernel_size = [int(k) for k in self.kernel_size]
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self._cache: tuple | None = None

    def initial_weight(self) -> torch.Tensor:
        """Values by the same law as in torch's convolutions, of shape (channels, 1, *kernel_size)."""
        weight = torch.empty([self.channels, 1, *self.kernel_size])
        bound = weight[0].numel() ** -0.5
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        return nn.init.uniform_(weight, -bound, bound)

    def effective_kernel(self) -> torch.Tensor:
        """The kernel that the image is convolved with, of shape (channels, 1, *kernel_size)."""
        raise NotImplementedError

    def kernel_for(self, size: Sequence[int]) -> torch.Tensor:
        """:py:meth:`effective_kernel`, or its taps that an image of this size can meet where they come cheaper.

        The operator crops as well, and its gradient needs no steps back to the whole kernel.
        """
        return self.effective_kernel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.channels)
        if torch.jit.is_scripting():
            return self._plain(x)
        return self._fast(x)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv(x, self.effective_kernel(), self.bias)

    @torch.jit.unused
    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        # Whoever loads an exported network need not have this package.
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self._plain(x)
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling():  # sizes may be symbols, and the operator crops as well
                return self._convolve(x, self.effective_kernel(), None)
            size = x.shape[2:]
            if self.training or torch.is_grad_enabled() or not is_fft_faster(size, self.kernel_size):
                return self._convolve(x, self.kernel_for(size), None)
            kernel, spectrum = self._cached_spectrum(x)
            return self._convolve(x, kernel, spectrum)

    @torch.jit.unused
    def _convolve(self, x: torch.Tensor, kernel: torch.Tensor, spectrum: torch.Tensor | None) -> torch.Tensor:
        # Half precision is kept for what is stored, never for the transforms.
        dtype = torch.promote_types(x.dtype, kernel.dtype)
        exact = torch.promote_types(dtype, torch.float32)
        if spectrum is None and not (torch.is_grad_enabled() or self.training or torch.compiler.is_compiling()):
            # Small images in evaluation, where the time that an operator takes to be called would show
            bias = None if self.bias is None else self.bias.to(exact)
            return depthwise_conv(x.to(exact), crop_to_reach(kernel, x.shape[2:]).to(exact), bias).to(dtype)
        y = large_depthwise_conv(x.to(exact), kernel.to(exact), spectrum, self.training)
        if self.bias is not None:
            y = y + self.bias.to(exact).reshape([-1] + [1] * self.spatial_dims)
        return y.to(dtype)

    # The cache: in evaluation, the kernel's spectrum for the last size.

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}

    def _apply(self, fn, recurse: bool = True):
        self._cache = None
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True):
        self._cache = None
        return super().train(mode)

    @torch.jit.unused
    def _cached_spectrum(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = tuple(x.shape[2:])
        exact = torch.promote_types(x.dtype, torch.float32)
        owned = [t for t in (*self.parameters(), *self.buffers()) if t is not self.bias]
        if not owned or any(t.is_inference() for t in owned):  # these have no version to watch
            return self._spectrum(size, exact)
        state = (size, exact, [(p._version, p.data_ptr(), p.dtype, p.device) for p in owned])
        cache = self._cache  # another thread may put another in its place meanwhile
        if cache is None or cache[0] != state or not _is_current(cache, owned):
            # Holding the tensors themselves keeps their memory from being handed to others.
            cache = (state, owned, [t.detach().clone() for t in owned], self._spectrum(size, exact))
            self._cache = cache
        return cache[3]

    @torch.jit.unused
    def _spectrum(self, size: Sequence[int], exact: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = self.effective_kernel().detach()
        kernel = kernel.to(torch.promote_types(exact, kernel.dtype))
        return kernel, fft_kernel_spectrum(kernel, size)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


def _is_current(cache: tuple, owned: list[torch.Tensor]) -> bool:
    # A change through `.data` leaves the version as it is. Comparing the values costs next to nothing on the CPU;
    # elsewhere it would wait for the device, and such a change counts from the next call of `eval()`.
    return all(
        t is c and (t.device.type != "cpu" or torch.equal(t, v))
        for t, c, v in zip(owned, cache[1], cache[2], strict=True)
    )


class LargeKernelConv(LargeKernelBase):
    r"""Depthwise convolution with zero padding that keeps the size, exact and quick for large kernels.

    :math:`y_c(i) = b_c + \sum_t w_c(t)\, x_c(i + t - p)`, p half the kernel. The image's size decides how it is
    computed: taps that can only meet padding are left out, then the convolution runs directly or by FFT, whichever is
    the faster. The gradient with respect to the weight is computed by FFT from an edge of 5 on, and in evaluation the
    kernel's spectrum is kept until the weight changes (on a GPU, one changed through ``.data`` counts from the next
    ``eval()``). Under autocast it computes in single precision. Scripted, traced
    and exported it is torch's own convolution; under ``torch.compile`` it is one operator. The second derivative is
    not available.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        kernel_size: edge of the kernel in voxels, odd, one for all axes or one per axis.
        bias: whether to add a bias.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Shape:
        input (B, C, D, H, W) or (B, C, H, W), output the same.

    Example::

        >>> LargeKernelConv(3, channels=4, kernel_size=21)(torch.rand(1, 4, 24, 24, 6)).shape
        torch.Size([1, 4, 24, 24, 6])

    Source: 21^3 depthwise kernels in segmentation: Lee et al. 2023 (RepUX-Net, arXiv 2303.05785).
    """

    def __init__(
        self, spatial_dims: int, channels: int, kernel_size: Sequence[int] | int = 21, bias: bool = False
    ) -> None:
        super().__init__(spatial_dims, channels, kernel_size, bias)
        self.weight = nn.Parameter(self.initial_weight())

    def effective_kernel(self) -> torch.Tensor:
        """The kernel that the image is convolved with: the weight.

        Returns:
            tensor of shape (channels, 1, *kernel_size).
        """
        return self.weight
