"""Refuses volumes that a network would turn into a wrong answer without a word."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

from monai_scaleequiv.data._faults import (
    GRID_TOLERANCE,
    MAX_SHEAR,
    SPACING_RANGE,
    affine_fault,
    axes_fault,
    channels_fault,
    finite_fault,
    grid_fault,
    label_fault,
    refuse,
    spacing_fault,
    spacing_of,
)

__all__ = ["CheckGridd", "CheckLabeld", "CheckVolumed", "affine_of", "name_of"]


class CheckVolumed(MapTransform):
    """Checks a loaded channel-first volume: channels, axes, finite values, affine, voxel size.

    Args:
        keys: keys of the volumes.
        channels: number of channels that each must have.
        spatial_dims: number of spatial dimensions that each must have.
        remedy: what the user can do about values that are not finite.
        allow_missing_keys: whether to pass over keys that are not there.
        fill: what to put in place of values that are not finite, with a warning: a number that float32 holds, or
            ``"min"`` for the lowest finite value. None refuses them.
        max_shear: largest cosine of the angle between two axes; ITK, for one, refuses grids that are not orthogonal.
        spacing_range: smallest and largest voxel size, in mm.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> volume = MetaTensor(torch.rand(1, 4, 4, 4))
        >>> CheckVolumed("image")({"image": volume})["image"].shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        spatial_dims: int = 3,
        remedy: str = 'replace them, for example with CheckVolumed(fill="min")',
        allow_missing_keys: bool = False,
        fill: float | str | None = None,
        max_shear: float = MAX_SHEAR,
        spacing_range: Sequence[float] = SPACING_RANGE,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if fill not in (None, "min") and not (isinstance(fill, Real) and abs(fill) <= torch.finfo(torch.float32).max):
            raise ValueError(f'fill: expected a finite number, "min" or None, got {fill!r}; choose one of them.')
        if len(spacing_range) != 2 or not 0 <= spacing_range[0] <= spacing_range[1]:
            raise ValueError(f"spacing_range: expected two rising sizes in mm, got {list(spacing_range)}; swap them.")
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.remedy = remedy
        self.fill = fill
        self.max_shear = max_shear
        self.spacing_range = tuple(spacing_range)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self._check(data[key], name_of(data[key], key))
        return data

    def _check(self, volume: torch.Tensor, name: str) -> torch.Tensor:
        refuse(name, axes_fault(tuple(volume.shape[1:]), self.spatial_dims))
        refuse(name, channels_fault(volume.shape[0], self.channels))
        affine = affine_of(volume)
        if affine is not None:
            refuse(name, affine_fault(affine, self.max_shear))
            refuse(name, spacing_fault(spacing_of(affine)[: self.spatial_dims], self.spacing_range))
        finite = torch.isfinite(volume)
        bad = int((~finite).sum())
        if not bad:
            return volume
        if self.fill is None or bad == volume.numel():
            refuse(name, finite_fault(bad, self.remedy))
        value = float(volume[finite].min()) if self.fill == "min" else float(self.fill)
        warnings.warn(f"{name}: {bad} NaN or infinite voxel(s) replaced by {value:g}.", stacklevel=2)
        filled = volume.clone()
        filled[~finite] = value
        return filled


class CheckGridd(MapTransform):
    """Checks that loaded channel-first volumes lie on the grid of another one: same shape, same place.

    Args:
        keys: keys of the volumes.
        reference_key: key of the volume whose grid counts.
        tolerance: how far the corners of the two grids may lie apart, in mm; headers are rounded.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with both files, expectation, finding and remedy.

    Example::

        >>> image, label = MetaTensor(torch.rand(1, 4, 4, 4)), MetaTensor(torch.ones(1, 4, 4, 5))
        >>> CheckGridd("label")({"image": image, "label": label})
        Traceback (most recent call last):
        ValueError: label: expected the image's shape (4, 4, 4), got (4, 4, 5); pair the right files.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: Hashable = "image",
        tolerance: float = GRID_TOLERANCE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            _refuse_another_grid(data[key], data[self.reference_key], key, self.reference_key, self.tolerance)
        return dict(data)


class CheckLabeld(MapTransform):
    """Checks a loaded label map against its image and the list of classes.

    Args:
        keys: keys of the label maps.
        image_key: key of the image that they belong to.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``.
        tolerance: how far the corners of the two grids may lie apart, in mm; headers are rounded.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> image, label = MetaTensor(torch.rand(1, 4, 4, 4)), MetaTensor(torch.ones(1, 4, 4, 4))
        >>> CheckLabeld("label", num_classes=2)({"image": image, "label": label})["label"].shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        image_key: Hashable = "image",
        tolerance: float = GRID_TOLERANCE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.image_key = image_key
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            label = data[key]
            _refuse_another_grid(label, data[self.image_key], key, self.image_key, self.tolerance)
            values = torch.unique(torch.as_tensor(label)).tolist()
            refuse(name_of(label, key), label_fault(values, range(self.num_classes)))
        return dict(data)


def name_of(volume: torch.Tensor, key: Hashable) -> str:
    """Key of a volume, with the file in front where it comes from one.

    Example::

        >>> name_of(torch.rand(1, 4, 4, 4), "image")
        'image'
    """
    file = _file_of(volume)
    return f"{file}, {key}" if file else str(key)


def affine_of(volume: torch.Tensor) -> np.ndarray | None:
    """The affine of a volume, None where it has none."""
    return volume.affine.cpu().numpy() if isinstance(volume, MetaTensor) else None


def _file_of(volume: torch.Tensor) -> str:
    return str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(volume, MetaTensor) else ""


def _refuse_another_grid(
    volume: torch.Tensor, other: torch.Tensor, key: Hashable, other_key: Hashable, tolerance: float
) -> None:
    grid = tuple(volume.shape[1:]), affine_of(volume)
    fault = grid_fault(*grid, tuple(other.shape[1:]), affine_of(other), str(other_key), _file_of(other), tolerance)
    refuse(name_of(volume, key), fault)
