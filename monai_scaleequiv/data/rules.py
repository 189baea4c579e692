"""What can be wrong with a volume: each rule gives a finding or None. The data check and the transforms share them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike

ERROR, WARNING = "error", "warning"
MAX_SHEAR = 0.01  # cosine of the angle between two axes: about half a degree off the right angle
SPACING_RANGE = (0.01, 100.0)  # mm
GRID_TOLERANCE = 0.1  # mm, for headers are rounded
FARTHEST = 1e6  # mm; beyond it float32, in which headers keep the place, has steps of 0.06 mm and more
FINITE_HINT = 'replace them, for example with CheckVolumed(fill="min")'
HEADER_HINT = "correct its header"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the rule, what should have come, what came, what the user can do, and how bad it is.

    Example::

        >>> str(Finding("channels", "1 channel", "3", "choose one"))
        'expected 1 channel, got 3; choose one.'
    """

    rule: str
    expected: str
    got: str
    hint: str
    severity: str = ERROR  # or "warning", for what a training survives

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}; {self.hint}."


def raise_first(name: str, *findings: Finding | None) -> None:
    """Raises the first error among findings as a ValueError of one line.

    Example::

        >>> raise_first("scan.nii.gz", channels(1, expected=3))
        Traceback (most recent call last):
        ValueError: scan.nii.gz: expected 3 channel(s), got 1; choose the channel to use.
    """
    for finding in findings:
        if finding is not None and finding.severity == ERROR:
            raise ValueError(f"{name}: {finding}")


def axes(shape: Sequence[int], spatial_dims: int) -> Finding | None:
    """Too few or too many spatial axes."""
    hint = "split the file into single volumes" if len(shape) > spatial_dims else "stack the slices into a volume"
    return _if(len(shape) != spatial_dims, "axes", f"{spatial_dims} spatial axes", f"shape {tuple(shape)}", hint)


def channels(count: int, expected: int) -> Finding | None:
    """Another number of channels than expected."""
    hint = "choose the channel to use" + (count > expected) * ", or set in_channels (check: --channels)"
    return _if(count != expected, "channels", f"{expected} channel(s)", str(count), hint)


def dtype(found: np.dtype) -> Finding | None:
    """Voxels that are no real numbers: complex ones lose their imaginary part on loading, colours do not load."""
    kind = {"V": "colours", "c": "complex numbers"}.get(found.kind, "others")
    hint = "convert them, for example to magnitude or grey values"
    return _if(found.kind not in "iuf", "dtype", "real numbers", f"{kind} ({found})", hint)


def voxels(shape: Sequence[int], most: int) -> Finding | None:
    """A volume that would fill the memory as soon as it is loaded."""
    hint = "split it, or raise max_voxels"
    return _if(math.prod(shape) > most, "voxels", f"at most {most:.3g} voxels", _size(shape), hint)


def finite(bad: int, hint: str = FINITE_HINT) -> Finding | None:
    """Voxels that are NaN or infinite."""
    return _if(bad > 0, "finite", "finite values", f"{bad} NaN or infinite voxel(s)", hint)


def affine(matrix: ArrayLike, max_shear: float = MAX_SHEAR) -> Finding | None:
    """An affine that is not finite, not invertible, or whose axes are not at right angles."""
    matrix = np.asarray(matrix, dtype=np.float64)
    columns = matrix[:-1, :-1]
    # Relative to the largest entry, so that the unit does not matter.
    if not np.isfinite(matrix).all() or abs(np.linalg.det(columns)) <= 1e-12 * abs(columns).max() ** len(columns):
        return Finding("affine", "an invertible affine", str(matrix.tolist()), HEADER_HINT)
    directions = columns / np.linalg.norm(columns, axis=0)
    shear = abs(directions.T @ directions - np.eye(len(columns))).max()
    got, hint = f"a cosine of {shear:.3g} between two of them", "resample it to a grid without shear"
    return _if(shear > max_shear, "shear", f"axes at right angles within {max_shear:g}", got, hint)


def spacing_of(matrix: ArrayLike) -> list[float]:
    """Voxel size along each axis."""
    return [float(size) for size in np.linalg.norm(np.asarray(matrix, dtype=np.float64)[:-1, :-1], axis=0)]


def spacing(sizes: Sequence[float], allowed: Sequence[float] = SPACING_RANGE) -> Finding | None:
    """A voxel size that no scanner has."""
    low, high = allowed
    got, hint = " x ".join(f"{size:.6g}" for size in sizes), "correct the voxel size in its header"
    fits = all(low <= size <= high for size in sizes)
    return _if(not fits, "spacing", f"voxel sizes from {low:g} to {high:g} mm", got, hint)


def growth(shape: Sequence[int], matrix: np.ndarray, pixdim: Sequence[float], most: int) -> Finding | None:
    """A volume that ``Spacing`` would blow up: a header of 1000 instead of 1 mm turns 16 slices into 15001."""
    kept = np.ix_([*range(len(shape)), -1], [*range(len(shape)), -1])
    matrix = np.asarray(matrix, dtype=np.float64)[kept]
    with np.errstate(invalid="ignore"):
        sizes, _ = compute_shape_offset(shape, matrix, zoom_affine(matrix, pixdim[: len(shape)], diagonal=False))
    resampled = [int(n) if n > 0 else 2**62 for n in sizes]  # negative: a size that no integer holds
    got = f"{_size(resampled)} from {' x '.join(map(str, shape))}"
    hint = "correct the voxel size in its header, or raise max_voxels"
    return _if(math.prod(resampled) > most, "growth", f"at most {most:.3g} voxels after resampling", got, hint)


