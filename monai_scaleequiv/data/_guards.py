"""Guards around loading and resampling: a damaged file, and a volume that would outgrow the memory."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from monai_scaleequiv.data._check import affine_of, name_of
from monai_scaleequiv.data._faults import affine_fault, axes_fault, growth_fault, refuse, resampled_shape
from monai_scaleequiv.data._header_faults import MAX_VOXELS
from monai_scaleequiv.data._nifti_file import read_to_the_end
from monai_scaleequiv.data._opening import BrokenFileError, is_nifti

__all__ = ["CheckFiled", "CheckSpacingd"]


class CheckFiled(MapTransform):
    """Reads each file to its end before it is loaded; stands before ``LoadImaged``, whichever reader that has.

    The checksum of a ``.gz`` file is verified, which readers do not do: ITK takes half a file, and a flipped byte goes
    unseen. A NIfTI file also needs as many voxels as its header promises, and no more (zeros after them are padding);
    a bitpix that fits the data type; real numbers for voxels; an invertible affine within 1000 m of the origin and a
    voxel size (pixdim) that fits it, for MONAI's reader replaces an affine that does not; and mm as unit of length, or
    none. Other files are only read, folders passed over. Each file is read once more, without its voxels being kept.

    Args:
        keys: keys of the paths; several paths under one key are fine.
        allow_missing_keys: whether to pass over keys that are not there.
        max_voxels: how many voxels a NIfTI file may have. A few packed megabytes can hold a volume that fills the
            memory as soon as it is loaded. By default 2**31, which are 8 GiB as float32: enough for a CT of
            1200 x 1200 x 900; less is wise where memory is less.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> CheckFiled("image")({"image": "no.nii.gz"})
        Traceback (most recent call last):
        ValueError: no.nii.gz: expected a file, got none; restore it.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__(keys, allow_missing_keys)
        self.max_voxels = _at_least_one(max_voxels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            for path in ensure_tuple(data[key]):
                if not isinstance(path, (str, os.PathLike)):
                    raise ValueError(f"{key}: expected a path, got {type(path).__name__}; put this before LoadImaged.")
                if is_nifti(path) or not Path(path).is_dir():
                    _read(path, self.max_voxels)
        return dict(data)


class CheckSpacingd(MapTransform):
    """Refuses volumes that ``Spacingd`` would blow up; stands right before it, with its ``pixdim``.

    A header that says 1000 instead of 1 mm turns 16 voxels into 15001 along an axis.

    Args:
        keys: keys of the volumes, channel-first and with an affine.
        pixdim: voxel size that they will be resampled to, in mm, one per axis or one for all. ``Spacingd`` keeps the
            present one for 0 and -1, and repeats the last for axes without one; here all have to be given.
        max_voxels: how many voxels the outcome may have; by default 2**29, which are 2 GiB as float32.
        diagonal: as in ``Spacingd``.
        allow_missing_keys: whether to pass over keys that are not there.
        spatial_dims: number of spatial dimensions of the volumes.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> from monai.data import MetaTensor
        >>> volume = MetaTensor(torch.rand(1, 16, 16, 16), affine=torch.diag(torch.tensor([90.0, 90.0, 90.0, 1.0])))
        >>> CheckSpacingd("image", pixdim=0.5)({"image": volume})
        Traceback (most recent call last):
        ValueError: image: expected at most 5.37e+08 voxels after resampling, got 2701 x 2701 x 2701 = ...
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float] | float,
        max_voxels: int = 2**29,
        diagonal: bool = False,
        allow_missing_keys: bool = False,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = _voxel_size(pixdim, spatial_dims)
        self.max_voxels = _at_least_one(max_voxels)
        self.spatial_dims = spatial_dims
        self.diagonal = diagonal

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            name, affine, shape = name_of(data[key], key), affine_of(data[key]), tuple(data[key].shape[1:])
            if affine is None:
                raise ValueError(f"{name}: expected a volume with an affine, got a plain tensor; use LoadImaged.")
            refuse(name, axes_fault(shape, self.spatial_dims))
            refuse(name, affine_fault(affine, max_shear=math.inf))
            with np.errstate(invalid="ignore"):
                resampled = resampled_shape(shape, affine, self.pixdim, self.diagonal)
            # A size that no integer holds comes back as a negative one.
            resampled = [size if size > 0 else sys.maxsize for size in resampled]
            refuse(name, growth_fault(shape, resampled, self.max_voxels))
        return dict(data)


def _voxel_size(pixdim: Sequence[float] | float, axes: int) -> list[float]:
    sizes = list(ensure_tuple(pixdim)) * (axes if isinstance(pixdim, Real) else 1)
    if len(sizes) == axes and all(isinstance(size, Real) and 0 < size < math.inf for size in sizes):
        return [float(size) for size in sizes]
    raise ValueError(f"pixdim: expected {axes} finite numbers above 0, got {pixdim}; give a voxel size in mm each.")


def _at_least_one(max_voxels: int) -> int:
    if not max_voxels >= 1:
        raise ValueError(f"max_voxels: expected at least 1, got {max_voxels}; give a larger number.")
    return max_voxels


def _read(path: str | os.PathLike, max_voxels: int) -> None:
    try:
        read_to_the_end(path, max_voxels)
    except BrokenFileError as error:
        # Workers of a data loader rebuild an exception from its text alone.
        raise ValueError(str(error)) from None
