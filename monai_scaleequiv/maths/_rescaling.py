"""Ideal and antialiased rescaling of an image, one axis at a time, as matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

__all__ = ["cosine_resampling_matrix", "rescale"]


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
    numerator, denominator = (size, target_size) if step is None else as_ratio(step)
    if min(size, target_size) < 1 or numerator <= 0 or smoothing < 0:
        raise ValueError(
            "size and target_size must be at least 1, step above 0 and smoothing at least 0, "
            f"got size={size}, target_size={target_size}, step={step}, smoothing={smoothing}."
        )
    return cached_series_matrix(size, target_size, numerator, denominator, smoothing)


def as_ratio(value: float, denominator: int = 5_040_000) -> tuple[int, int]:
    """Numerator and denominator: sizes then follow by integer division, also where they are symbols.

    The denominator has all divisors up to 10, so that 2/3 stays exact and a voxel of 0.69999999 mm counts as 0.7 mm.
    """
    return int(round(value * denominator)), denominator  # noqa: RUF046 - TorchScript's round gives a float


def series_matrix(
    size: int, target_size: int, numerator: int, denominator: int, smoothing: float = 0.0
) -> torch.Tensor:
    """The same without check and cache, for graphs in which sizes are symbols; the step is a quotient."""
    orders = torch.arange(size)
    kept = (orders * numerator < size * denominator).to(torch.float64)
    damping = torch.exp(-0.5 * (orders.to(torch.float64) * (smoothing * math.pi * numerator / denominator) / size) ** 2)
    gain = kept * damping * (2 - (orders == 0).to(torch.float64)) / size
    positions = size * denominator + numerator * (2 * torch.arange(target_size) - (target_size - 1))
    analysis = _cosine(orders[:, None] * (2 * orders + 1)[None, :], 2 * size)  # (K, N)
    synthesis = _cosine(positions[:, None] * orders[None, :], 2 * size * denominator)  # (M, K)
    return torch.matmul(synthesis * gain, analysis)


def _cosine(numerator: torch.Tensor, denominator: int) -> torch.Tensor:
    # cos(pi numerator / denominator); whole turns are taken off as integers, for large angles are inexact.
    turn = torch.ones(1, dtype=torch.int64) * (2 * denominator)
    return torch.cos(torch.remainder(numerator, turn).to(torch.float64) * math.pi / denominator)


cached_series_matrix = lru_cache(maxsize=512)(series_matrix)


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
