"""Separable basis of Hermite-Gaussian filters over scales, on voxels of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Real

import torch
from monai.utils import ensure_tuple_rep

from monai_scaleequiv.maths._hermite import hermite_gaussian_filters

__all__ = ["hermite_gaussian_basis"]

_METHODS = ("dilated", "least_squares", "sampled")
_HALF_WIDTH = 2.5  # of the kernel where it follows from sigma, in sigmas
# Where voxels are wide for the Gaussian, its spectrum does not end within the band: the filter rings instead of fading.
_COARSE = 1.5
_COARSE_TAPS = 9


def hermite_gaussian_basis(
    kernel_size: Sequence[int] | int | None,
    scales: Sequence[float],
    spatial_dims: int = 3,
    sigma: float = 1.0,
    max_order: int = 2,
    method: str = "least_squares",
    spacing: Sequence[float] | float = 1.0,
) -> torch.Tensor:
    r"""Basis of separable Hermite-Gaussian filters, each evaluated at every scale.

    All products of total order up to ``max_order`` are kept, so that the axes are interchangeable: 10 functions in 3D
    and 6 in 2D for order 2. Each function is divided by its root-mean-square norm over the scales, the same number at
    every scale, which keeps the scales comparable and does not depend on their order. With another ``spacing`` the
    norm remains the one at spacing 1, so that a combination of the basis is the same function of the body, sampled on
    another grid.

    Every scale is fitted on the full extent of the kernel: with an extent of 2.5 of its own sigma for each scale, the
    error was 3 to 23 times larger.

    Args:
        kernel_size: edge of the kernel in voxels at spacing 1, one for all axes or one per axis. At a finer spacing it
            is the smallest odd number of voxels that covers as many millimetres; at a coarser one it stays, and from
            1.5 on it is at least 9 (at 3 mm and sigma 1.25 the error of a layer is 0.0016 with 9 taps, 0.018 with 3).
            None lets it follow from the Gaussian, with at least 2.5 of the largest sigma to either side: with 2 the
            error of three convolutions is 3 to 14 times larger, with 3 at most 3 times smaller, at 1.8 times the cost.
            For ``"dilated"`` it is odd, and the extent at the smallest scale.
        scales: relative sizes; scale ``s`` is filtered with a Gaussian of ``sigma * s``.
        spatial_dims: number of spatial dimensions, 2 or 3.
        sigma: standard deviation of the Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres.
        max_order: highest total order of the Hermite polynomials.
        method: ``"least_squares"`` or ``"sampled"``, see :py:func:`hermite_gaussian_filters`; ``"dilated"`` fits the
            smallest scale and spreads its taps for the others, which have to be whole multiples of it. Under decimation
            by such a multiple (every second voxel, without smoothing) this is exact, also through pointwise
            nonlinearities; under antialiased rescaling it is not.
        spacing: edge of a voxel, one for all axes or one per axis; 1 measures in voxels.

    Returns:
        float64 tensor of shape (functions, scales, \*extent), where the extent is ``kernel_size`` unless ``method`` or
        ``spacing`` changes it.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> hermite_gaussian_basis(kernel_size=5, scales=(1.0, 0.9)).shape
        torch.Size([10, 2, 5, 5, 5])
        >>> hermite_gaussian_basis(kernel_size=7, scales=(1.0, 0.9), sigma=1.25, spacing=(1.0, 1.0, 3.0)).shape
        torch.Size([10, 2, 7, 7, 9])
        >>> hermite_gaussian_basis(kernel_size=5, scales=(1.0, 2.0), method="dilated").shape
        torch.Size([10, 2, 9, 9, 9])

    Source: Sosnovik et al. 2020 (arXiv 1910.11093), section 3; in 3D Wimmer et al. 2023 (arXiv 2304.05864), section 3;
    dilation: Sosnovik et al. 2021 (arXiv 2106.02733).
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    check_scales(scales)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be above 0, got {sigma}.")
    if max_order < 0:
        raise ValueError(f"max_order must be at least 0, got {max_order}.")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}.")
    spacings = voxel_sizes(spacing, spatial_dims)
    edges = ensure_tuple_rep(kernel_size, spatial_dims)
    if method == "dilated" and any(e is not None and e % 2 == 0 for e in edges):
        raise ValueError(f"kernel_size must be odd for method 'dilated', got {kernel_size}.")
    basis = _products(edges, scales, spacings, sigma, max_order, method)
    reference = basis
    if any(r != 1 for r in spacings):
        reference = _products(edges, scales, [1.0] * spatial_dims, sigma, max_order, method)
    energy = reference.flatten(2).pow(2).sum(dim=2).mean(dim=1)
    return basis / energy.sqrt().reshape(-1, *[1] * (spatial_dims + 1))


