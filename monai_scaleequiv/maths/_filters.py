"""The filters of the steerable layers, described once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from monai.utils import ensure_tuple_rep

from monai_scaleequiv.maths._hermite import METHODS


@dataclass(frozen=True)
class ScaleFilters:
    """What the Hermite-Gaussian filters of a layer or network look like.

    Args:
        scales: relative sizes at which each filter is evaluated, S of them.
        sigma: of the filters' Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres. 0.95 measures best
            for a kernel of 5, 1.15 for 7, 1.4 for 9.
        max_order: highest total order of the Hermite polynomials; 2 gives 10 functions in 3D and 6 in 2D.
        kernel_size: edge of the kernel in voxels at spacing 1, odd, one for all axes or one per axis. At a finer
            spacing it is the smallest odd number of voxels that covers as many millimetres; at a coarser one it stays,
            and from 1.5 on it is at least 9. None lets it follow from the largest sigma.
        spacing: edge of a voxel, one for all axes or one per axis; 1 measures in voxels. The same weights give the
            same function of the body at every spacing.
        method: ``"least_squares"`` or ``"sampled"``, see :py:func:`hermite_gaussian_filters`.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> ScaleFilters(scales=[1, 0.8], sigma=1.0).scales
        (1.0, 0.8)
    """

    scales: Sequence[float] = (1.0, 0.9, 0.81, 0.729)
    sigma: float = 0.95
    max_order: int = 2
    kernel_size: Sequence[int | None] | int | None = 5
    spacing: Sequence[float] | float = 1.0
    method: str = "least_squares"

    def __post_init__(self) -> None:
        check_scales(self.scales)
        if not (isinstance(self.sigma, Real) and 0 < self.sigma < math.inf):
            raise ValueError(f"sigma must be above 0, got {self.sigma}.")
        if not isinstance(self.max_order, Integral) or self.max_order < 0:
            raise ValueError(f"max_order must be a whole number of at least 0, got {self.max_order}.")
        edges = self.kernel_size if isinstance(self.kernel_size, Sequence) else [self.kernel_size]
        if not all(k is None or (isinstance(k, Integral) and k >= 3 and k % 2 == 1) for k in edges):
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}.")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}.")
        is_one = isinstance(self.spacing, Real)
        sizes = tuple(voxel_sizes(self.spacing, 1 if is_one else len(self.spacing)))
        # Plain numbers in tuples, so that equal filters are equal.
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
        object.__setattr__(self, "spacing", sizes[0] if is_one else sizes)
        if isinstance(self.kernel_size, Sequence):
            object.__setattr__(self, "kernel_size", tuple(edges))

    @staticmethod
    def of(value: "ScaleFilters | Mapping[str, Any] | None") -> "ScaleFilters":
        """Filters from what a configuration spells as a mapping; None stands for the defaults.

        Example::

            >>> ScaleFilters.of({"sigma": 1.0}) == ScaleFilters(sigma=1.0)
            True
        """
        if isinstance(value, ScaleFilters):
            return value
        try:
            return ScaleFilters(**(value or {}))
        except TypeError as error:
            raise ValueError(f"filters must be a ScaleFilters, its arguments as a mapping, or None; {error}.") from None


def check_scales(scales: Sequence[float]) -> None:
    """Raises a ValueError unless these are sizes."""
    if len(scales) == 0 or not all(isinstance(s, Real) and 0 < s < math.inf for s in scales):
        raise ValueError(f"scales must hold at least one number and all above 0, got {tuple(scales)}.")


def voxel_sizes(
    spacing: Sequence[float] | torch.Tensor | float, spatial_dims: int, name: str = "spacing"
) -> list[float]:
    """One positive number per axis, from one for all or a sequence."""
    try:
        spacings = [float(r) for r in ensure_tuple_rep(spacing, spatial_dims)]
    except (RuntimeError, TypeError, ValueError):
        spacings = []
    if len(spacings) != spatial_dims or not all(0 < r < math.inf for r in spacings):
        raise ValueError(f"{name} must be one number above 0 or one per axis, {spatial_dims} of them, got {spacing}.")
    return spacings
