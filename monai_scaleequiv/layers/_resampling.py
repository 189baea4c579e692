"""Down- and up-sampling in space on features with a scale axis."""

import math
from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers._input_checks import check_arguments, check_features
from monai_scaleequiv.maths import (
    check_scales,
    gaussian_downsampling_matrix,
    linear_upsampling_matrix,
    sampled_gaussian_width,
    voxel_sizes,
)


class SpacedResample(nn.Module):
    """Base of down- and up-sampling: factors along the axes, and Gaussians that follow from the voxels' size."""

    def __init__(self, spatial_dims: int, factor: Sequence[int] | int) -> None:
        super().__init__()
        check_arguments(spatial_dims, factor=factor)
        self.full_factor = list(ensure_tuple_rep(factor, spatial_dims))  # at spacing 1

    def set_spacing(self, spacing: Sequence[float] | float) -> None:
        """Chooses factors and Gaussians anew, for voxels of another size on the finer side."""
        spacings = voxel_sizes(spacing, len(self.full_factor))
        self.factor = [f if f == 1 else max(1, round(f / r)) for f, r in zip(self.full_factor, spacings, strict=True)]
        axes = zip(self.full_factor, self.factor, spacings, strict=True)
        self.widths = [self._widths(f, g, r) for f, g, r in axes]  # of each axis, in voxels; 0 for no Gaussian

    def _widths(self, full_factor: int, factor: int, spacing: float) -> list[float]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def _resample_axis(x: torch.Tensor, matrix: torch.Tensor, axis: int, first: int = 2) -> torch.Tensor:
    # matrix (S or 1, m, n) acts on one axis, whose length goes from n to m; S is the axis before ``first``
    # A batch and a line at least, also of length 1: to four axes, torch.compile tries to give an image's layout, and
    # fails at symbolic sizes.
    matrix = matrix.unsqueeze(1)
    for _ in range(first - 1):
        matrix = matrix.unsqueeze(0)  # (1, S or 1, 1, m, n)
    if axis == x.dim() - 1:
        lines = x.shape[first:-1]
        x = torch.matmul(x.flatten(first, -2).unsqueeze(first), matrix.transpose(-2, -1))  # (B, S, 1, lines, m)
        return x.squeeze(first).unflatten(first, lines)
    leading, trailing = x.shape[first:axis], x.shape[axis + 1 :]
    x = x.flatten(first, axis - 1).flatten(first + 2)  # (B, S, leading, n, trailing)
    return torch.matmul(matrix, x).unflatten(-1, trailing).unflatten(first, leading)


