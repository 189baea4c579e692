"""The voxel size of each batch handed to the network: inference in windows, for one, drops it from the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import default_prepare_batch
from monai.engines.utils import PrepareBatch
from monai.utils import CommonKeys

__all__ = ["PrepareBatchSpacing"]


class PrepareBatchSpacing(PrepareBatch):
    """Prepares batches for networks that are called as ``network(image, spacing=[...])``, mm per axis.

    For ``SupervisedEvaluator(prepare_batch=...)`` and ``SupervisedTrainer``. The voxel size is read from the affine of
    ``batch["image"]``, in the order of the tensor's axes.

    Raises:
        ValueError: when the image is not a MetaTensor, or the images of a batch differ in voxel size.

    Example::

        >>> image = MetaTensor(torch.rand(1, 1, 4, 4, 4), affine=torch.diag(torch.tensor([0.5, 1.0, 2.0, 1.0])))
        >>> PrepareBatchSpacing()({"image": image})[3]
        {'spacing': [0.5, 1.0, 2.0]}
    """

    def __call__(
        self,
        batchdata: Mapping[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple, dict[str, list[float]]]:
        """Moves a batch to the device.

        Args:
            batchdata: batch with the key ``image``, and perhaps ``label``.
            device: where to move the tensors.
            non_blocking: see ``torch.Tensor.to``.
            kwargs: further arguments of ``torch.Tensor.to``.

        Returns:
            image, label or None, no positional arguments, and ``{"spacing": [...]}``.
        """
        spacing = _common_spacing(batchdata[CommonKeys.IMAGE])
        image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        return image, label, (), {"spacing": spacing}


def _common_spacing(image: torch.Tensor) -> list[float]:
    if not isinstance(image, MetaTensor):
        raise ValueError(
            f"image: expected a MetaTensor, for its voxel size, got {type(image).__name__}; load it with LoadImaged."
        )
    pixdim = torch.stack(image.pixdim) if image.is_batch else image.pixdim[None]  # (B or 1, axes)
    if not torch.allclose(pixdim, pixdim[:1], rtol=1e-4, atol=0):
        found = " and ".join(sorted({str([round(float(p), 4) for p in row]) for row in pixdim}))
        raise ValueError(f"image: expected one voxel size in a batch, got {found} mm; set batch_size to 1.")
    return [float(p) for p in pixdim[0]]
