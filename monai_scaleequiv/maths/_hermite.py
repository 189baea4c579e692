"""Steerable Hermite-Gaussian filters, in one dimension and as a separable basis in two or three."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import ensure_tuple_rep

__all__ = ["hermite_gaussian_basis", "hermite_gaussian_filters"]

# The fit trusts low frequencies most, because the spectrum of medical images falls steeply with frequency.
_FREQUENCIES = 2049
_WEIGHT_FLOOR = 0.01


def _sampled_filters(offsets: np.ndarray, sigma: float, max_order: int) -> np.ndarray:
    gaussian = np.exp(-(offsets**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    orders = np.eye(max_order + 1)
    return np.stack([gaussian * np.polynomial.hermite_e.hermeval(offsets / sigma, c) for c in orders])


def _least_squares_filters(offsets: np.ndarray, sigma: float, max_order: int) -> np.ndarray:
    omega = np.linspace(-np.pi, np.pi, _FREQUENCIES)
    root_weight = 1 / np.sqrt(omega**2 + _WEIGHT_FLOOR)
    envelope = np.exp(-(sigma**2) * omega**2 / 2)
    waves = np.exp(-1j * np.outer(omega, offsets)) * root_weight[:, None]  # (frequency, tap)
    system = np.concatenate([waves.real, waves.imag])
    filters = []
    for order in range(max_order + 1):
        # He_n(x/s) g_s(x) is (-s d/dx)^n g_s(x), whose Fourier transform is the product below.
        target = (-1j * sigma * omega) ** order * envelope * root_weight
        filters.append(np.linalg.lstsq(system, np.concatenate([target.real, target.imag]), rcond=None)[0])
    return np.stack(filters)


_METHODS = {"least_squares": _least_squares_filters, "sampled": _sampled_filters}


def hermite_gaussian_filters(
    kernel_size: int, sigma: float, max_order: int, method: str = "least_squares"
) -> torch.Tensor:
    r"""One-dimensional filters for :math:`He_n(x/\sigma)\, g_\sigma(x)`, orders 0 to ``max_order``.

    :math:`g_\sigma` is the Gaussian of unit mass, so that a filter's response to a rescaled signal is the rescaled
    response (the :math:`\sigma^{-d}` measure of the scale-translation group).

    Args:
        kernel_size: number of taps, odd or even; the grid is always centred.
        sigma: standard deviation of the Gaussian in voxels.
        max_order: highest order of the Hermite-E polynomial.
        method: ``"least_squares"`` chooses the taps whose spectrum is closest to the continuous one on the whole
            band, weighted by 1/(w^2 + 0.01); ``"sampled"`` reads the function off at the taps, as the paper does.

    Returns:
        float64 tensor of shape (max_order + 1, kernel_size).

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> hermite_gaussian_filters(kernel_size=5, sigma=1.0, max_order=2).shape
        torch.Size([3, 5])
    """
    if kernel_size < 1 or sigma <= 0 or max_order < 0:
        raise ValueError(
            "kernel_size must be at least 1, sigma above 0 and max_order at least 0, "
            f"got kernel_size={kernel_size}, sigma={sigma}, max_order={max_order}."
        )
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}.")
    offsets = np.arange(kernel_size) - (kernel_size - 1) / 2
    return torch.from_numpy(_METHODS[method](offsets, float(sigma), max_order))


def _outer(filters: Sequence[torch.Tensor], orders: Sequence[int]) -> torch.Tensor:
    product = filters[0][orders[0]]
    for axis_filters, order in zip(filters[1:], orders[1:], strict=True):
        product = product[..., None] * axis_filters[order]
    return product


def hermite_gaussian_basis(
    kernel_size: Sequence[int] | int,
    scales: Sequence[float],
    spatial_dims: int = 3,
    sigma: float = 1.0,
    max_order: int = 2,
    method: str = "least_squares",
) -> torch.Tensor:
    """Basis of separable Hermite-Gaussian filters, each evaluated at every scale.

    All products of total order up to ``max_order`` are kept, so that the axes are interchangeable: 10 functions in 3D
    and 6 in 2D for order 2. Each function is divided by its root-mean-square norm over the scales, the same number at
    every scale, which keeps the scales comparable and does not depend on their order.

    Args:
        kernel_size: edge of the kernel in voxels, one for all axes or one per axis.
        scales: relative sizes; scale ``s`` is filtered with a Gaussian of ``sigma * s``.
        spatial_dims: number of spatial dimensions, 2 or 3.
        sigma: standard deviation of the Gaussian at scale 1, in voxels.
        max_order: highest total order of the Hermite polynomials.
        method: see :py:func:`hermite_gaussian_filters`.

    Returns:
        float64 tensor of shape (functions, scales, *kernel_size).

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> hermite_gaussian_basis(kernel_size=5, scales=(1.0, 0.9)).shape
        torch.Size([10, 2, 5, 5, 5])

    Source: Sosnovik et al. 2020 (arXiv 1910.11093), section 3; in 3D Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must hold at least one number and all above 0, got {tuple(scales)}.")
    edges = ensure_tuple_rep(kernel_size, spatial_dims)
    orders = [o for o in itertools.product(range(max_order + 1), repeat=spatial_dims) if sum(o) <= max_order]
    per_scale = []
    for scale in scales:
        filters = [hermite_gaussian_filters(k, sigma * scale, max_order, method) for k in edges]
        per_scale.append(torch.stack([_outer(filters, o) for o in orders]))
    basis = torch.stack(per_scale, dim=1)  # (F, S, *kernel)
    energy = basis.flatten(2).pow(2).sum(dim=2).mean(dim=1)
    return basis / energy.sqrt().reshape(-1, *[1] * (spatial_dims + 1))
