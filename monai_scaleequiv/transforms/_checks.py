"""Raises on volumes and label maps that a network would turn into a wrong answer without a word."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, ensure_tuple

from monai_scaleequiv.data import rules


class CheckVolumed(MapTransform):
    """Checks channel-first volumes: channels, axes, finite values, affine, voxel size.

    Plain tensors and MetaTensors, as ``LoadImaged`` and ``EnsureChannelFirstd`` leave them or with a batch axis.

    Args:
        keys: keys of the volumes.
        channels: number of channels that each must have.
        spatial_dims: number of spatial dimensions that each must have.
        pixdim: voxel size that ``Spacingd`` will resample to, in mm, one per axis or one for all; None for none.
        max_voxels: how many voxels there may be after that; by default 2**29, which are 2 GiB as float32.
        fill: what to put in place of values that are not finite, with a warning: a number that float32 holds, or
            ``"min"`` for the lowest finite value. None raises.
        max_shear: largest cosine of the angle between two axes; ITK, for one, takes no grids that are not orthogonal.
        spacing_range: smallest and largest voxel size, in mm.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with file, expectation, finding and hint.

    Example::

        >>> volume = MetaTensor(torch.rand(1, 4, 4, 4))
        >>> CheckVolumed("image", channels=2)({"image": volume})
        Traceback (most recent call last):
        ValueError: image: expected 2 channel(s), got 1; choose the channel to use.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        spatial_dims: int = 3,
        pixdim: Sequence[float] | float | None = None,
        max_voxels: int = 2**29,
        fill: float | str | None = None,
        max_shear: float = rules.MAX_SHEAR,
        spacing_range: Sequence[float] = rules.SPACING_RANGE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if fill not in (None, "min") and not (isinstance(fill, Real) and abs(fill) <= torch.finfo(torch.float32).max):
            raise ValueError(f'fill: expected a finite number, "min" or None, got {fill!r}; choose one of them.')
        if len(spacing_range) != 2 or not 0 <= spacing_range[0] <= spacing_range[1]:
            raise ValueError(f"spacing_range: expected two rising sizes in mm, got {list(spacing_range)}; swap them.")
        sizes = ensure_tuple(pixdim) * (spatial_dims if isinstance(pixdim, Real) else 1) if pixdim is not None else ()
        fits = all(isinstance(size, Real) and 0 < float(size) < float("inf") for size in sizes)
        if pixdim is not None and not (fits and len(sizes) == spatial_dims):
            expected = f"{spatial_dims} finite numbers above 0"
            raise ValueError(f"pixdim: expected {expected}, got {pixdim}; give a voxel size in mm each.")
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.pixdim = sizes
        self.max_voxels = max_voxels
        self.fill = fill
        self.max_shear = max_shear
        self.spacing_range = tuple(spacing_range)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            volume, name, dims = checked[key], name_of(checked[key], key), self.spatial_dims
            _check_shape(volume, self.channels, dims, name)
            for matrix in _affines_of(volume):
                rules.raise_first(name, rules.affine(matrix, self.max_shear))
                rules.raise_first(name, rules.spacing(rules.spacing_of(matrix)[:dims], self.spacing_range))
                if self.pixdim:
                    rules.raise_first(name, rules.growth(volume.shape[-dims:], matrix, self.pixdim, self.max_voxels))
            checked[key] = self._finite(volume, name)
        return checked

    def _finite(self, volume: torch.Tensor, name: str) -> torch.Tensor:
        finite = torch.isfinite(volume)
        bad = int((~finite).sum())
        if not bad:
            return volume
        if self.fill is None or bad == volume.numel():
            rules.raise_first(name, rules.finite(bad))
        value = float(volume[finite].min()) if self.fill == "min" else float(self.fill or 0)
        warnings.warn(f"{name}: {bad} NaN or infinite voxel(s) replaced by {value:g}.", stacklevel=2)
        filled = volume.clone()
        filled[~finite] = value
        return filled


class CheckLabeld(MapTransform):
    """Checks label maps: one channel, whole numbers of the classes, and the grid of their image.

    Labels within 1e-3 of a whole number, as resampling and scaled headers leave them, are rounded to it.

    Args:
        keys: keys of the label maps, channel-first, with or without a batch axis.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``, or these numbers.
        image_key: key of the image that they belong to.
        spatial_dims: number of spatial dimensions.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with file, expectation, finding and hint.

    Example::

        >>> from monai.data import MetaTensor
        >>> image, label = MetaTensor(torch.rand(1, 4, 4, 4)), MetaTensor(torch.ones(1, 4, 4, 5))
        >>> CheckLabeld("label", num_classes=2)({"image": image, "label": label})
        Traceback (most recent call last):
        ValueError: label: expected the shape (4, 4, 4) of image, got (4, 4, 5); pair the right files.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: Sequence[int] | int,
        image_key: Hashable = "image",
        spatial_dims: int = 3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.labels = range(num_classes) if isinstance(num_classes, int) else tuple(num_classes)
        self.image_key = image_key
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            name = name_of(checked[key], key)
            _check_shape(checked[key], 1, self.spatial_dims, name)
            self._check_grid(checked[key], checked[self.image_key], name)
            checked[key] = self._whole(checked[key], name)
        return checked

    def _check_grid(self, label: torch.Tensor, image: torch.Tensor, name: str) -> None:
        shapes = [tuple(volume.shape[-self.spatial_dims :]) for volume in (label, image)]
        other = name_of(image, self.image_key)
        rules.raise_first(name, rules.grid(shapes[0], None, shapes[1], None, other))
        for matrix, image_matrix in zip(_affines_of(label), _affines_of(image), strict=False):
            rules.raise_first(name, rules.grid(shapes[0], matrix, shapes[1], image_matrix, other))

    def _whole(self, label: torch.Tensor, name: str) -> torch.Tensor:
        values = torch.unique(torch.as_tensor(label)).tolist()
        bad = sum(not math.isfinite(value) for value in values)
        rules.raise_first(name, rules.finite(bad), rules.labels(values, self.labels))
        return label if all(value == round(value) for value in values) else label.round()


def _check_shape(volume: torch.Tensor, channels: int, spatial_dims: int, name: str) -> None:
    """Raises unless a volume is (channels, ...) or (B, channels, ...) with so many spatial axes."""
    shape = tuple(volume.shape[1:]) if has_batch_axis(volume, spatial_dims) else tuple(volume.shape)
    rules.raise_first(name, rules.axes(shape[1:], spatial_dims), rules.channels(shape[0], channels))


def has_batch_axis(volume: torch.Tensor, spatial_dims: int) -> bool:
    """Whether the first axis counts volumes; a file of 5 axes, which has as many, is a MetaTensor without a batch."""
    if isinstance(volume, MetaTensor) and not volume.is_batch and volume.shape[0] != 1:
        return False
    return volume.dim() == spatial_dims + 2


def name_of(volume: torch.Tensor, key: Hashable) -> str:
    """Key of a volume, with the file in front where it comes from one."""
    file = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") if isinstance(volume, MetaTensor) else ""
    return f"{', '.join(map(str, ensure_tuple(file)))}, {key}" if file else str(key)


def _affines_of(volume: torch.Tensor) -> list[np.ndarray]:
    """The affines of a volume, or of those of a batch; none where it has none."""
    if not isinstance(volume, MetaTensor):
        return []
    affine = volume.affine.cpu().numpy()
    return list(affine.reshape(-1, *affine.shape[-2:]))
