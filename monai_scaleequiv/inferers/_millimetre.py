"""Inference in windows that have the same size in the body whatever the voxel size."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInfererAdapt


class MillimetreSlidingWindowInferer(SlidingWindowInfererAdapt):
    """MONAI's ``SlidingWindowInfererAdapt`` with windows in mm, for networks that take the voxel size.

    The network is called as ``network(window, spacing=[...])``. An image smaller than the window is its own window:
    nothing is padded with a constant.

    Args:
        roi_size: edges of the window in mm, one per axis; 0 or less for the image's own, as in MONAI.
        options: see ``SlidingWindowInferer``.

    Raises:
        ValueError: when there is no edge or voxel size, or another voxel size for each image of a batch.

    Example::

        >>> network = lambda x, spacing: x + 1
        >>> infer = MillimetreSlidingWindowInferer((10, 10, 10))
        >>> infer(torch.rand(1, 1, 30, 8, 9), network, spacing=[0.5, 1, 2]).shape
        torch.Size([1, 1, 30, 8, 9])
    """

    def __init__(self, roi_size: Sequence[float], **options: Any) -> None:
        if not roi_size:
            raise ValueError("roi_size: expected edges in mm, got none; give one per axis.")
        super().__init__([1] * len(roi_size), **options)
        self.edges = [float(edge) for edge in roi_size]

    def __call__(
        self, inputs: torch.Tensor, network: Callable, *args: Any, spacing: Sequence[float] | None = None, **kwargs: Any
    ) -> Any:
        """Runs the network.

        Args:
            inputs: images (B, C, ...); the affine of a MetaTensor gives the voxel size.
            network: called as ``network(window, *args, spacing=spacing, **kwargs)``.
            args: see ``network``.
            spacing: voxel size in mm, one per axis, instead of that of ``inputs``.
            kwargs: see ``network``.
        """
        sizes = _spacing_of(inputs) if spacing is None else [float(size) for size in spacing]
        if not len(sizes) == len(self.edges) == inputs.dim() - 2:
            raise ValueError(
                f"spacing: expected {inputs.dim() - 2} numbers, for spacing as for roi_size, "
                f"got {sizes} and {self.edges}; give one per axis."
            )
        windows = copy.copy(self)
        windows.roi_weight_map = None  # of another size
        edges = zip(self.edges, sizes, inputs.shape[2:], strict=True)
        windows.roi_size = [min(max(round(edge / voxel), 1), n) if edge > 0 else n for edge, voxel, n in edges]
        output = SlidingWindowInfererAdapt.__call__(windows, inputs, network, *args, spacing=sizes, **kwargs)
        self.cpu_thresh, self.buffer_steps = windows.cpu_thresh, windows.buffer_steps  # what it learned of the memory
        return output


def _spacing_of(inputs: torch.Tensor) -> list[float]:
    if not isinstance(inputs, MetaTensor):
        raise ValueError(f"spacing: expected one, or a MetaTensor, got {type(inputs).__name__}; give one per axis.")
    pixdim = inputs.pixdim if not inputs.is_batch else torch.stack(list(inputs.pixdim))
    pixdim = torch.as_tensor(pixdim).reshape(-1, inputs.dim() - 2)  # (B or 1, axes)
    if not torch.allclose(pixdim, pixdim[:1], rtol=1e-4, atol=0):
        raise ValueError(f"spacing: expected one voxel size in a batch, got {pixdim.tolist()}; set batch_size to 1.")
    return [float(size) for size in pixdim[0]]
