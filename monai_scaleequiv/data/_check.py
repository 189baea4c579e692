"""Refuses volumes that a network would turn into a wrong answer without a word."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

__all__ = ["CheckLabeld", "CheckVolumed"]


class CheckVolumed(MapTransform):
    """Checks a loaded channel-first volume: channels, axes, finite values, invertible affine.

    Args:
        keys: keys of the volumes.
        channels: number of channels that each must have.
        spatial_dims: number of spatial dimensions that each must have.
        remedy: what the user can do about values that are not finite.
        allow_missing_keys: whether to pass over keys that are not there.

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
        remedy: str = "replace them, for example by the volume's minimum",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.remedy = remedy

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            self._check(data[key], f"{_file_of(data[key])}{key}")
        return dict(data)

    def _check(self, volume: torch.Tensor, name: str) -> None:
        if volume.dim() != self.spatial_dims + 1:
            raise ValueError(
                f"{name}: expected {self.spatial_dims} spatial axes, got shape {tuple(volume.shape[1:])}; "
                "split the file into single volumes."
            )
        if volume.shape[0] != self.channels:
            raise ValueError(
                f"{name}: expected {self.channels} channel(s), got {volume.shape[0]}; choose the channel to use."
            )
        bad = int((~torch.isfinite(volume)).sum())
        if bad:
            raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite voxel(s); {self.remedy}.")
        if isinstance(volume, MetaTensor) and not _is_invertible(volume.affine):
            raise ValueError(f"{name}: expected an invertible affine, got {volume.affine.tolist()}; mend its header.")


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
        tolerance: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.image_key = image_key
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            label, image = data[key], data[self.image_key]
            name = f"{_file_of(label)}{key}"
            if label.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{name}: expected the image's shape {tuple(image.shape[1:])}, got {tuple(label.shape[1:])}; "
                    "pair the right files."
                )
            self._check_grid(label, image, name)
            self._check_values(label, name)
        return dict(data)

    def _check_grid(self, label: torch.Tensor, image: torch.Tensor, name: str) -> None:
        if not (isinstance(label, MetaTensor) and isinstance(image, MetaTensor)):
            return
        corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0]) for n in image.shape[1:]), torch.ones(1)).double()
        apart = float(((label.affine - image.affine).double() @ corners.T).norm(dim=0).max())
        if not apart <= self.tolerance:
            raise ValueError(
                f"{name}: expected the image's grid, got one whose corners are up to {apart:.3g} mm away; "
                "pair the right files or mend the header."
            )

    def _check_values(self, label: torch.Tensor, name: str) -> None:
        values = torch.unique(torch.as_tensor(label))
        allowed = (values >= 0) & (values < self.num_classes) & (values == values.round())
        if not allowed.all():
            raise ValueError(
                f"{name}: expected whole numbers from 0 to {self.num_classes - 1}, got {values[~allowed][0].item():g}; "
                "change the labels or num_classes."
            )


def _file_of(volume: torch.Tensor) -> str:
    # "FILE, " to stand before the key, or nothing where the volume does not come from a file
    file = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") if isinstance(volume, MetaTensor) else ""
    return f"{file}, " if file else ""


def _is_invertible(affine: torch.Tensor) -> bool:
    # Relative to the largest entry, so that the unit does not matter.
    axes = affine[:-1, :-1].double()
    return bool(torch.isfinite(affine).all()) and bool(torch.linalg.det(axes).abs() > 1e-12 * axes.abs().max() ** 3)
