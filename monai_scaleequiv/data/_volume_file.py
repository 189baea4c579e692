"""A NIfTI file read once from its first byte to its last, in pieces, with its checksum verified."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data._datalist import NIFTI
from monai_scaleequiv.data._faults import Fault, affine_fault, dtype_fault, pixdim_fault, range_fault

__all__ = ["BrokenFileError", "VolumeFacts", "VolumeFile", "read_facts", "read_to_the_end"]

PIECE = 1 << 22  # bytes; a multiple of every item size
MOST_LABELS = 1000
MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0")}  # some leave the line ends out
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


class BrokenFileError(ValueError):
    """A file that cannot be read, with its fault."""

    def __init__(self, path: str | os.PathLike, fault: Fault) -> None:
        super().__init__(f"{os.fspath(path)}: {fault}")
        self.fault = fault


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
        faults: what could not be read.
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


class VolumeFile:
    """An open NIfTI file: its header, and once its voxels in pieces.

    Example::

        >>> with VolumeFile("no.nii.gz") as file:  # doctest: +SKIP
        ...     file.header.get_data_shape()
        (16, 16, 16)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        with _told(path):
            self._file = _open(path)
        try:
            with _told(path):
                self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> VolumeFile:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def pieces(self) -> Iterator[bytes]:
        """The voxels, in pieces of whole items; then the rest of the file is read, too, so that a checksum is seen."""
        with _told(self.path):
            left = total = math.prod(self.shape) * self.dtype.itemsize
            while left:
                piece = self._file.read(min(PIECE, left) if PIECE % self.dtype.itemsize == 0 else left)
                if len(piece) % self.dtype.itemsize or not piece:
                    self._fail(f"{total} bytes of voxels", f"{total - left + len(piece)}", "copy or download it again")
                left -= len(piece)
                yield piece
            while self._file.read(PIECE):
                pass

    def header_fault(self) -> Fault | None:
        """What readers would pass over: no real numbers for voxels, or a place in space that each reads in its way."""
        return (
            dtype_fault(self.dtype)
            or affine_fault(self.affine, max_shear=math.inf)
            or pixdim_fault(self.pixdim, self.affine, self.has_qform)
        )

    def _read_header(self) -> None:
        start = self._file.read(4)
        size = next((s for s in HEADERS for order in ("little", "big") if s == int.from_bytes(start, order)), 0)
        content = start + self._file.read(size - 4) if size else b""
        if not size or len(content) < size:
            self._fail("a NIfTI header", f"a file that begins with {start!r}", "copy it again or convert it to NIfTI")
        magic = content[344:348] if size == 348 else content[4:12]
        if magic not in MAGIC[size]:  # nibabel and ITK take such a file for Analyze, and drop its affine
            self._fail(f"the NIfTI mark {MAGIC[size][0]!r}", repr(magic), "copy it again or convert it to NIfTI")
        try:
            self.header = HEADERS[size](content, check=False)
            self.shape = [int(n) for n in self.header.get_data_shape()]
            self.dtype = self.header.get_data_dtype()
            self.affine = np.asarray(self.header.get_best_affine(), dtype=np.float64)
            self.pixdim = [float(size) for size in self.header.get_zooms()[:3]]
            self.has_qform = int(self.header["qform_code"]) > 0
            self.unit = self.header.get_xyzt_units()[0]
            self.slope, self.inter = self.header.get_slope_inter()
            skip = int(self.header.get_data_offset()) - size
        except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
            self._fail("a sound NIfTI header", f"one where {' '.join(str(error).split())}", "mend its header")
        if min(self.shape, default=0) < 1 or skip < 0:
            self._fail("a sound NIfTI header", f"shape {tuple(self.shape)}, offset {skip + size}", "mend its header")
        left = skip
        while left and (piece := self._file.read(min(PIECE, left))):
            left -= len(piece)
        if left:
            self._fail(f"voxels after byte {skip + size}", "the end of the file", "copy or download it again")

    def _fail(self, expected: str, got: str, remedy: str) -> None:
        raise BrokenFileError(self.path, Fault("file", expected, got, remedy))


