"""A NIfTI file read once from its first byte to its last, in pieces, with its checksum verified."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data._faults import Fault, affine_fault, dtype_fault, pixdim_fault
from monai_scaleequiv.data._header_faults import MAX_VOXELS, place_fault, storage_fault, unit_fault, voxels_fault
from monai_scaleequiv.data._opening import BrokenFileError, is_nifti, open_file, told

__all__ = ["VolumeFile", "read_to_the_end"]

PIECE = 1 << 22  # bytes
MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0")}  # some leave the line ends out
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


class VolumeFile:
    """An open NIfTI file: its header, and once its voxels in pieces.

    Example::

        >>> with VolumeFile("no.nii.gz") as file:  # doctest: +SKIP
        ...     file.header.get_data_shape()
        (16, 16, 16)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        with told(path):
            self._file = open_file(path)
        try:
            with told(path):
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
        with told(self.path):
            left = total = math.prod(self.shape) * self.dtype.itemsize
            while left:
                piece = self._file.read(min(PIECE - PIECE % self.dtype.itemsize, left))
                if len(piece) % self.dtype.itemsize or not piece:
                    self._fail(f"{total} bytes of voxels", f"{total - left + len(piece)}", "copy or download it again")
                left -= len(piece)
                yield piece
            while rest := self._file.read(PIECE):
                if rest.count(0) < len(rest):  # zeros are padding; anything else is what the header leaves out
                    self._fail(f"{total} bytes of voxels", "more of them", "copy it again or mend its header")

    def header_fault(self, max_voxels: int = MAX_VOXELS) -> Fault | None:
        """What readers would pass over: no real numbers for voxels, or a place in space that each reads in its way."""
        return (
            dtype_fault(self.dtype)
            or affine_fault(self.affine, max_shear=math.inf)
            or pixdim_fault(self.pixdim, self.affine, self.has_qform)
            or place_fault(self.affine)
            or unit_fault(self.unit)
            or voxels_fault(self.shape, max_voxels)
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
            if self.header["pixdim"][0] == 0:  # the norm has 1 or -1 there, and readers take this for 1
                self.header["pixdim"][0] = 1
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
        if min(self.shape, default=0) < 1:
            self._fail("a sound NIfTI header", f"shape {tuple(self.shape)}", "mend its header")
        fault = storage_fault(self.header)
        if fault is not None:
            raise BrokenFileError(self.path, fault)
        left = skip
        while left and (piece := self._file.read(min(PIECE, left))):
            left -= len(piece)
        if left:
            self._fail(f"voxels after byte {skip + size}", "the end of the file", "copy or download it again")

    def _fail(self, expected: str, got: str, remedy: str) -> None:
        raise BrokenFileError(self.path, Fault("file", expected, got, remedy))


def read_to_the_end(path: str | os.PathLike, max_voxels: int = MAX_VOXELS) -> None:
    """Reads a file, verifies its checksum if it is compressed, and the header and length if it is NIfTI.

    Args:
        path: the file.
        max_voxels: how many voxels a NIfTI file may have.

    Raises:
        BrokenFileError: a ValueError in one line, with file, expectation, finding and remedy.

    Example::

        >>> read_to_the_end("no.nii.gz")
        Traceback (most recent call last):
        monai_scaleequiv.data._opening.BrokenFileError: no.nii.gz: expected a file, got none; restore it.
    """
    if not is_nifti(path):
        with told(path), open_file(path) as file:
            while file.read(PIECE):
                pass
        return
    with VolumeFile(path) as volume:
        fault = volume.header_fault(max_voxels)
        if fault is not None:
            raise BrokenFileError(path, fault)
        for _ in volume.pieces():
            pass
