"""What one reading of a NIfTI file finds out about it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from monai_scaleequiv.data._faults import Fault, dtype_fault, range_fault
from monai_scaleequiv.data._header_faults import doubts
from monai_scaleequiv.data._nifti_file import VolumeFile
from monai_scaleequiv.data._opening import BrokenFileError

__all__ = ["VolumeFacts", "read_facts"]

MOST_LABELS = 1000


@dataclass
class VolumeFacts:
    """What one reading of a file finds out; everything can be stored as JSON.

    Args:
        shape: as in the header.
        dtype: how voxels are stored.
        affine: from voxels to mm.
        pixdim: voxel size, as in the header.
        has_qform: whether the header has an orientation beside the affine.
        unit: of length, as in the header.
        nonfinite: number of NaN and infinite voxels.
        minimum: of the finite voxels, None without any.
        maximum: likewise.
        labels: value and number of voxels, for label maps.
        digest: of shape, dtype and voxels, the same for files with the same content.
        faults: what could not be read, and doubts about the header.
    """

    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    affine: list[list[float]] = field(default_factory=list)
    pixdim: list[float] = field(default_factory=list)
    has_qform: bool = False
    unit: str = ""
    nonfinite: int = 0
    minimum: float | None = None
    maximum: float | None = None
    labels: list[list[float]] = field(default_factory=list)
    digest: str = ""
    faults: list[Fault] = field(default_factory=list)


def read_facts(path: str | os.PathLike, label: bool = False) -> VolumeFacts:
    """Reads a file to its end; what is wrong with it becomes a part of the facts.

    Args:
        path: a NIfTI file.
        label: whether to count the values.

    Example::

        >>> str(read_facts("no.nii.gz").faults[0])
        'expected a file, got none; restore it.'
    """
    facts, doubtful = VolumeFacts(), []
    try:
        with VolumeFile(path) as volume:
            facts.shape, facts.dtype, facts.unit = volume.shape, str(volume.dtype), volume.unit
            facts.affine, facts.pixdim, facts.has_qform = volume.affine.tolist(), volume.pixdim, volume.has_qform
            doubtful = doubts(volume.header)
            fault = dtype_fault(volume.dtype)
            facts.faults += [fault] if fault else []
            if fault is None:
                _collect(facts, volume, label)
    except BrokenFileError as error:
        facts.faults.insert(0, error.fault)
    facts.faults += doubtful
    return facts


def _collect(facts: VolumeFacts, volume: VolumeFile, label: bool) -> None:
    digest = blake2b(f"{volume.shape}{volume.dtype}".encode(), digest_size=16)
    counts: dict[float, int] = {}
    low, high = math.inf, -math.inf
    for piece in volume.pieces():
        digest.update(piece)
        voxels = np.frombuffer(piece, volume.dtype)
        if volume.dtype.kind == "f":
            finite = np.isfinite(voxels)
            bad = voxels.size - int(np.count_nonzero(finite))
            facts.nonfinite += bad
            voxels = voxels[finite] if bad else voxels
        if voxels.size:
            low, high = min(low, float(voxels.min())), max(high, float(voxels.max()))
            if label and len(counts) <= MOST_LABELS:
                _count(voxels, counts)
    facts.digest = digest.hexdigest()
    slope, inter = (1.0, 0.0) if volume.slope is None else (float(volume.slope), float(volume.inter))
    if low <= high:
        facts.minimum, facts.maximum = sorted((low * slope + inter, high * slope + inter))
        fault = range_fault(facts.minimum, facts.maximum)
        facts.faults += [fault] if fault else []
    facts.labels = _loaded(counts, slope, inter)


def _loaded(counts: dict[float, int], slope: float, inter: float) -> list[list[float]]:
    """Values and counts as loading has them, as float32: 10 times a slope of 0.1, itself rounded, is 1."""
    loaded: dict[float, int] = {}
    with np.errstate(over="ignore"):  # which is a fault of its own
        for value in sorted(counts)[: MOST_LABELS + 1]:
            rounded = float(np.float32(value * slope + inter))
            loaded[rounded] = loaded.get(rounded, 0) + counts[value]
    return [[value, loaded[value]] for value in sorted(loaded)]


def _count(voxels: np.ndarray, counts: dict[float, int]) -> None:
    # Label maps have long runs of one value: sorting the runs takes far less time than sorting the voxels.
    starts = np.flatnonzero(np.concatenate([[True], voxels[1:] != voxels[:-1]]))
    lengths = np.diff(starts, append=voxels.size)
    values, run = np.unique(voxels[starts], return_inverse=True)
    for value, count in zip(values.tolist(), np.bincount(run, weights=lengths).tolist(), strict=True):
        counts[value] = counts.get(value, 0) + int(count)
