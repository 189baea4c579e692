"""Down- and up-sampling along one axis as a matrix product."""

import math
from functools import lru_cache

import numpy as np
import torch


def gaussian_downsampling_matrix(size: int, factor: int, sigma: list[float], like: torch.Tensor) -> torch.Tensor:
    r"""Matrices (S, ceil(size / factor), size) that blur an axis with S Gaussians and keep every ``factor``-th sample.

    Row ``i`` is centred on the middle of its ``factor`` input voxels, at :math:`f i + (f - 1)/2`, where
    ``interpolate(..., align_corners=False)`` expects it on the way back. Rows sum to 1; dtype and device are those of
    ``like``.
    """
    rows = (size + factor - 1) // factor
    centres = _positions(rows, like) * factor + (factor - 1) / 2.0
    # Numbers one by one, for a list would be copied to the device, which waits for it.
    widths = torch.stack([torch.full([1, 1], s, dtype=centres.dtype, device=like.device) for s in sigma])
    distance = (_positions(size, like)[None, :] - centres[:, None])[None] / widths  # (S, rows, size)
    # Softmax is the Gaussian divided by its sum, and stays finite when the last centre lies beyond the last voxel.
    weights = torch.softmax(-0.5 * distance**2, dim=-1)
    # Without its far end: among it are subnormal numbers, with which a CPU multiplies fifty times slower.
    return torch.where(weights < 1e-20, torch.zeros_like(weights), weights).to(like.dtype)


@lru_cache(maxsize=512)
def sampled_gaussian_width(sigma: float, offset: float = 0.0) -> float:
    """Parameter of the Gaussian whose samples, divided by their sum, have the variance ``sigma ** 2``.

    Below about 0.8 voxels a Gaussian loses variance when it is sampled on voxel centres, of which the nearest lies at
    ``offset``: 0, or 0.5, where the variance is at least 1/4.

    Example::

        >>> round(sampled_gaussian_width(0.4), 4), round(sampled_gaussian_width(1.0), 4)
        (0.4607, 1.0)
    """
    reach = math.ceil(8 * sigma) + 2
    squares = (np.arange(-reach, reach + 1) + offset) ** 2
    low, high = 0.05, sigma + 1.0
    for _ in range(60):  # bisection: the variance grows with the parameter
        middle = (low + high) / 2
        taps = np.exp(-0.5 * (squares - squares.min()) / middle**2)
        low, high = (middle, high) if (taps * squares).sum() / taps.sum() < sigma**2 else (low, middle)
    return (low + high) / 2


def linear_upsampling_matrix(size: int, factor: int, target_size: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix (target_size, size) that interpolates an axis linearly, from the grid of the down-sampling by ``factor``.

    The numbers of ``interpolate(..., align_corners=False)``, cut to size; that function has no deterministic gradient
    on CUDA devices, a matrix product has.
    """
    positions = ((_positions(target_size, like) - (factor - 1) / 2.0) / factor).clamp(min=0).clamp(max=size - 1)
    return torch.relu(1 - (positions[:, None] - _positions(size, like)[None, :]).abs()).to(like.dtype)


def _positions(size: int, like: torch.Tensor) -> torch.Tensor:
    # Half precision cannot count: in bfloat16 the voxels after 256 are 2 apart.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.arange(size, dtype=dtype, device=like.device)
