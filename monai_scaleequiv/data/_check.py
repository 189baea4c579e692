"""Refuses volumes that a network would turn into a wrong answer without a word."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

__all__ = ["CheckVolumed"]


class CheckVolumed(MapTransform):
    """Checks a loaded channel-first volume: channels, axes, finite values, invertible affine.

    Args:
        keys: keys of the volumes.
        channels: number of channels that each must have.
        spatial_dims: number of spatial dimensions that each must have.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: in one line with file, expectation, finding and remedy.

    Example::

        >>> volume = MetaTensor(torch.rand(1, 4, 4, 4))
        >>> CheckVolumed("image")({"image": volume})["image"].shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self, keys: KeysCollection, channels: int = 1, spatial_dims: int = 3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        for key in self.key_iterator(data):
            volume = data[key]
            meta = volume.meta if isinstance(volume, MetaTensor) else {}
            self._check(volume, str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)))
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
            raise ValueError(
                f"{name}: expected finite values, got {bad} NaN or infinite voxel(s); replace them, "
                "for example by the volume's minimum."
            )
        if isinstance(volume, MetaTensor) and not _is_invertible(volume.affine):
            raise ValueError(f"{name}: expected an invertible affine, got {volume.affine.tolist()}; mend its header.")


def _is_invertible(affine: torch.Tensor) -> bool:
    return bool(torch.isfinite(affine).all()) and abs(float(torch.linalg.det(affine))) > 1e-12
