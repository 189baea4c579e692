"""What can be wrong with a NIfTI header: fields that contradict each other, and those that readers pass over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data._faults import WARNING, Fault, grid_fault

__all__ = ["MAX_VOXELS", "doubts", "place_fault", "storage_fault", "unit_fault", "voxels_fault"]

MAX_VOXELS = 2**31  # 8 GiB as float32; a CT of 1200 x 1200 x 900 voxels has 60 % of it
FARTHEST = 1e6  # mm; beyond it float32, in which headers keep the place, has steps of 0.06 mm and more
HIGHEST_CODE = 5
FIRST_VOXEL = {348: 352, 540: 544}  # after the header and the four bytes that announce extensions


def storage_fault(header: nib.Nifti1Header) -> Fault | None:
    """Fields of the header that contradict its data type and its own length, or have no meaning at all.

    Example::

        >>> header = nib.Nifti1Header()
        >>> header["bitpix"] = 16
        >>> str(storage_fault(header))
        'expected bitpix 32 for float32, got 16; copy it again or mend its header.'
    """
    remedy = "copy it again or mend its header"
    dtype, bits = header.get_data_dtype(), int(header["bitpix"])
    if bits != 8 * dtype.itemsize:
        return Fault("file", f"bitpix {8 * dtype.itemsize} for {dtype}", str(bits), remedy)
    first, offset = FIRST_VOXEL[int(header["sizeof_hdr"])], int(header.get_data_offset())
    if offset < first:
        return Fault("file", f"voxels from byte {first} on", f"an offset of {offset}", remedy)
    for name in ("sform_code", "qform_code"):
        if not 0 <= int(header[name]) <= HIGHEST_CODE:
            return Fault("file", f"{name} from 0 to {HIGHEST_CODE}", str(int(header[name])), remedy)
    return None


def place_fault(affine: np.ndarray) -> Fault | None:
    """A volume that lies farther away than anything that is scanned."""
    far = float(np.abs(np.asarray(affine, dtype=np.float64)[:-1, -1]).max())
    if not far > FARTHEST:
        return None
    return Fault("place", f"a place within {FARTHEST:g} mm", f"one {far:.3g} mm away", "mend the affine in its header")


def unit_fault(unit: str) -> Fault | None:
    """A unit of length that readers pass over, taking its numbers for mm; many headers name none, and mean mm."""
    if unit in ("mm", "unknown"):
        return None
    return Fault("unit", "mm as unit of length", unit, "convert its header to mm")


def voxels_fault(shape: Sequence[int], max_voxels: int = MAX_VOXELS) -> Fault | None:
    """A volume that would fill the memory as soon as it is loaded."""
    voxels = math.prod(shape)
    if voxels <= max_voxels:
        return None
    got = f"{' x '.join(map(str, shape))} = {voxels:.3g} ({voxels * 4 / 2**30:.3g} GiB as float32)"
    return Fault("voxels", f"at most {max_voxels:.3g} voxels", got, "split it, or raise max_voxels of CheckFiled")


def doubts(header: nib.Nifti1Header) -> list[Fault]:
    """Warnings of what sound files may have, too, but which readers understand differently.

    Example::

        >>> str(doubts(nib.Nifti1Header())[0])
        'expected sform_code or qform_code above 0, got 0 for both: readers guess the directions; write an affine ...
    """
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        got = "0 for both: readers guess the directions"
        return [Fault("codes", "sform_code or qform_code above 0", got, "write an affine into its header", WARNING)]
    if not int(header["sform_code"]) or not int(header["qform_code"]):
        return []
    remedy = "set the code of the wrong one to 0"
    try:
        qform = header.get_qform()
    except (HeaderDataError, ValueError) as error:
        got = f"one where {' '.join(str(error).split())}"
        return [Fault("forms", "a qform that can be read beside the sform", got, remedy, WARNING)]
    shape = [*header.get_data_shape(), 1, 1, 1][:3]
    fault = grid_fault(shape, qform, shape, header.get_sform(), "sform")
    if fault is None:
        return []
    got = f"{fault.got}: readers choose between them"
    return [Fault("forms", "the qform on the sform's grid", got, remedy, WARNING)]
