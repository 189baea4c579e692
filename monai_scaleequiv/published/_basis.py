"""The filter basis of the published code."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_scaleequiv.maths import hermite_gaussian_filters

_BASIS_TYPES = ("single", "multi")


def published_basis(
    kernel_size: int, scales: Sequence[float], effective_size: int, basis_type: str = "single",
    kernel_padding: bool = True, mult: float = 1.2, max_order: int = 4,
) -> torch.Tensor:  # fmt: skip
    """Sampled Hermite-Gaussian basis (effective_size ** 3, scales, *kernel); each has norm 1 at the first scale.

    Args:
        kernel_size: edge of the kernel in voxels, odd.
        scales: standard deviations of the Gaussian, in voxels.
        effective_size: its cube is the number of functions.
        basis_type: ``"single"`` takes every order below ``effective_size`` along each axis; ``"multi"`` takes total
            orders up to ``max_order`` and, where these do not suffice, goes on with smaller Gaussians.
        kernel_padding: whether smaller scales are sampled on a smaller grid and padded with zeros.
        mult: ratio of two successive Gaussians of the ``"multi"`` basis.
        max_order: highest total order of the ``"multi"`` basis.

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
    top = effective_size - 1 if basis_type == "single" else max_order
    orders = [o for o in itertools.product(range(top + 1), repeat=3) if basis_type == "single" or sum(o) <= top]
    # The published order of functions counts the first axis fastest.
    z, y, x = ([o[axis] for o in orders] for axis in range(3))
    count = effective_size**3
    per_scale = []
    for scale in scales:
        extent = int(kernel_size * scale / max(scales)) // 2 * 2 + 1 if kernel_padding else kernel_size
        if extent < 3:
            raise ValueError(f"kernel_size {kernel_size} leaves a single voxel at scale {scale}; use a larger one.")
        sigmas = [scale / mult**level for level in range(-(-count // len(orders)))]
        filters = [hermite_gaussian_filters(extent, sigma, top, method="sampled") for sigma in sigmas]
        functions = torch.cat([torch.einsum("fi,fj,fk->fijk", f[x], f[y], f[z]) for f in filters])[:count]
        per_scale.append(F.pad(functions, [(kernel_size - extent) // 2] * 6))
    basis = torch.stack(per_scale, dim=1)  # (F, S, k, k, k)
    return basis / basis[:, :1].pow(2).sum(dim=(2, 3, 4), keepdim=True).sqrt()
