"""The filter basis of the published code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_scaleequiv.maths import hermite_gaussian_filters

__all__ = ["published_basis"]

_BASIS_TYPES = ("single", "multi")


def published_basis(
    kernel_size: int,
    scales: Sequence[float],
    effective_size: int,
    basis_type: str = "single",
    kernel_padding: bool = True,
    mult: float = 1.2,
    max_order: int = 4,
) -> torch.Tensor:
    """Sampled Hermite-Gaussian basis with the published choice of functions, extents and normalisation.

    Args:
        kernel_size: edge of the kernel in voxels, odd.
        scales: standard deviations of the Gaussian, in voxels.
        effective_size: its cube is the number of functions.
        basis_type: ``"single"`` takes every order below ``effective_size`` along each axis; ``"multi"`` takes total
            orders up to ``max_order`` and, where these do not suffice, goes on with smaller Gaussians.
        kernel_padding: whether smaller scales are sampled on a smaller grid and padded with zeros.
        mult: ratio of two successive Gaussians of the ``"multi"`` basis.
        max_order: highest total order of the ``"multi"`` basis.

    Returns:
        float64 tensor of shape (effective_size ** 3, scales, kernel_size, kernel_size, kernel_size), each function
        divided by its norm at the first scale.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> published_basis(5, scales=(1.0, 0.9), effective_size=3, basis_type="multi").shape
        torch.Size([27, 2, 5, 5, 5])

    Source: code of Wimmer et al. 2023 (arXiv 2304.05864).
    """
    if basis_type not in _BASIS_TYPES:
        raise ValueError(f"basis_type must be one of {_BASIS_TYPES}, got {basis_type!r}.")
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 3 (even grids are off centre), got {kernel_size}.")
    per_scale = []
    for scale in scales:
        extent = int(kernel_size * scale / max(scales)) // 2 * 2 + 1 if kernel_padding else kernel_size
        if extent < 3:
            raise ValueError(f"kernel_size {kernel_size} leaves a single voxel at scale {scale}; use a larger one.")
        if basis_type == "single":
            functions = _all_orders(extent, scale, effective_size - 1)
        else:
            functions = _total_orders(extent, scale, max_order, mult, effective_size**3)
        per_scale.append(F.pad(functions, [(kernel_size - extent) // 2] * 6))
    basis = torch.stack(per_scale, dim=1)  # (F, S, k, k, k)
    return basis / basis[:, :1].pow(2).sum(dim=(2, 3, 4), keepdim=True).sqrt()


def _products(filters: torch.Tensor, orders: Sequence[tuple[int, ...]]) -> torch.Tensor:
    # The published order of functions counts the first axis fastest.
    z, y, x = (filters[[o[axis] for o in orders]] for axis in range(3))
    return torch.einsum("fi,fj,fk->fijk", x, y, z)


def _all_orders(kernel_size: int, sigma: float, max_order: int) -> torch.Tensor:
    filters = hermite_gaussian_filters(kernel_size, sigma, max_order, method="sampled")
    return _products(filters, list(itertools.product(range(max_order + 1), repeat=3)))


def _total_orders(kernel_size: int, sigma: float, max_order: int, mult: float, count: int) -> torch.Tensor:
    orders = [o for o in itertools.product(range(max_order + 1), repeat=3) if sum(o) <= max_order]
    levels = -(-count // len(orders))
    filters = [hermite_gaussian_filters(kernel_size, sigma / mult**i, max_order, "sampled") for i in range(levels)]
    return torch.cat([_products(f, orders) for f in filters])[:count]