class ScaleDownsample(SpacedResample):
    """Antialiased down-sampling: a Gaussian proportional to the scale, then every ``factor``-th sample.

    It commutes with a shift along the scale axis; a bare stride folds high frequencies back and costs a network most of
    its scale-equivariance. An image without scale axis goes in as (B, 1, C, ...).

    Args:
        spatial_dims: 2 or 3.
        scales: relative sizes, S of them.
        factor: at spacing 1, one for all axes or one per axis. Axes of factor 1 are left alone.
        sigma: standard deviation of the blur at scale 1, in voxels of the output grid at spacing 1.
        spacing: edge of an input voxel, one for all axes or one per axis. The blur stays the same in millimetres, and
            an axis is down-sampled by the whole number nearest to ``factor / spacing``.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or scales.

    Example::

        >>> ScaleDownsample(3, (1.0, 0.8), factor=2, spacing=(1, 1, 3))(torch.rand(1, 2, 4, 9, 8, 8)).shape
        torch.Size([1, 2, 4, 5, 4, 8])
    """

    def __init__(
        self, spatial_dims: int, scales: Sequence[float], factor: Sequence[int] | int = 2, sigma: float = 0.6,
        spacing: Sequence[float] | float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(spatial_dims, factor)
        check_scales(scales)
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma}.")
        self.scales, self.sigma = [float(s) for s in scales], sigma
        self.set_spacing(spacing)

    def _widths(self, full_factor: int, factor: int, spacing: float) -> list[float]:
        if full_factor == 1:
            return [0.0]
        widths = [self.sigma * s * full_factor / spacing for s in self.scales]
        # At spacing 1 the samples define the blur; elsewhere they imitate it.
        return widths if spacing == 1 else [sampled_gaussian_width(w, 0.5 * (1 - factor % 2)) for w in widths]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, len(self.factor), [1, len(self.scales)], 0)
        if x.shape[1] < len(self.scales):
            return self._from_image(x)
        for axis in range(len(self.factor)):
            if self.widths[axis][0] > 0:
                matrix = gaussian_downsampling_matrix(x.shape[3 + axis], self.factor[axis], self.widths[axis], x)
                x = _resample_axis(x, matrix, 3 + axis)
        return x

    def _from_image(self, x: torch.Tensor) -> torch.Tensor:
        # (B, 1, C, ...) -> (B, S, C, ...). The first axis takes all scales at once, without a copy of x for each.
        x = x.squeeze(1)  # (B, C, ...)
        is_first = True
        for axis in range(len(self.factor)):
            if self.widths[axis][0] > 0:
                size = x.shape[2 + axis] if is_first else x.shape[3 + axis]
                matrix = gaussian_downsampling_matrix(size, self.factor[axis], self.widths[axis], x)
                if is_first:
                    x = x.movedim(2 + axis, 2)  # (B, C, n, ...)
                    rest = x.shape[3:]
                    x = torch.matmul(matrix.flatten(0, 1), x.flatten(3))  # (B, C, S * m, ...)
                    x = x.unflatten(2, (len(self.scales), -1)).unflatten(4, rest).movedim(3, 3 + axis)
                else:
                    x = _resample_axis(x, matrix, 3 + axis, first=3)
                is_first = False
        if is_first:
            x = x.unsqueeze(2).expand([-1, -1, len(self.scales)] + [-1] * len(self.factor))
        return x.transpose(1, 2)


def _interpolation_variance(factor: int) -> float:
    # Of an impulse interpolated: the mean of d (f - d) over the distances d, whole or halves, to coarse voxels
    return (factor**2 - 1) / 6 if factor % 2 else factor**2 / 6 + 1 / 12


class ScaleUpsample(SpacedResample):
    """Linear up-sampling that undoes the grid of :py:class:`ScaleDownsample`, at every scale alike.

    Args:
        spatial_dims: 2 or 3.
        factor: at spacing 1, one for all axes or one per axis.
        spacing: edge of an output voxel, one for all axes or one per axis; factors follow as in the down-sampling.
            Where interpolation smooths less than at spacing 1, a Gaussian makes up for the variance.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes.

    Example::

        >>> ScaleUpsample(3, factor=2)(torch.rand(1, 2, 4, 5, 4, 4), size=[9, 8, 8]).shape
        torch.Size([1, 2, 4, 9, 8, 8])
    """

    def __init__(
        self, spatial_dims: int, factor: Sequence[int] | int = 2, spacing: Sequence[float] | float = 1.0
    ) -> None:
        super().__init__(spatial_dims, factor)
        self.set_spacing(spacing)

    def _widths(self, full_factor: int, factor: int, spacing: float) -> list[float]:
        missing = _interpolation_variance(full_factor) / spacing**2 - _interpolation_variance(factor)
        return [sampled_gaussian_width(missing**0.5)] if spacing != 1 and missing > 1e-3 else [0.0]

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Up-samples to ``size``, the spatial size before the down-sampling."""
        check_features(x, len(self.factor), [0], 0)
        if len(size) != len(self.factor):
            raise ValueError(f"size must have one number for each of the {len(self.factor)} axes, got {size}.")
        for axis in range(len(self.factor)):
            if self.factor[axis] > 1:
                matrix = linear_upsampling_matrix(x.shape[3 + axis], self.factor[axis], size[axis], x)
                x = _resample_axis(x, matrix.unsqueeze(0), 3 + axis)
            if self.widths[axis][0] > 0:
                matrix = gaussian_downsampling_matrix(size[axis], 1, self.widths[axis], x)
                x = _resample_axis(x, matrix, 3 + axis)
        return x
