"""The scale map that a network gives as its last channel, taken off the prediction."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

__all__ = ["TakeScaleMapd"]


class TakeScaleMapd(MapTransform):
    """Moves the last channel of a prediction, as ``ScalePyramid(with_scale_map=True)`` adds it, to a key of its own.

    The map keeps the prediction's metadata, so that it can be inverted and saved like it.

    Args:
        keys: keys of the predictions, channel-first.
        scale_key: key of the map, or one for each of ``keys``.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: when a prediction has no channel beside the map, or there is something at ``scale_key`` already.

    Example::

        >>> taken = TakeScaleMapd("pred")({"pred": torch.rand(4, 8, 8, 8)})
        >>> taken["pred"].shape, taken["scale_map"].shape
        (torch.Size([3, 8, 8, 8]), torch.Size([1, 8, 8, 8]))
    """

    def __init__(
        self, keys: KeysCollection, scale_key: KeysCollection = "scale_map", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scale_key = ensure_tuple_rep(scale_key, len(self.keys))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        taken = dict(data)
        for key, scale_key in self.key_iterator(taken, self.scale_key):
            prediction = taken[key]
            if prediction.shape[0] < 2:
                raise ValueError(
                    f"{key}: expected classes and a scale map, got {prediction.shape[0]} channel(s); "
                    "set with_scale_map=True in ScalePyramid."
                )
            if scale_key in taken:
                raise ValueError(f"{scale_key}: expected no such key, got one already; choose another scale_key.")
            taken[key], taken[scale_key] = prediction[:-1], prediction[-1:]
        return taken
