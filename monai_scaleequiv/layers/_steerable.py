"""What the scale-equivariant convolutions share: basis, learned combination, cache of kernels, the convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._input_checks import check_channels, check_output_size, check_spatial_dims, is_count
from monai_scaleequiv.maths import hermite_gaussian_basis

__all__: list[str] = []

DEFAULT_SCALES = (1.0, 0.9, 0.81, 0.729)
DEFAULT_SIGMA = 0.95  # what measures best for the default kernel of 5; 1.15 for 7, 1.4 for 9


class SteerableConv(nn.Module):
    """Base of lifting and group convolution; a subclass sets ``weight`` and calls ``_convolve``."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        scales: Sequence[float],
        kernel_size: Sequence[int] | int | None,
        sigma: float,
        max_order: int,
        stride: Sequence[int] | int,
        padding: Sequence[int] | int | None,
        bias: bool,
        is_transposed: bool,
        basis: torch.Tensor | None,
        method: str,
        spacing: Sequence[float] | float,
        scale_size: int,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels("in_channels", in_channels)
        check_channels("out_channels", out_channels)
        # A basis from elsewhere does not tell its scales.
        self.scales = [float(s) for s in scales] if basis is None else None
        if basis is None:
            if any(k is not None and (k < 3 or k % 2 == 0) for k in ensure_tuple(kernel_size)):
                raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}.")
            basis = hermite_gaussian_basis(kernel_size, scales, spatial_dims, sigma, max_order, method, spacing)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.scale_size = scale_size
        self.num_scales = basis.shape[1]
        self.kernel_size = list(basis.shape[2:])
        self.stride = list(ensure_tuple_rep(stride, spatial_dims))
        self.padding = (
            [k // 2 for k in self.kernel_size] if padding is None else list(ensure_tuple_rep(padding, spatial_dims))
        )
        if not all(is_count(s) for s in self.stride):
            raise ValueError(f"stride must be a whole number of at least 1 along every axis, got {stride}.")
        if min(self.padding) < 0:
            raise ValueError(f"padding must be at least 0 along every axis, got {padding}.")
        self.is_transposed = is_transposed
        # The exact values survive a change of the module's dtype to single precision and back.
        self._exact_basis = basis.detach().double().flatten(2).transpose(0, 1).contiguous().cpu().numpy()  # (S, F, K)
        self.register_buffer("basis", torch.as_tensor(self._exact_basis, dtype=torch.get_default_dtype()), False)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self._cache: tuple | None = None

    def _reset_weight(self) -> None:
        # The same law as in torch's convolutions; the basis functions have norm 1.
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self._cache = None
        if self.basis.dtype == torch.float64:
            self.basis = torch.as_tensor(self._exact_basis, device=self.basis.device)
        return self

    def train(self, mode: bool = True):
        self._cache = None
        return super().train(mode)

    def assemble_kernel(self) -> torch.Tensor:
        """Learned combination of the basis, one dense kernel per scale.

        Returns:
            tensor of shape (S, O, J, I, *kernel_size), J the number of interacting scales.
        """
        weight = self.weight.reshape(1, -1, self.basis.shape[1])  # (1, O * I * J, F)
        kernel = torch.matmul(weight, self.basis)  # (S, O * I * J, K)
        shape = [self.num_scales, self.out_channels, self.in_channels, self.scale_size]
        return kernel.reshape(shape + self.kernel_size).transpose(2, 3)

    def _kernel(self) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.assemble_kernel()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._assemble_exactly()
        return self._cached_kernel()

    @torch.jit.unused
    def _assemble_exactly(self) -> torch.Tensor:
        # Autocast would round the basis itself; the convolution rounds the finished kernel once.
        device_type = self.weight.device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self.assemble_kernel()
        return self.assemble_kernel()

    @torch.jit.unused
    def _cached_kernel(self) -> torch.Tensor:
        if self.weight.is_inference():  # has no version to watch
            return self._assemble_exactly()
        state = (self.weight._version, self.weight.data_ptr(), self.weight.dtype, self.basis.device)
        cache = self._cache  # another thread may put another in its place meanwhile
        if cache is None or cache[1] != state or not _is_current(cache, self.weight):
            # Holding the weight itself keeps its memory from being handed to another tensor with the same version.
            cache = (self.weight, state, self.weight.detach().clone(), self._assemble_exactly())
            self._cache = cache
        return cache[3]

    def _convolve(self, x: torch.Tensor, kernel: torch.Tensor, groups: int) -> torch.Tensor:
        # (B, groups * I, ...) -> (B, S, O, ...)
        if not torch.jit.is_scripting():
            self._check_size(x)
        bias = self.bias if self.bias is None else self.bias.repeat(self.num_scales)
        # torch.convolution would take all four cases at once, but autocast does not know it on the CPU.
        if self.spatial_dims == 3:
            if self.is_transposed:
                y = F.conv_transpose3d(x, kernel, bias, self.stride, self.padding, groups=groups)
            else:
                y = F.conv3d(x, kernel, bias, self.stride, self.padding, groups=groups)
        elif self.is_transposed:
            y = F.conv_transpose2d(x, kernel, bias, self.stride, self.padding, groups=groups)
        else:
            y = F.conv2d(x, kernel, bias, self.stride, self.padding, groups=groups)
        return y.unflatten(1, (self.num_scales, self.out_channels))

    @torch.jit.unused
    def _check_size(self, x: torch.Tensor) -> None:
        # A symbolic size would turn into a condition on what is compiled.
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        size = x.shape[2:]
        axes = zip(size, self.kernel_size, self.stride, self.padding, strict=True)
        if self.is_transposed:
            output = [(n - 1) * s - 2 * p + k for n, k, s, p in axes]
        else:
            output = [(n + 2 * p - k) // s + 1 for n, k, s, p in axes]
        check_output_size(size, output, self.kernel_size)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, scales={self.num_scales}, kernel_size={self.kernel_size}, "
            f"functions={self.basis.shape[1]}, scale_size={self.scale_size}, stride={self.stride}, "
            f"padding={self.padding}, is_transposed={self.is_transposed}"
        )


def _is_current(cache: tuple, weight: torch.Tensor) -> bool:
    # A change through `weight.data` leaves the version as it is. Comparing the values costs next to nothing on the CPU;
    # elsewhere it would wait for the device, and such a change counts from the next call of `eval()`.
    return cache[0] is weight and (weight.device.type != "cpu" or torch.equal(cache[2], weight))
