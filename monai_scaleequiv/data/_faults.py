"""What can be wrong with a volume: one function per rule, for the data check and for the transforms alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine

__all__ = ["ERROR", "MAX_SHEAR", "SPACING_RANGE", "WARNING", "Fault", "refuse"]

ERROR, WARNING = "error", "warning"
MAX_SHEAR = 0.01  # cosine of the angle between two axes: about half a degree off the right angle
SPACING_RANGE = (0.01, 100.0)  # mm
GRID_TOLERANCE = 0.1  # mm, for headers are rounded


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: name of the rule.
        expected: what should have come.
        got: what came.
        remedy: what the user can do.
        severity: ``"error"``, or ``"warning"`` for what a training survives.

    Example::

        >>> str(Fault("channels", "1 channel", "3", "choose one"))
        'expected 1 channel, got 3; choose one.'
    """

    kind: str
    expected: str
    got: str
    remedy: str
    severity: str = ERROR

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}; {self.remedy}."


def refuse(name: str, fault: Fault | None) -> None:
    """Raises the fault, if there is one, as a ValueError of one line.

    Example::

        >>> refuse("scan.nii.gz", channels_fault(3, 1))
        Traceback (most recent call last):
        ValueError: scan.nii.gz: expected 1 channel(s), got 3; choose the channel to use.
    """
    if fault is not None:
        raise ValueError(f"{name}: {fault}")


def axes_fault(shape: Sequence[int], spatial_dims: int) -> Fault | None:
    """Spatial axes that are too few or too many."""
    if len(shape) == spatial_dims:
        return None
    remedy = "split the file into single volumes" if len(shape) > spatial_dims else "stack the slices into a volume"
    return Fault("axes", f"{spatial_dims} spatial axes", f"shape {tuple(shape)}", remedy)


def channels_fault(channels: int, expected: int) -> Fault | None:
    """Another number of channels than expected."""
    if channels == expected:
        return None
    return Fault("channels", f"{expected} channel(s)", str(channels), "choose the channel to use")


def dtype_fault(dtype: np.dtype) -> Fault | None:
    """Voxels that are no real numbers: complex ones lose their imaginary part on loading, colours do not load."""
    if dtype.kind in "iuf":
        return None
    kind = "colours" if dtype.kind == "V" else "complex numbers" if dtype.kind == "c" else "others"
    return Fault("dtype", "real numbers", f"{kind} ({dtype})", "convert them, for example to magnitude or grey values")


def finite_fault(bad: int, remedy: str = 'replace them, for example with CheckVolumed(fill="min")') -> Fault | None:
    """Voxels that are NaN or infinite."""
    return Fault("finite", "finite values", f"{bad} NaN or infinite voxel(s)", remedy) if bad else None


def range_fault(minimum: float, maximum: float) -> Fault | None:
    """Finite values that become infinite as float32, in which volumes are loaded."""
    if max(abs(minimum), abs(maximum)) <= float(np.finfo(np.float32).max):
        return None
    remedy = "mend scl_slope and scl_inter in its header, or scale it"
    return Fault("range", "values within float32", f"{minimum:.4g} to {maximum:.4g}", remedy)


def affine_fault(affine: np.ndarray, max_shear: float = MAX_SHEAR) -> Fault | None:
    """An affine that is not finite, not invertible, or whose axes are not at right angles."""
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        return Fault("affine", "an invertible affine", f"NaN or infinity in {affine.tolist()}", "mend its header")
    axes = affine[:-1, :-1]
    # Relative to the largest entry, so that the unit does not matter.
    if not abs(np.linalg.det(axes)) > 1e-12 * abs(axes).max() ** len(axes):
        return Fault("affine", "an invertible affine", str(affine.tolist()), "mend its header")
    directions = axes / np.linalg.norm(axes, axis=0)
    shear = abs(directions.T @ directions - np.eye(len(axes))).max()
    if shear > max_shear:
        got = f"a cosine of {shear:.3g} between two of them"
        return Fault("shear", f"axes at right angles within {max_shear:g}", got, "resample it to a grid without shear")
    return None


def spacing_of(affine: np.ndarray) -> list[float]:
    """Voxel size along each axis."""
    return [float(size) for size in np.linalg.norm(np.asarray(affine, dtype=np.float64)[:-1, :-1], axis=0)]


