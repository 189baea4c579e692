"""What the scale-equivariant convolutions share: basis, learned combination, the convolution."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._derived import DerivedBuffers
from monai_scaleequiv.layers._input_checks import check_channels, check_output_size, check_spatial_dims, is_count
from monai_scaleequiv.maths import ScaleFilters, hermite_gaussian_basis


class SteerableConv(DerivedBuffers):
    """Base of lifting and group convolution, with ``weight`` (O, I, J * F) for J interacting scales, F functions."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: ScaleFilters | Mapping[str, Any] | None,
        scale_size: int,
        stride: Sequence[int] | int,
        padding: Sequence[int] | int | None,
        bias: bool,
        is_transposed: bool,
        basis: torch.Tensor | None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels("in_channels", in_channels)
        check_channels("out_channels", out_channels)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.scale_size = scale_size
        self.stride = list(ensure_tuple_rep(stride, spatial_dims))
        if not all(is_count(s) for s in self.stride):
            raise ValueError(f"stride must be a whole number of at least 1 along every axis, got {stride}.")
        self._keeps_size = padding is None
        self.padding = list(ensure_tuple_rep(0 if padding is None else padding, spatial_dims))
        if min(self.padding) < 0:
            raise ValueError(f"padding must be at least 0 along every axis, got {padding}.")
        self.is_transposed = is_transposed
        self.filters = ScaleFilters.of(filters) if basis is None else None
        self.scales = None if self.filters is None else list(self.filters.scales)
        self._set_basis(basis if self.filters is None else hermite_gaussian_basis(self.filters, spatial_dims))
        self.num_scales, functions, _ = self.basis.shape
        if not 1 <= scale_size <= self.num_scales:
            raise ValueError(f"scale_size must be from 1 to the {self.num_scales} scales there are, got {scale_size}.")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, scale_size * functions))
        # The same law as in torch's convolutions; the basis functions have norm 1.
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def set_spacing(self, spacing: Sequence[float] | float) -> None:
        """Makes the filters anew for voxels of another size; the weights stay, and so do modules that share them."""
        if self.filters is None:
            raise ValueError("a convolution with a basis of its own has no filters for another spacing.")
        self.filters = replace(self.filters, spacing=spacing)
        self._set_basis(hermite_gaussian_basis(self.filters, self.spatial_dims))

    def _set_basis(self, basis: torch.Tensor) -> None:
        self.kernel_size = list(basis.shape[2:])
        if self._keeps_size:
            self.padding = [k // 2 for k in self.kernel_size]
        self.derive_buffer("basis", basis.flatten(2).transpose, 0, 1)  # (S, F, K)

    def assemble_kernel(self) -> torch.Tensor:
        """Learned combination of the basis, one dense kernel per scale, of shape (S, O, J, I, *kernel_size)."""
        weight = self.weight.reshape(1, -1, self.basis.shape[1])  # (1, O * I * J, F)
        kernel = torch.matmul(weight, self.basis)  # (S, O * I * J, K)
        shape = [self.num_scales, self.out_channels, self.in_channels, self.scale_size]
        return kernel.reshape(shape + self.kernel_size).transpose(2, 3)

    @torch.jit.unused
    def _assemble_exactly(self) -> torch.Tensor:
        # Autocast would round the basis itself; the convolution rounds the finished kernel once.
        if not torch.is_autocast_enabled(self.weight.device.type):
            return self.assemble_kernel()
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.assemble_kernel()

    def _convolve(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        # (B, groups * J * I, ...) -> (B, S, O, ...)
        if torch.jit.is_scripting():
            kernel = self.assemble_kernel()
        else:
            self._check_size(x)
            kernel = self._assemble_exactly()
        kernel = kernel.flatten(2, 3)  # (S, O, J * I, ...)
        if self.is_transposed and groups == 1:
            kernel = kernel.flatten(0, 1).transpose(0, 1)
        elif self.is_transposed:
            kernel = kernel.transpose(1, 2).flatten(0, 1)
        else:
            kernel = kernel.flatten(0, 1)
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
