"""Ideal and antialiased rescaling of an image, one axis at a time, as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

__all__ = ["cosine_resampling_matrix", "rescale"]


@lru_cache(maxsize=256)
def cosine_resampling_matrix(
    size: int, target_size: int, step: float | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    r"""Matrix that resamples an axis through its cosine series, the Fourier series of the mirrored signal.

    The series is read off on a new grid that has the same centre, without the frequencies that the new grid cannot
    hold. Beyond the borders the signal is mirrored. Magnifying is exact, shrinking is the ideal low-pass filter, and
    shrinking twice equals shrinking once by the product:

    .. math::
        y_j = \sum_{k < K} h(k/K)\, c_k \cos(\pi k\, p_j / N), \qquad
        c_k = \frac{2 - \delta_{k0}}{N} \sum_i x_i \cos(\pi k (i + 1/2)/N)

    with :math:`p_j = N/2 + \mathrm{step}\,(j - (M - 1)/2)` and :math:`K = \min(N, N/\mathrm{step})`.

    Args:
        size: length N of the axis, in voxels.
        target_size: length M of the new axis, in voxels.
        step: distance of two new samples in old voxels; None makes both grids cover the same extent, ``N / M``.
        smoothing: standard deviation, in new voxels, of a Gaussian h that replaces the sharp end of the band.

    Returns:
        float64 tensor of shape (target_size, size), cached: do not change it in place.

    Raises:
        ValueError: when a size is below 1, ``step`` not above 0 or ``smoothing`` below 0.

    Example::

        >>> cosine_resampling_matrix(4, 6) @ torch.ones(4, dtype=torch.float64)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    step = size / target_size if step is None else float(step)
    if min(size, target_size) < 1 or step <= 0 or smoothing < 0:
        raise ValueError(
            "size and target_size must be at least 1, step above 0 and smoothing at least 0, "
            f"got size={size}, target_size={target_size}, step={step}, smoothing={smoothing}."
        )
    # A frequency at the very end of the new band counts or not; rounding in N / step must not decide it.
    band = min(size, size / step)
    orders = np.arange(int(np.ceil(band - 1e-9)))
    gain = np.where(orders == 0, 1.0, 2.0) / size * np.exp(-0.5 * (smoothing * step * np.pi * orders / size) ** 2)
    positions = size / 2 + step * (np.arange(target_size) - (target_size - 1) / 2)
    analysis = np.cos(np.pi / size * np.outer(orders, np.arange(size) + 0.5))  # (K, N)
    synthesis = np.cos(np.pi / size * np.outer(positions, orders))  # (M, K)
    return torch.from_numpy((synthesis * gain) @ analysis)


def rescale(x: torch.Tensor, size: Sequence[int], smoothing: float = 0.0) -> torch.Tensor:
    """Rescales images to another size over the same extent, free of aliasing.

    Args:
        x: images of shape (..., D, H, W), or (..., H, W) when ``size`` has two numbers.
        size: new number of voxels of each spatial axis.
        smoothing: standard deviation in new voxels of a Gaussian instead of the sharp end of the band, which rings at
            edges; 0 for the ideal rescaling, which can be undone as long as the image grows.

    Returns:
        tensor of shape (..., *size), with the dtype of ``x``.

    Raises:
        ValueError: when ``x`` has fewer axes than ``size`` or a number is out of range.

    Example::

        >>> rescale(torch.rand(2, 1, 9, 8, 8), size=(10, 10, 9)).shape
        torch.Size([2, 1, 10, 10, 9])
    """
    if x.dim() < len(size):
        raise ValueError(f"x must have at least {len(size)} axes, as many as size has numbers, got {list(x.shape)}.")
    for axis, target in enumerate(size, start=x.dim() - len(size)):
        matrix = cosine_resampling_matrix(x.shape[axis], int(target), smoothing=smoothing)
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T.to(x), -1, axis)
    return x