def spacing_fault(spacing: Sequence[float], allowed: Sequence[float] = SPACING_RANGE) -> Fault | None:
    """A voxel size that no scanner has."""
    low, high = allowed
    if all(low <= size <= high for size in spacing):
        return None
    got = " x ".join(f"{size:.6g}" for size in spacing)
    return Fault("spacing", f"voxel sizes from {low:g} to {high:g} mm", got, "mend the voxel size in its header")


def resampled_shape(shape: Sequence[int], affine: np.ndarray, pixdim: Sequence[float], diagonal: bool) -> list[int]:
    """The size that MONAI's ``Spacing`` gives a volume."""
    rank = len(shape)
    affine = np.asarray(affine, dtype=np.float64)
    affine = affine[np.ix_([*range(rank), -1], [*range(rank), -1])]
    new_shape, _ = compute_shape_offset(shape, affine, zoom_affine(affine, pixdim[:rank], diagonal=diagonal))
    return [int(n) for n in new_shape]


def pixdim_fault(pixdim: Sequence[float], affine: np.ndarray, has_qform: bool) -> Fault | None:
    """A voxel size in the header that is not the affine's: readers then choose between them, each its own way.

    MONAI's drops the affine for the quaternions of the qform; where there are none, directions and place are lost.
    """
    spacing = spacing_of(affine)[: len(pixdim)]
    if np.allclose(pixdim, spacing, rtol=1e-3 if has_qform else 1e-5):
        return None
    expected = f"pixdim to be the affine's voxel size {[round(size, 6) for size in spacing]}"
    return Fault("pixdim", expected, str([round(float(size), 6) for size in pixdim]), "mend one of them in its header")


def growth_fault(shape: Sequence[int], resampled: Sequence[int], max_voxels: int) -> Fault | None:
    """A volume that resampling would blow up."""
    voxels = math.prod(resampled)
    if voxels <= max_voxels:
        return None
    got = f"{_times(resampled)} = {voxels:.3g} ({voxels * 4 / 2**30:.3g} GiB as float32) from {_times(shape)}"
    remedy = "mend the voxel size in its header, or raise max_voxels"
    return Fault("growth", f"at most {max_voxels:.3g} voxels after resampling", got, remedy)


def grid_fault(
    shape: Sequence[int],
    affine: np.ndarray | None,
    other_shape: Sequence[int],
    other_affine: np.ndarray | None,
    other: str,
    other_file: str = "",
    tolerance: float = GRID_TOLERANCE,
) -> Fault | None:
    """A grid that is not the other's: another shape, or corners that lie apart. Without affines the shape counts."""
    where = f" ({other}: {other_file})" if other_file else ""
    if tuple(shape) != tuple(other_shape):
        got = f"{tuple(shape)}{where}"
        return Fault("grid", f"the {other}'s shape {tuple(other_shape)}", got, "pair the right files")
    if affine is None or other_affine is None:
        return None
    difference = np.asarray(affine, dtype=np.float64) - np.asarray(other_affine, dtype=np.float64)
    corners = np.zeros((2 ** len(shape), len(difference)))
    corners[:, : len(shape)] = np.stack(np.meshgrid(*((0, n - 1) for n in shape)), -1).reshape(-1, len(shape))
    corners[:, -1] = 1
    apart = float(np.linalg.norm(difference @ corners.T, axis=0).max())
    if apart <= tolerance:
        return None
    got = f"one whose corners are up to {apart:.3g} mm away{where}"
    return Fault("grid", f"the {other}'s grid", got, "pair the right files or mend the header")


def label_fault(values: Iterable[float], classes: Sequence[int] | None) -> Fault | None:
    """Labels that are no whole numbers or not on the list of classes; without a list any from 0 on will do."""
    known = None if classes is None else set(classes)
    odd = [v for v in values if v != _round(v) or v < 0 or (known is not None and v not in known)]
    bad = list(dict.fromkeys(f"{v:g}" for v in odd))
    if not bad:
        return None
    if known is None:
        expected = "whole numbers from 0 on"
    elif known == set(range(len(known))):
        expected = f"whole numbers from 0 to {len(known) - 1}"
    else:
        expected = f"one of the labels {', '.join(map(str, sorted(known)))}"
    got = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return Fault("labels", expected, got, "change the labels or the list of classes (num_classes)")


def _round(value: float) -> float:
    """The nearest whole number, NaN for what has none."""
    return float(round(value)) if math.isfinite(value) else math.nan


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
