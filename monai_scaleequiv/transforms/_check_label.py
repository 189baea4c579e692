"""Raises on label maps that do not belong to their image, or hold anything but the classes."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_scaleequiv.data import rules
from monai_scaleequiv.transforms._check_volume import affines_of, check_shape, name_of


class CheckLabeld(MapTransform):
    """Checks label maps: one channel, whole numbers of the classes, and the grid of their image.

    Labels within 1e-3 of a whole number, as resampling and scaled headers leave them, are rounded to it.

    Args:
        keys: keys of the label maps, channel-first, with or without a batch axis.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``.
        image_key: key of the image that they belong to.
        spatial_dims: number of spatial dimensions.
        tolerance: how far the corners of the two grids may lie apart, in mm; headers are rounded.
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
        num_classes: int,
        image_key: Hashable = "image",
        spatial_dims: int = 3,
        tolerance: float = rules.GRID_TOLERANCE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.image_key = image_key
        self.spatial_dims = spatial_dims
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            name = name_of(checked[key], key)
            check_shape(checked[key], 1, self.spatial_dims, name)
            self._check_grid(checked[key], checked[self.image_key], name)
            checked[key] = self._whole(checked[key], name)
        return checked

    def _check_grid(self, label: torch.Tensor, image: torch.Tensor, name: str) -> None:
        shapes = [tuple(volume.shape[-self.spatial_dims :]) for volume in (label, image)]
        other = name_of(image, self.image_key)
        rules.raise_first(name, rules.grid(shapes[0], None, shapes[1], None, other))
        for matrix, image_matrix in zip(affines_of(label), affines_of(image), strict=False):
            found = rules.grid(shapes[0], matrix, shapes[1], image_matrix, other, self.tolerance)
            rules.raise_first(name, found)

    def _whole(self, label: torch.Tensor, name: str) -> torch.Tensor:
        values = torch.unique(torch.as_tensor(label)).tolist()
        bad = sum(value != value or value in (float("inf"), -float("inf")) for value in values)
        rules.raise_first(name, rules.finite(bad), rules.labels(values, range(self.num_classes)))
        return label if all(value == round(value) for value in values) else label.round()
