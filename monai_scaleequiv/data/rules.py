"""What can be wrong with a volume: each rule gives a finding, or None. The data check and the transforms share them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from nibabel.spatialimages import HeaderDataError

ERROR, WARNING = "error", "warning"
MAX_SHEAR = 0.01  # cosine of the angle between two axes: about half a degree off the right angle
SPACING_RANGE = (0.01, 100.0)  # mm
GRID_TOLERANCE = 0.1  # mm, for headers are rounded
LABEL_TOLERANCE = 1e-3
FARTHEST = 1e6  # mm; beyond it float32, in which headers keep the place, has steps of 0.06 mm and more
FINITE_HINT = 'replace them, for example with CheckVolumed(fill="min")'


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file.

    Args:
        rule: name of the rule.
        expected: what should have come.
        got: what came.
        hint: what the user can do.
        severity: ``"error"``, or ``"warning"`` for what a training survives.

    Example::

        >>> str(Finding("channels", "1 channel", "3", "choose one"))
        'expected 1 channel, got 3; choose one.'
    """

    rule: str
    expected: str
    got: str
    hint: str
    severity: str = ERROR

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}; {self.hint}."


def raise_first(name: str, findings: Iterable[Finding | None]) -> None:
    """Raises the first error among findings as a ValueError of one line.

    Example::

        >>> raise_first("scan.nii.gz", [channels(3, 1)])
        Traceback (most recent call last):
        ValueError: scan.nii.gz: expected 1 channel(s), got 3; choose the channel to use.
    """
    for finding in findings:
        if finding is not None and finding.severity == ERROR:
            raise ValueError(f"{name}: {finding}")


def axes(shape: Sequence[int], spatial_dims: int) -> Finding | None:
    """Too few or too many spatial axes."""
    if len(shape) == spatial_dims:
        return None
    hint = "split the file into single volumes" if len(shape) > spatial_dims else "stack the slices into a volume"
    return Finding("axes", f"{spatial_dims} spatial axes", f"shape {tuple(shape)}", hint)


def channels(count: int, expected: int) -> Finding | None:
    """Another number of channels than expected."""
    if count == expected:
        return None
    return Finding("channels", f"{expected} channel(s)", str(count), "choose the channel to use")


def dtype(found: np.dtype) -> Finding | None:
    """Voxels that are no real numbers: complex ones lose their imaginary part on loading, colours do not load."""
    if found.kind in "iuf":
        return None
    kind = {"V": "colours", "c": "complex numbers"}.get(found.kind, "others")
    return Finding(
        "dtype", "real numbers", f"{kind} ({found})", "convert them, for example to magnitude or grey values"
    )


def voxels(shape: Sequence[int], most: int) -> Finding | None:
    """A volume that would fill the memory as soon as it is loaded."""
    if math.prod(shape) <= most:
        return None
    return Finding("voxels", f"at most {most:.3g} voxels", _size(shape), "split it, or raise max_voxels")


def finite(bad: int, hint: str = FINITE_HINT) -> Finding | None:
    """Voxels that are NaN or infinite."""
    return Finding("finite", "finite values", f"{bad} NaN or infinite voxel(s)", hint) if bad else None


def float_range(minimum: float, maximum: float) -> Finding | None:
    """Finite values that become infinite as float32, in which volumes are loaded."""
    if max(abs(minimum), abs(maximum)) <= float(np.finfo(np.float32).max):
        return None
    hint = "correct scl_slope and scl_inter in its header, or scale it"
    return Finding("range", "values within float32", f"{minimum:.4g} to {maximum:.4g}", hint)


def affine(matrix: np.ndarray, max_shear: float = MAX_SHEAR) -> Finding | None:
    """An affine that is not finite, not invertible, or whose axes are not at right angles."""
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        return Finding("affine", "an invertible affine", f"NaN or infinity in {matrix.tolist()}", "correct its header")
    columns = matrix[:-1, :-1]
    # Relative to the largest entry, so that the unit does not matter.
    if not abs(np.linalg.det(columns)) > 1e-12 * abs(columns).max() ** len(columns):
        return Finding("affine", "an invertible affine", str(matrix.tolist()), "correct its header")
    directions = columns / np.linalg.norm(columns, axis=0)
    shear = abs(directions.T @ directions - np.eye(len(columns))).max()
    if shear <= max_shear:
        return None
    got = f"a cosine of {shear:.3g} between two of them"
    return Finding("shear", f"axes at right angles within {max_shear:g}", got, "resample it to a grid without shear")


def spacing_of(matrix: np.ndarray) -> list[float]:
    """Voxel size along each axis."""
    return [float(size) for size in np.linalg.norm(np.asarray(matrix, dtype=np.float64)[:-1, :-1], axis=0)]


def spacing(sizes: Sequence[float], allowed: Sequence[float] = SPACING_RANGE) -> Finding | None:
    """A voxel size that no scanner has."""
    low, high = allowed
    if all(low <= size <= high for size in sizes):
        return None
    got = " x ".join(f"{size:.6g}" for size in sizes)
    return Finding("spacing", f"voxel sizes from {low:g} to {high:g} mm", got, "correct the voxel size in its header")


