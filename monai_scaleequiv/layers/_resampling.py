"""Down- and up-sampling in space on features with a scale axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.maths import gaussian_downsampling_matrix, linear_upsampling_matrix

__all__ = ["ScaleDownsample", "ScaleUpsample"]


def _factors(spatial_dims: int, factor: Sequence[int] | int) -> list[int]:
    factors = list(ensure_tuple_rep(factor, spatial_dims))
    if min(factors) < 1:
        raise ValueError(f"factor must be at least 1 along every axis, got {factor}.")
    return factors


def _resample_axis(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    # matrix (S or 1, m, n) acts on one axis of (B, S, C, ...), whose length goes from n to m
    # All five axes, also those of length 1: to intermediates of four, torch.compile tries to give a layout for images,
    # and fails to when their size is symbolic.
    matrix = matrix.unsqueeze(0).unsqueeze(2)  # (1, S or 1, 1, m, n)
    if axis == x.dim() - 1:
        lines = x.shape[2:-1]
        x = torch.matmul(x.flatten(2, -2).unsqueeze(2), matrix.transpose(3, 4))  # (B, S, 1, lines, m)
        return x.squeeze(2).unflatten(2, lines)
    leading, trailing = x.shape[2:axis], x.shape[axis + 1 :]
    x = x.flatten(2, axis - 1).flatten(4)  # (B, S, leading, n, trailing)
    x = torch.matmul(matrix, x)  # (B, S, leading, m, trailing)
    return x.unflatten(-1, trailing).unflatten(2, leading)


class ScaleDownsample(nn.Module):
    """Antialiased down-sampling: a Gaussian proportional to the scale, then every ``factor``-th sample.

    A bare stride folds high frequencies back and costs a network most of its scale-equivariance. Here each scale is
    blurred in proportion to its own size, so that the layer commutes with a shift along the scale axis as far as the
    Gaussian suppresses what the coarser grid cannot hold. An image without scale axis goes in as (B, 1, C, ...).

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        scales: relative sizes, S of them.
        factor: down-sampling factor, one for all axes or one per axis.
        sigma: standard deviation of the blur at scale 1, in voxels of the output grid.

    Raises:
        ValueError: when a factor is below 1 or their number is not ``spatial_dims``.

    Shape:
        input (B, S or 1, C, D, H, W), output (B, S, C, ceil(D / factor), ...).

    Example::

        >>> ScaleDownsample(3, scales=(1.0, 0.8), factor=2)(torch.rand(1, 2, 4, 9, 8, 8)).shape
        torch.Size([1, 2, 4, 5, 4, 4])
    """

    def __init__(
        self, spatial_dims: int, scales: Sequence[float], factor: Sequence[int] | int = 2, sigma: float = 0.6
    ) -> None:
        super().__init__()
        self.factor = _factors(spatial_dims, factor)
        self.register_buffer("sigma", torch.tensor([sigma * s for s in scales]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.expand([-1, self.sigma.shape[0]] + [-1] * (x.dim() - 2))
        for axis in range(len(self.factor)):
            if self.factor[axis] > 1:
                factor = self.factor[axis]
                matrix = gaussian_downsampling_matrix(x.shape[3 + axis], factor, self.sigma * factor)
                x = _resample_axis(x, matrix, 3 + axis)
        return x

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class ScaleUpsample(nn.Module):
    """Linear up-sampling that undoes the grid of :py:class:`ScaleDownsample`, at every scale alike.

    Zero-stuffed transposed convolutions leave a checkerboard; linear interpolation followed by a scale-equivariant
    convolution does not.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        factor: up-sampling factor, one for all axes or one per axis.

    Raises:
        ValueError: when a factor is below 1 or their number is not ``spatial_dims``.

    Shape:
        input (B, S, C, D, H, W), output (B, S, C, *size).

    Example::

        >>> ScaleUpsample(3, factor=2)(torch.rand(1, 2, 4, 5, 4, 4), size=[9, 8, 8]).shape
        torch.Size([1, 2, 4, 9, 8, 8])
    """

    def __init__(self, spatial_dims: int, factor: Sequence[int] | int = 2) -> None:
        super().__init__()
        self.factor = _factors(spatial_dims, factor)

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Up-samples to ``size``, the spatial size before the down-sampling."""
        for axis in range(len(self.factor)):
            if self.factor[axis] > 1:
                matrix = linear_upsampling_matrix(x.shape[3 + axis], self.factor[axis], size[axis], x)
                x = _resample_axis(x, matrix.unsqueeze(0), 3 + axis)
        return x

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
