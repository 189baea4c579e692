"""Resampling to a voxel size, beside other entries of the data."""

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import Spacingd


class OwnKeysSpacingd(Spacingd):
    """MONAI's ``Spacingd``, which sees its own keys alone.

    That of MONAI 1.6.1 updates all entries whose names begin with ``image_`` as metadata of ``image``, and fails on the
    path that MONAI Label 0.8.5 keeps as ``image_path``.

    Example::

        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.rand(1, 4, 4, 4), meta={"filename_or_obj": "a.nii"})
        >>> resample = OwnKeysSpacingd("image", pixdim=(2, 2, 2))
        >>> resample({"image": image, "image_path": "a.nii"})["image_path"]
        'a.nii'
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        return {**data, **super().__call__({key: data[key] for key in self.keys if key in data}, lazy)}
