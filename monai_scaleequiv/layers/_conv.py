"""Lifting and group convolution of the scale-translation group with steerable Hermite-Gaussian filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_scaleequiv.layers._input_checks import check_features, check_image
from monai_scaleequiv.layers._steerable import DEFAULT_SCALES, DEFAULT_SIGMA, SteerableConv

__all__ = ["ScaleGroupConv", "ScaleLiftingConv"]


class ScaleLiftingConv(SteerableConv):
    r"""Lifting convolution: an image in, features with a scale axis out.

    Every output channel is one filter, evaluated at all scales:
    :math:`y_s = \sum_i \sum_f w_{oif}\, \psi_f(\cdot / \sigma_s) * x_i`. When the image is magnified by the ratio of
    two neighbouring scales, the features are magnified and move by one along the scale axis.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels (per scale).
        scales: relative sizes at which each filter is evaluated, S of them.
        kernel_size: edge of the kernel in voxels at spacing 1, odd, one for all axes or one per axis; None lets it
            follow from the largest sigma, see :py:func:`hermite_gaussian_basis`.
        sigma: standard deviation of the filters' Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres.
        max_order: highest total order of the Hermite polynomials; 2 gives 10 functions in 3D and 6 in 2D.
        stride: stride of the convolution. A bare stride aliases; see :py:class:`ScaleDownsample`.
        padding: zero padding; None keeps the size at stride 1.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) to use in place of the one that ``scales``,
            ``kernel_size``, ``sigma``, ``max_order``, ``method`` and ``spacing`` describe.
        method: how the filters are made: ``"least_squares"``, ``"sampled"``, or ``"dilated"`` for scales that are whole
            multiples of the smallest, see :py:func:`hermite_gaussian_basis`.
        spacing: edge of a voxel, one for all axes or one per axis. The same weights give the same function of the
            body at every spacing.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Shape:
        input (B, C, D, H, W), output (B, S, C', D', H', W').

    Example::

        >>> ScaleLiftingConv(3, in_channels=1, out_channels=8)(torch.rand(2, 1, 9, 9, 9)).shape
        torch.Size([2, 4, 8, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        scales: Sequence[float] = DEFAULT_SCALES,
        kernel_size: Sequence[int] | int | None = 5,
        sigma: float = DEFAULT_SIGMA,
        max_order: int = 2,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | None = None,
        bias: bool = True,
        is_transposed: bool = False,
        basis: torch.Tensor | None = None,
        method: str = "least_squares",
        spacing: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, scales, kernel_size, sigma, max_order, stride, padding, bias,
            is_transposed, basis, method, spacing, scale_size=1,
        )  # fmt: skip
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.basis.shape[1]))
        self._reset_weight()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.in_channels)
        kernel = self._kernel().flatten(2, 3)  # (S, O, I, ...)
        if self.is_transposed:
            return self._convolve(x, kernel.flatten(0, 1).transpose(0, 1), 1)
        return self._convolve(x, kernel.flatten(0, 1), 1)


class ScaleGroupConv(SteerableConv):
    r"""Group convolution: features with a scale axis in and out.

    :math:`y_s = \sum_{j < J} \sum_i \sum_f w_{oijf}\, \psi_f(\cdot / \sigma_s) * x_{s + j, i}`, J = ``scale_size``.
    Past the end of the scale axis the last scale is repeated. With ``scale_size=1`` the features fold to
    (B, S * C, ...) for one grouped convolution without a copy.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels (per scale).
        out_channels: number of output channels (per scale).
        scales: relative sizes at which each filter is evaluated, S of them.
        kernel_size: edge of the kernel in voxels at spacing 1, odd, one for all axes or one per axis; None lets it
            follow from the largest sigma, see :py:func:`hermite_gaussian_basis`.
        sigma: standard deviation of the filters' Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres.
        max_order: highest total order of the Hermite polynomials; 2 gives 10 functions in 3D and 6 in 2D.
        scale_size: number of neighbouring scales that interact.
        stride: stride of the convolution. A bare stride aliases; see :py:class:`ScaleDownsample`.
        padding: zero padding; None keeps the size at stride 1.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) to use in place of the one that ``scales``,
            ``kernel_size``, ``sigma``, ``max_order``, ``method`` and ``spacing`` describe.
        method: how the filters are made: ``"least_squares"``, ``"sampled"``, or ``"dilated"`` for scales that are whole
            multiples of the smallest, see :py:func:`hermite_gaussian_basis`.
        spacing: edge of a voxel, one for all axes or one per axis. The same weights give the same function of the
            body at every spacing.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Shape:
        input (B, S, C, D, H, W), output (B, S, C', D', H', W').

    Example::

        >>> ScaleGroupConv(3, in_channels=8, out_channels=4)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 4, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3; repetition at the end of the scale axis: Zhu et al. 2019
    (arXiv 1909.11193).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        scales: Sequence[float] = DEFAULT_SCALES,
        kernel_size: Sequence[int] | int | None = 5,
        sigma: float = DEFAULT_SIGMA,
        max_order: int = 2,
        scale_size: int = 1,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | None = None,
        bias: bool = True,
        is_transposed: bool = False,
        basis: torch.Tensor | None = None,
        method: str = "least_squares",
        spacing: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, scales, kernel_size, sigma, max_order, stride, padding, bias,
            is_transposed, basis, method, spacing, scale_size,
        )  # fmt: skip
        if not 1 <= scale_size <= self.num_scales:
            raise ValueError(f"scale_size must be from 1 to the {self.num_scales} scales there are, got {scale_size}.")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, scale_size, self.basis.shape[1]))
        self._reset_weight()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, self.spatial_dims, [self.num_scales], self.in_channels)
        if self.scale_size > 1:
            x = self._gather_scales(x)
        x = x.flatten(1, 2)  # (B, S * J * I, ...)
        kernel = self._kernel().flatten(2, 3)  # (S, O, J * I, ...)
        if self.is_transposed:
            return self._convolve(x, kernel.transpose(1, 2).flatten(0, 1), self.num_scales)
        return self._convolve(x, kernel.flatten(0, 1), self.num_scales)

    def _gather_scales(self, x: torch.Tensor) -> torch.Tensor:
        # (B, S, C, ...) -> (B, S, J * C, ...): each scale beside the J - 1 that follow it
        shifted = [x]
        for j in range(1, self.scale_size):
            last = x[:, -1:].expand([-1, j] + [-1] * (x.dim() - 2))
            shifted.append(torch.cat([x[:, j:], last], dim=1))
        return torch.cat(shifted, dim=2)