def growth(shape: Sequence[int], matrix: np.ndarray, pixdim: Sequence[float], most: int) -> Finding | None:
    """A volume that ``Spacing`` would blow up: a header of 1000 instead of 1 mm turns 16 slices into 15001."""
    rank = len(shape)
    matrix = np.asarray(matrix, dtype=np.float64)[np.ix_([*range(rank), -1], [*range(rank), -1])]
    with np.errstate(invalid="ignore"):
        sizes, _ = compute_shape_offset(shape, matrix, zoom_affine(matrix, pixdim[:rank], diagonal=False))
    # A size that no integer holds comes back as a negative one.
    resampled = [int(n) if n > 0 else 2**62 for n in sizes]
    if math.prod(resampled) <= most:
        return None
    got = f"{_size(resampled)} from {' x '.join(map(str, shape))}"
    hint = "correct the voxel size in its header, or raise max_voxels"
    return Finding("growth", f"at most {most:.3g} voxels after resampling", got, hint)


def grid(
    shape: Sequence[int],
    matrix: np.ndarray | None,
    other_shape: Sequence[int],
    other_matrix: np.ndarray | None,
    other: str,
    tolerance: float = GRID_TOLERANCE,
) -> Finding | None:
    """A grid that is not the other's: another shape, or corners that lie apart. Without affines the shape counts."""
    if tuple(shape) != tuple(other_shape):
        return Finding("grid", f"the shape {tuple(other_shape)} of {other}", str(tuple(shape)), "pair the right files")
    if matrix is None or other_matrix is None:
        return None
    difference = np.asarray(matrix, dtype=np.float64) - np.asarray(other_matrix, dtype=np.float64)
    corners = np.zeros((2 ** len(shape), len(difference)))
    corners[:, : len(shape)] = np.stack(np.meshgrid(*((0, n - 1) for n in shape)), -1).reshape(-1, len(shape))
    corners[:, -1] = 1
    apart = float(np.linalg.norm(difference @ corners.T, axis=0).max())
    if apart <= tolerance:
        return None
    got = f"one whose corners are up to {apart:.3g} mm away"
    return Finding("grid", f"the grid of {other}", got, "pair the right files or correct the header")


def labels(values: Iterable[float], classes: Iterable[int] | None) -> Finding | None:
    """Labels that are no whole numbers or not on the list of classes; without a list any from 0 on will do."""
    known = None if classes is None else set(classes)
    bad = [v for v in values if not is_whole(v) or v < -0.5 or (known is not None and round(v) not in known)]
    if not bad:
        return None
    if known is None:
        expected = "whole numbers from 0 on"
    elif known == set(range(len(known))):
        expected = f"whole numbers from 0 to {len(known) - 1}"
    else:
        expected = f"one of the labels {', '.join(map(str, sorted(known)))}"
    got = ", ".join(f"{v:.9g}" for v in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return Finding("labels", expected, got, "change the labels or the list of classes (num_classes)")


def is_whole(value: float) -> bool:
    """Whether a label is a whole number but for rounding."""
    return math.isfinite(value) and abs(value - round(value)) <= LABEL_TOLERANCE


def header(found: nib.Nifti1Header) -> list[Finding]:
    """Fields of a NIfTI header that contradict each other, or that readers understand differently."""
    matrix = found.get_best_affine()
    singular = affine(matrix, math.inf)
    findings = [dtype(found.get_data_dtype()), singular, _unit(found.get_xyzt_units()[0])]
    if singular is None:
        sizes, has_qform = found.get_zooms()[:3], int(found["qform_code"]) > 0
        findings += [_pixdim(sizes, matrix, has_qform), place(matrix)]
    return [finding for finding in [*findings, _forms(found)] if finding is not None]


def place(matrix: np.ndarray) -> Finding | None:
    """A volume that lies farther away than anything that is scanned."""
    far = float(np.abs(np.asarray(matrix, dtype=np.float64)[:-1, -1]).max())
    if not far > FARTHEST:
        return None
    return Finding("place", f"a place within {FARTHEST:g} mm", f"one {far:.3g} mm away", "correct its affine")


def _unit(unit: str) -> Finding | None:
    # Readers pass over the unit; many headers name none, and mean mm.
    return None if unit in ("mm", "unknown") else Finding("unit", "mm as unit of length", unit, "convert its header")


def _pixdim(sizes: Sequence[float], matrix: np.ndarray, has_qform: bool) -> Finding | None:
    # Where they differ, MONAI's reader drops the affine for the qform; without one, directions and place are lost.
    expected = spacing_of(matrix)[: len(sizes)]
    if np.allclose(sizes, expected, rtol=1e-3 if has_qform else 1e-5):
        return None
    text = f"pixdim to be the affine's voxel size {[round(size, 6) for size in expected]}"
    return Finding("pixdim", text, str([round(float(size), 6) for size in sizes]), "correct one of them in its header")


def _forms(found: nib.Nifti1Header) -> Finding | None:
    codes = [int(found["sform_code"]), int(found["qform_code"])]
    if not any(codes):
        got = "0 for both: readers guess the directions"
        return Finding("codes", "sform_code or qform_code above 0", got, "write an affine into its header", WARNING)
    if not all(codes):
        return None
    hint = "set the code of the wrong one to 0"
    shape = [*found.get_data_shape(), 1, 1, 1][:3]
    try:
        apart = grid(shape, found.get_qform(), shape, found.get_sform(), "the sform")
    except (HeaderDataError, ValueError) as error:
        return Finding("forms", "a qform that can be read", " ".join(str(error).split()), hint, WARNING)
    if apart is None:
        return None
    return Finding("forms", "the qform on the sform's grid", f"{apart.got}: readers differ", hint, WARNING)


def _size(shape: Sequence[int]) -> str:
    count = math.prod(shape)
    return f"{' x '.join(map(str, shape))} = {count:.3g} ({count * 4 / 2**30:.3g} GiB as float32)"
