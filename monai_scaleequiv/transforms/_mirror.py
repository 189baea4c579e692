"""The head within the image, and its other side as channels beside its own."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_scaleequiv.data import rules
from monai_scaleequiv.transforms._checks import name_of


class MirrorChannelsd(MapTransform):
    """MONAI's ``CopyItemsd``, ``Flipd``, ``ConcatItemsd`` and ``DeleteItemsd`` in one: appends the mirror image.

    For anatomy that is nearly symmetric, such as the brain, where what differs from the other side is a hint to a
    lesion. The image is to be cropped about the plane of symmetry, as by ``CropForegroundd``. Changes neither grid nor
    metadata, so that there is nothing to invert.

    Args:
        keys: keys of the images (C, ...), which become (2C, ...), with or without a batch axis in front.
        spatial_axis: axis that is mirrored; the first is left to right where axes are brought to RAS.
        spatial_dims: number of spatial dimensions.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: when there is no such axis.

    Example::

        >>> MirrorChannelsd("image", spatial_dims=1)({"image": torch.tensor([[1.0, 2.0, 3.0]])})["image"].tolist()
        [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]
    """

    def __init__(
        self, keys: KeysCollection, spatial_axis: int = 0, spatial_dims: int = 3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= spatial_axis < spatial_dims:
            got = f"{spatial_axis}; choose one of them"
            raise ValueError(f"spatial_axis: expected an axis from 0 to {spatial_dims - 1}, got {got}.")
        self.spatial_axis, self.spatial_dims = spatial_axis, spatial_dims

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        done = dict(data)
        for key in self.key_iterator(done):
            channels = -self.spatial_dims - 1
            done[key] = torch.cat([done[key], done[key].flip(channels + 1 + self.spatial_axis)], channels)
        return done


def foreground(image: torch.Tensor) -> torch.Tensor:
    """Where an image is not 0: a ``select_fn`` for ``CropForegroundd``, which would leave nothing of an empty one.

    Args:
        image: an image (C, ...).

    Raises:
        ValueError: when it is 0 everywhere.

    Example::

        >>> foreground(torch.tensor([[0.0, -1.5]])).tolist()
        [[False, True]]
    """
    inside = image != 0
    if not inside.any():
        hint = "look at the file"
        rules.raise_first(name_of(image, "image"), rules.Finding("empty", "voxels that vary", "none", hint))
    return inside