def check_scales(scales: Sequence[float]) -> None:
    """Raises a ValueError unless these are sizes.

    Example::

        >>> check_scales((1.0, 0.9))
    """
    if len(scales) == 0 or not all(isinstance(s, Real) and 0 < s < math.inf for s in scales):
        raise ValueError(f"scales must hold at least one number and all above 0, got {tuple(scales)}.")


def voxel_sizes(spacing: Sequence[float] | float, spatial_dims: int) -> list[float]:
    """One positive number per axis.

    Example::

        >>> voxel_sizes(torch.tensor([1.0, 1.0, 3.0]), 3)
        [1.0, 1.0, 3.0]
    """
    try:
        spacings = [float(r) for r in ensure_tuple_rep(spacing, spatial_dims)]
    except (RuntimeError, TypeError, ValueError):
        spacings = []
    if len(spacings) != spatial_dims or not all(0 < r < math.inf for r in spacings):
        raise ValueError(f"spacing must be one number above 0 or one per axis, {spatial_dims} of them, got {spacing}.")
    return spacings


def _products(
    edges: Sequence[int | None],
    scales: Sequence[float],
    spacings: Sequence[float],
    sigma: float,
    max_order: int,
    method: str,
) -> torch.Tensor:
    orders = [o for o in itertools.product(range(max_order + 1), repeat=len(edges)) if sum(o) <= max_order]
    axes = [
        _axis_filters(edge, scales, spacing, sigma, max_order, method)
        for edge, spacing in zip(edges, spacings, strict=True)
    ]
    per_scale = []
    for filters in zip(*axes, strict=True):  # of one scale, one (order, tap) for each axis
        per_scale.append(torch.stack([_outer(filters, o) for o in orders]))
    return torch.stack(per_scale, dim=1)  # (F, S, *extent)


def _axis_filters(
    edge: int | None, scales: Sequence[float], spacing: float, sigma: float, max_order: int, method: str
) -> list[torch.Tensor]:
    """Filters of one axis, one tensor (order, tap) for each scale."""
    sigmas = [sigma * s / spacing for s in scales]
    if method == "dilated":
        smallest = hermite_gaussian_filters(_taps(edge, spacing, min(sigmas)), min(sigmas), max_order)
        factors = _whole_multiples(scales)
        return [_spread(smallest, factor, max(factors)) for factor in factors]
    taps = _taps(edge, spacing, max(sigmas))
    return [hermite_gaussian_filters(taps, s, max_order, method) for s in sigmas]


def _taps(edge: int | None, spacing: float, sigma: float) -> int:
    # Rounding must not add a voxel where the extent is met exactly.
    if edge is None:
        taps = 2 * max(1, math.ceil(_HALF_WIDTH * sigma - 1e-6)) + 1
    else:
        taps = edge if spacing >= 1 else 2 * math.ceil((edge / spacing - 1) / 2 - 1e-6) + 1
    return taps if spacing < _COARSE else max(taps, _COARSE_TAPS)


def _whole_multiples(scales: Sequence[float]) -> list[int]:
    factors = [round(s / min(scales)) for s in scales]
    if any(abs(s / min(scales) / factor - 1) > 1e-6 for s, factor in zip(scales, factors, strict=True)):
        raise ValueError(
            f"method 'dilated' needs scales that are whole multiples of the smallest, got {tuple(scales)}; "
            "use 'least_squares' for others."
        )
    return factors


def _spread(filters: torch.Tensor, factor: int, largest: int) -> torch.Tensor:
    # The taps keep their values: what the smaller filter sums over every voxel of the decimated image, the larger one
    # sums over the same voxels of the full image.
    half = filters.shape[1] // 2
    spread = filters.new_zeros(len(filters), 2 * half * largest + 1)
    offset = half * (largest - factor)
    spread[:, offset : spread.shape[1] - offset : factor] = filters
    return spread


def _outer(filters: Sequence[torch.Tensor], orders: Sequence[int]) -> torch.Tensor:
    product = filters[0][orders[0]]
    for axis_filters, order in zip(filters[1:], orders[1:], strict=True):
        product = product[..., None] * axis_filters[order]
    return product
