"""Hausdorff distance in millimetres, whatever the voxel size of each case."""

from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric


class SpacingHausdorffDistanceMetric(HausdorffDistanceMetric):
    """MONAI's Hausdorff distance with the voxel size that each label's affine has.

    Shape:
        lists of one-hot (C, D, H, W) predictions and labels; labels are MetaTensors.

    Raises:
        ValueError: when a label is not a MetaTensor.

    Example::

        >>> mask = MetaTensor(torch.ones(2, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
        >>> SpacingHausdorffDistanceMetric(include_background=False, percentile=95)([mask], [mask])
        tensor([[0.]])
    """

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        distances: list[Any] = []
        for prediction, label in zip(y_pred, y, strict=True):
            if not isinstance(label, MetaTensor):
                raise ValueError(f"expected labels as MetaTensor, for their voxel size, got {type(label).__name__}.")
            pair = torch.as_tensor(prediction)[None], label.as_tensor()[None]
            distances.append(super().__call__(*pair, spacing=[float(p) for p in label.pixdim], **kwargs))
        return torch.cat(distances)