def grid(
    shape: Sequence[int], matrix: ArrayLike | None, other_shape: Sequence[int], other_matrix: ArrayLike | None,
    other: str, tolerance: float = GRID_TOLERANCE,
) -> Finding | None:  # fmt: skip
    """A grid that is not the other's: another shape, or corners that lie apart. Without affines the shape counts."""
    if tuple(shape) != tuple(other_shape):
        return Finding("grid", f"the shape {tuple(other_shape)} of {other}", str(tuple(shape)), "pair the right files")
    if matrix is None or other_matrix is None:
        return None
    difference = np.asarray(matrix, dtype=np.float64) - np.asarray(other_matrix, dtype=np.float64)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape)), -1).reshape(-1, len(shape))
    apart = float(np.linalg.norm(difference[:, : len(shape)] @ corners.T + difference[:, -1:], axis=0).max())
    got, hint = f"one whose corners are up to {apart:.3g} mm away", "pair the right files or correct the header"
    return _if(apart > tolerance, "grid", f"the grid of {other}", got, hint)


def labels(values: Iterable[float], classes: Iterable[int] | None) -> Finding | None:
    """Labels that are no whole numbers or not on the list of classes; without a list any from 0 on will do."""
    known = None if classes is None else set(classes)
    bad = [v for v in values if not is_whole(v) or round(v) < 0 or (known is not None and round(v) not in known)]
    if known is not None and known != set(range(len(known))):
        expected = f"one of the labels {', '.join(map(str, sorted(known)))}"
    else:
        expected = f"whole numbers from 0 {'on' if known is None else f'to {len(known) - 1}'}"
    got = ", ".join(f"{v:.9g}" for v in bad[:5]) + f" and {len(bad) - 5} more" * (len(bad) > 5)
    return _if(bool(bad), "labels", expected, got, "change the labels or the list of classes (num_classes)")


def is_whole(value: float) -> bool:
    """Whether a label is a whole number but for rounding."""
    return math.isfinite(value) and abs(value - round(value)) <= 1e-3


def place(matrix: ArrayLike) -> Finding | None:
    """A volume that lies farther away than anything that is scanned."""
    far = float(np.abs(np.asarray(matrix, dtype=np.float64)[:-1, -1]).max())
    return _if(far > FARTHEST, "place", f"a place within {FARTHEST:g} mm", f"{far:.3g} mm", HEADER_HINT)


def header(found: nib.Nifti1Header) -> list[Finding]:
    """Fields of a NIfTI header that contradict each other, or that readers understand differently."""
    matrix, unit = found.get_best_affine(), found.get_xyzt_units()[0]
    singular = affine(matrix, math.inf)
    findings = [dtype(found.get_data_dtype()), singular, _forms(found)]
    # Readers pass over the unit; many headers name none, and mean mm.
    findings.append(
        _if(unit not in ("mm", "unknown"), "unit", "mm as unit of length", unit, "convert its header to mm")
    )
    if singular is None:
        findings += [_pixdim(found.get_zooms()[:3], spacing_of(matrix), int(found["qform_code"]) > 0), place(matrix)]
    return [finding for finding in findings if finding is not None]


def _pixdim(sizes: Sequence[float], expected: Sequence[float], has_qform: bool) -> Finding | None:
    # Where they differ, MONAI's reader drops the affine for the qform; without one, directions and place are lost.
    same = np.allclose(sizes, expected[: len(sizes)], rtol=1e-3 if has_qform else 1e-5)
    expect, got = ([round(float(size), 6) for size in part] for part in (expected[: len(sizes)], sizes))
    return _if(not same, "pixdim", f"the affine's voxel size {expect} as pixdim", str(got), HEADER_HINT)


def _forms(found: nib.Nifti1Header) -> Finding | None:
    codes, shape = [int(found["sform_code"]), int(found["qform_code"])], [*found.get_data_shape(), 1, 1, 1][:3]
    if not any(codes):
        got = "0 for both: readers guess the directions"
        return Finding("codes", "sform_code or qform_code above 0", got, "write an affine into its header", WARNING)
    try:
        apart = grid(shape, found.get_qform(), shape, found.get_sform(), "the sform") if all(codes) else None
        got = f"{apart.got if apart else ''}: readers choose between them"
    except (HeaderDataError, ValueError) as error:
        apart, got = Finding("forms", "", "", ""), " ".join(str(error).split())
    hint = "set the code of the wrong one to 0"
    return None if apart is None else Finding("forms", "a qform on the sform's grid", got, hint, WARNING)


def _if(wrong: bool, *parts: str) -> Finding | None:
    return Finding(*parts) if wrong else None


def _size(shape: Sequence[int]) -> str:
    count = math.prod(shape)
    return f"{' x '.join(map(str, shape))} = {count:.3g} ({count * 4 / 2**30:.3g} GiB as float32)"
