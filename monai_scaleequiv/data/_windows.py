"""Inference in windows that have the same size in the body whatever the voxel size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer

__all__ = ["MillimetreWindowInferer"]


class MillimetreWindowInferer(Inferer):
    """MONAI's ``SlidingWindowInferer`` with windows in mm, for networks that are told the voxel size.

    An image smaller than the window is its own window: nothing is padded with a constant.

    Args:
        window: edges of the window in mm, one per axis.
        sw_batch_size: number of windows that the network sees at once.
        overlap: share of the window by which neighbours overlap.
        mode: ``"gaussian"`` or ``"constant"`` weights where they do.

    Raises:
        ValueError: when an edge is not above 0, or the call's ``spacing`` has another number of axes.

    Example::

        >>> network = lambda x, spacing: x + 1
        >>> MillimetreWindowInferer((10, 10, 10))(torch.rand(1, 1, 30, 8, 9), network, spacing=[0.5, 1, 2]).shape
        torch.Size([1, 1, 30, 8, 9])
    """

    def __init__(
        self, window: Sequence[float], sw_batch_size: int = 1, overlap: float = 0.25, mode: str = "gaussian"
    ) -> None:
        super().__init__()
        if not window or min(window) <= 0:
            raise ValueError(f"window: expected edges above 0, in mm, got {list(window)}; give one per axis.")
        self.window = [float(edge) for edge in window]
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = mode

    def __call__(
        self, inputs: torch.Tensor, network: Callable, *args: Any, spacing: Sequence[float], **kwargs: Any
    ) -> torch.Tensor:
        """Runs the network.

        Args:
            inputs: images (B, C, D, H, W).
            network: called as ``network(window, *args, spacing=spacing, **kwargs)``.
            args: see ``network``.
            spacing: voxel size in mm, one per axis.
            kwargs: see ``network``.
        """
        return self.in_voxels(spacing, inputs.shape[2:])(inputs, network, *args, spacing=spacing, **kwargs)

    def in_voxels(self, spacing: Sequence[float], size: Sequence[int]) -> SlidingWindowInferer:
        """The same windows for one voxel size.

        Args:
            spacing: voxel size in mm, one per axis.
            size: of the image, in voxels; no window is larger.
        """
        if not len(spacing) == len(self.window) == len(size):
            raise ValueError(
                f"spacing: expected {len(size)} numbers, for spacing as for window, "
                f"got {list(spacing)} and {self.window}; give one per axis."
            )
        edges = zip(self.window, spacing, size, strict=True)
        roi_size = [min(max(round(edge / voxel), 1), n) for edge, voxel, n in edges]
        return SlidingWindowInferer(roi_size, self.sw_batch_size, self.overlap, self.mode)
