"""Guards around loading and resampling: a damaged file, and a volume that would outgrow the memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple, ensure_tuple_rep

from monai_scaleequiv.data._check import affine_of, name_of
from monai_scaleequiv.data._faults import affine_fault, growth_fault, refuse, resampled_shape
from monai_scaleequiv.data._volume_file import BrokenFileError, read_to_the_end

__all__ = ["CheckFiled", "CheckSpacingd"]


class CheckFiled(MapTransform):
    """Reads each file to its end before it is loaded; stands before ``LoadImaged``, whichever reader that has.

    The checksum of a ``.gz`` file is verified, which readers do not do: ITK takes half a file, and a flipped byte goes
    unseen. A NIfTI file also needs as many voxels as its header promises, real numbers for voxels, an invertible affine
    and a voxel size (pixdim) that fits it; MONAI's reader replaces an affine that does not. Other files are only read,
    folders passed over. Each file is read once more, without its voxels being kept.

    Args:
        keys: keys of the paths; several paths under one key are fine.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> CheckFiled("image")({"image": "no.nii.gz"})
        Traceback (most recent call last):
        ValueError: no.nii.gz: expected a file, got none; restore it.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            for path in ensure_tuple(data[key]):
                if not isinstance(path, (str, os.PathLike)):
                    raise ValueError(f"{key}: expected a path, got {type(path).__name__}; put this before LoadImaged.")
                if not Path(path).is_dir():
                    _read(path)
        return dict(data)


class CheckSpacingd(MapTransform):
    """Refuses volumes that ``Spacingd`` would blow up; stands right before it, with its ``pixdim``.

    A header that says 1000 instead of 1 mm turns 16 voxels into 15001 along an axis.

    Args:
        keys: keys of the volumes, channel-first and with an affine.
        pixdim: voxel size that they will be resampled to, in mm, one per axis or one for all.
        max_voxels: how many voxels the outcome may have; by default 2**29, which are 2 GiB as float32.
        diagonal: as in ``Spacingd``.
        allow_missing_keys: whether to pass over keys that are not there.

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
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if max_voxels < 1:
            raise ValueError(f"max_voxels: expected at least 1, got {max_voxels}; give a larger number.")
        self.pixdim = pixdim
        self.max_voxels = max_voxels
        self.diagonal = diagonal

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            name, affine, shape = name_of(data[key], key), affine_of(data[key]), tuple(data[key].shape[1:])
            if affine is None:
                raise ValueError(f"{name}: expected a volume with an affine, got a plain tensor; use LoadImaged.")
            refuse(name, affine_fault(affine, max_shear=float("inf")))
            resampled = resampled_shape(shape, affine, self._pixdim(len(shape)), self.diagonal)
            refuse(name, growth_fault(shape, resampled, self.max_voxels))
        return dict(data)

    def _pixdim(self, axes: int) -> list[float]:
        return list(ensure_tuple_rep(self.pixdim, axes) if isinstance(self.pixdim, (int, float)) else self.pixdim)


def _read(path: str | os.PathLike) -> None:
    try:
        read_to_the_end(path)
    except BrokenFileError as error:
        # Workers of a data loader rebuild an exception from its text alone.
        raise ValueError(str(error)) from None
