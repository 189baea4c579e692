"""What one reading of a volume finds out about it."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import nibabel as nib
import numpy as np

from monai_scaleequiv.data.rules import Finding

MOST_LABELS = 1000  # that are counted


@dataclass
class VolumeFacts:
    """What one reading of a file finds out: its header, its findings, and with its voxels their values and digest."""

    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    affine: list[list[float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    nonfinite: int = 0
    minimum: float | None = None  # of the finite voxels
    maximum: float | None = None
    labels: list[list[float]] = field(default_factory=list)  # value and number of voxels
    digest: str = ""  # the same for files with the same content


def add_voxels(facts: VolumeFacts, image: nib.Nifti1Image, label: bool) -> None:
    """Adds what the voxels show; their values are counted for label maps."""
    stored: Any = image.dataobj
    voxels, slope, inter = np.ravel(stored.get_unscaled(), order="F"), float(stored.slope), float(stored.inter)
    digest = blake2b(f"{facts.shape}{facts.dtype}{slope}{inter}".encode(), digest_size=16)
    digest.update(voxels.data)
    facts.digest = digest.hexdigest()
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        facts.nonfinite, voxels = int(np.count_nonzero(~finite)), voxels if finite.all() else voxels[finite]
    if not voxels.size:
        return
    low, high = sorted(float(value) * slope + inter for value in (voxels.min(), voxels.max()))
    facts.minimum, facts.maximum = low, high
    if max(abs(low), abs(high)) > float(np.finfo(np.float32).max):  # loading makes infinity of it
        hint = "correct scl_slope and scl_inter in its header, or scale it"
        facts.findings.append(Finding("range", "values within float32", f"{low:.4g} to {high:.4g}", hint))
    if label:
        facts.labels = _count(voxels, slope, inter)


def _count(voxels: np.ndarray, slope: float, inter: float) -> list[list[float]]:
    """Values, as loading has them, and counts: 10 times a slope of 0.1, itself rounded, is 1 as float32."""
    # Label maps have long runs of one value: sorting the runs takes far less time than sorting the voxels.
    starts = np.flatnonzero(np.concatenate([[True], voxels[1:] != voxels[:-1]]))
    values, run = np.unique(voxels[starts], return_inverse=True)
    numbers = np.bincount(run, weights=np.diff(starts, append=voxels.size))[:MOST_LABELS]
    with np.errstate(over="ignore"):  # which is a finding of its own
        loaded = (values[:MOST_LABELS].astype(np.float64) * slope + inter).astype(np.float32).astype(np.float64)
    merged, where = np.unique(loaded, return_inverse=True)
    return [list(pair) for pair in zip(merged.tolist(), np.bincount(where, weights=numbers).tolist(), strict=True)]
