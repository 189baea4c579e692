"""Lifting and group convolution of the scale-translation group with steerable Hermite-Gaussian filters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._derived import DerivedBuffers
from monai_scaleequiv.layers._input_checks import check_arguments, check_features, check_image
from monai_scaleequiv.layers._steerable_op import steerable_conv, steerable_forward
from monai_scaleequiv.layers._torchs_own import takes_torchs_own
from monai_scaleequiv.maths import ScaleFilters, hermite_gaussian_basis, separable_filters


class SteerableConv(DerivedBuffers):
    """Base of lifting and group convolution, with ``weight`` (O, I, J * F) for J interacting scales, F functions.

    It runs as one operator, in the form that is fastest for its sizes and device; scripted, traced and exported as
    torch's own convolution with :py:meth:`assemble_kernel`, as it runs under ``torch.func`` and in forward mode.
    """

    basis: torch.Tensor  # (S, F, K)
    lines: torch.Tensor | None  # (axes * S, N + 1, taps), for `to(memory_format=...)` takes four axes for an image
    gains: torch.Tensor | None  # (F), which are there unless the basis was given

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int,
        filters: ScaleFilters | Mapping[str, Any] | None = None, scale_size: int = 1,
        stride: Sequence[int] | int = 1, padding: Sequence[int] | int | None = None, bias: bool = True,
        is_transposed: bool = False, basis: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_arguments(spatial_dims, in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.scale_size = scale_size
        self.stride = list(ensure_tuple_rep(stride, spatial_dims))
        self._keeps_size = padding is None
        self.padding = list(ensure_tuple_rep(0 if padding is None else padding, spatial_dims))
        if min(self.padding) < 0:
            raise ValueError(f"padding must be at least 0 along every axis, got {padding}.")
        self.is_transposed = is_transposed
        self.filters = ScaleFilters.of(filters) if basis is None else None
        self.scales = None if self.filters is None else list(self.filters.scales)
        self.register_buffer("lines", None, persistent=False)
        self.register_buffer("gains", None, persistent=False)
        self._set_basis(basis)
        self.num_scales, functions = self.basis.shape[0], self.basis.shape[1]
        if not 1 <= scale_size <= self.num_scales:
            raise ValueError(f"scale_size must be from 1 to the {self.num_scales} scales there are, got {scale_size}.")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, scale_size * functions))
        # The same law as in torch's convolutions; the basis functions have norm 1.
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def set_spacing(self, spacing: Sequence[float] | float) -> None:
        """Makes the filters anew, for voxels of another size; the weights stay."""
        if self.filters is None:
            raise ValueError("a convolution with a basis of its own has no filters for another spacing.")
        self.filters = replace(self.filters, spacing=spacing)
        self._set_basis(None)

    def _set_basis(self, basis: torch.Tensor | None) -> None:
        if basis is None:
            lines, gains = separable_filters(self.filters, self.spatial_dims)
            longest = max(line.shape[2] for line in lines)
            padded = [F.pad(line, [(longest - line.shape[2]) // 2] * 2) for line in lines]
            self.derive_buffer("lines", torch.cat, padded)  # (axes * S, N + 1, taps)
            self.derive_buffer("gains", torch.clone, gains)  # (F)
            basis = hermite_gaussian_basis(self.filters, self.spatial_dims)
        self.kernel_size = list(basis.shape[2:])
        if self._keeps_size:
            self.padding = [k // 2 for k in self.kernel_size]
        self.derive_buffer("basis", basis.flatten(2).transpose, 0, 1)

    def assemble_kernel(self) -> torch.Tensor:
        """Learned combination of the basis, one dense kernel per scale, of shape (S, O, J, I, *kernel_size)."""
        weight = self.weight.reshape(-1, self.basis.shape[1])  # (O * I * J, F)
        # Several times quicker than a matmul that broadcasts: (S, O * I * J, K)
        kernel = torch.bmm(weight.expand(self.num_scales, -1, -1), self.basis)
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
        kernel = self.assemble_kernel() if torch.jit.is_scripting() else self._assemble_exactly()
        kernel = kernel.flatten(2, 3)  # (S, O, J * I, ...)
        if self.is_transposed and groups > 1:
            kernel = kernel.transpose(1, 2)
        kernel = kernel.flatten(0, 1)
        if self.is_transposed and groups == 1:
            kernel = kernel.transpose(0, 1)
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

    def _gather_scales(self, x: torch.Tensor) -> torch.Tensor:
        # (B, S, C, ...) -> (B, S * J * C, ...): each scale beside the J - 1 that follow it
        shifted = [x]
        for j in range(1, self.scale_size):
            last = x[:, -1:].expand([-1, j] + [-1] * (x.dim() - 2))
            shifted.append(torch.cat([x[:, j:], last], dim=1))
        return torch.cat(shifted, dim=2).flatten(1, 2)

    @torch.jit.unused
    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        # (B, S or 1, I, ...) -> (B, S, O, ...)
        if takes_torchs_own():
            groups = x.shape[1]
            return self._convolve(x.flatten(1, 2) if groups == 1 else self._gather_scales(x), groups)
        return self._by_operator(x, self.weight, self.bias)

    def _by_operator(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        device = "cpu" if x.is_meta else x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        elif x.dtype != self.weight.dtype:
            raise ValueError(f"expected input of the weights' type {self.weight.dtype}, got {x.dtype}; convert either.")
        args = self.kernel_size, self.stride, self.padding, self.scale_size, self.is_transposed
        is_plain = type(x) is torch.Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        convolve = steerable_forward if is_plain else steerable_conv  # calling an operator takes 0.3 ms
        return convolve(x, weight, bias, self.basis, self.lines, self.gains, *args)

    def scaled_and_shifted(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """The convolution, then each output channel multiplied by ``scale`` (O) and ``shift`` (O) added, in one."""
        weight = (self.weight * scale[:, None, None]).to(self.weight.dtype)
        bias = shift if self.bias is None else self.bias * scale + shift
        return self._by_operator(self._checked(x), weight, bias)

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # the input as features (B, S or 1, I, ...)

    def extra_repr(self) -> str:
        sizes = f"scales={self.num_scales}, kernel_size={self.kernel_size}, scale_size={self.scale_size}"
        return f"{self.in_channels}, {self.out_channels}, {sizes}, stride={self.stride}, padding={self.padding}"


class ScaleLiftingConv(SteerableConv):
    r"""Lifting convolution: an image in, features with a scale axis out.

    Every output channel is one filter, evaluated at all scales:
    :math:`y_s = \sum_i \sum_f w_{oif}\, \psi_f(\cdot / \sigma_s) * x_i`. When the image is magnified by the ratio of
    two neighbouring scales, the features are magnified and move by one along the scale axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels (per scale).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults.
        stride, padding: of the convolution; padding None keeps the size at stride 1. A bare stride aliases; see
            :py:class:`ScaleDownsample`.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) in place of the one that ``filters`` describes.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Example::

        >>> ScaleLiftingConv(3, in_channels=1, out_channels=8)(torch.rand(2, 1, 9, 9, 9)).shape
        torch.Size([2, 4, 8, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int,
        filters: ScaleFilters | Mapping[str, Any] | None = None, stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | None = None, bias: bool = True, is_transposed: bool = False,
        basis: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        sizes = spatial_dims, in_channels, out_channels
        super().__init__(*sizes, filters, 1, stride, padding, bias, is_transposed, basis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._checked(x)
        if torch.jit.is_scripting():
            return self._convolve(x.squeeze(1), 1)
        return self._fast(x)

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.in_channels)
        return x.unsqueeze(1)


class ScaleGroupConv(SteerableConv):
    r"""Group convolution: features with a scale axis in and out.

    :math:`y_s = \sum_{j < J} \sum_i \sum_f w_{oijf}\, \psi_f(\cdot / \sigma_s) * x_{s + j, i}`, J = ``scale_size``.
    Past the end of the scale axis the last scale is repeated.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels (per scale).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults.
        scale_size: number of neighbouring scales that interact.
        stride, padding: of the convolution; padding None keeps the size at stride 1.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) in place of the one that ``filters`` describes.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Example::

        >>> ScaleGroupConv(3, in_channels=8, out_channels=4)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 4, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3; repetition: Zhu et al. 2019 (arXiv 1909.11193).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._checked(x)
        if torch.jit.is_scripting():
            return self._convolve(self._gather_scales(x), self.num_scales)
        return self._fast(x)

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, self.spatial_dims, [self.num_scales], self.in_channels)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights were once stored as (O, I, J, F).
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}weight") and value.dim() == 4:
                state_dict[key] = value.flatten(2)
        super()._load_from_state_dict(state_dict, prefix, *args)