def read_to_the_end(path: str | os.PathLike) -> None:
    """Reads a file, verifies its checksum if it is compressed, and the header and length if it is NIfTI.

    Raises:
        BrokenFileError: a ValueError in one line, with file, expectation, finding and remedy.

    Example::

        >>> read_to_the_end("no.nii.gz")
        Traceback (most recent call last):
        monai_scaleequiv.data._volume_file.BrokenFileError: no.nii.gz: expected a file, got none; restore it.
    """
    if not os.fspath(path).endswith(NIFTI):
        with _told(path), _open(path) as file:
            while file.read(PIECE):
                pass
        return
    with VolumeFile(path) as volume:
        for _ in volume.pieces():
            pass
        fault = volume.header_fault()
        if fault is not None:
            raise BrokenFileError(path, fault)


def read_facts(path: str | os.PathLike, label: bool = False) -> VolumeFacts:
    """Reads a file to its end; what is wrong with it becomes a part of the facts.

    Args:
        path: a NIfTI file.
        label: whether to count the values.

    Example::

        >>> str(read_facts("no.nii.gz").faults[0])
        'expected a file, got none; restore it.'
    """
    facts = VolumeFacts()
    try:
        with VolumeFile(path) as volume:
            facts.shape, facts.dtype, facts.unit = volume.shape, str(volume.dtype), volume.unit
            facts.affine, facts.pixdim, facts.has_qform = volume.affine.tolist(), volume.pixdim, volume.has_qform
            fault = dtype_fault(volume.dtype)
            facts.faults += [fault] if fault else []
            _collect(facts, volume, label)
    except BrokenFileError as error:
        facts.faults.insert(0, error.fault)
    return facts


def _collect(facts: VolumeFacts, volume: VolumeFile, label: bool) -> None:
    digest = blake2b(f"{volume.shape}{volume.dtype}".encode(), digest_size=16)
    counts: dict[float, int] = {}
    low, high = math.inf, -math.inf
    for piece in volume.pieces():
        digest.update(piece)
        if facts.faults:
            continue  # no real numbers
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
    facts.labels = [[value * slope + inter, counts[value]] for value in sorted(counts)[: MOST_LABELS + 1]]


def _count(voxels: np.ndarray, counts: dict[float, int]) -> None:
    # Label maps have long runs of one value: sorting the runs takes far less time than sorting the voxels.
    starts = np.flatnonzero(np.concatenate([[True], voxels[1:] != voxels[:-1]]))
    lengths = np.diff(starts, append=voxels.size)
    values, run = np.unique(voxels[starts], return_inverse=True)
    for value, count in zip(values.tolist(), np.bincount(run, weights=lengths).tolist(), strict=True):
        counts[value] = counts.get(value, 0) + int(count)


def _open(path: str | os.PathLike) -> IO[bytes]:
    return gzip.open(path) if os.fspath(path).endswith(".gz") else open(path, "rb")  # noqa: PTH123


@contextlib.contextmanager
def _told(path: str | os.PathLike) -> Iterator[None]:
    """Turns what the decompressor and the system raise, which often leave out the file, into one line with it."""
    again = "copy or download the file again"
    try:
        yield
    except EOFError:
        raise BrokenFileError(path, Fault("file", "a whole gzip stream", "one that is cut off", again)) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        got = f"a damaged one ({error})"
        raise BrokenFileError(path, Fault("file", "a sound gzip stream", got, again)) from None
    except FileNotFoundError:
        raise BrokenFileError(path, Fault("missing", "a file", "none", "restore it")) from None
    except OSError as error:
        got = error.strerror or str(error)
        raise BrokenFileError(path, Fault("unreadable", "a file that can be read", got, "allow or repair it")) from None
