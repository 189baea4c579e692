"""Inference on the image in another size: what becomes of the answer when the anatomy is larger or smaller."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_numpy
from scipy.ndimage import gaussian_filter, zoom

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class RescaledInferer(Inferer):
    """Another inferer on the image in another size, and its answer brought back to the image's own grid.

    Images are resampled by cubic splines after a Gaussian against aliasing, on the CPU, answers linearly. A MetaTensor
    keeps its affine: to a network that reads the voxel size, the anatomy itself is larger or smaller.

    Args:
        inferer: called with the rescaled images (B, C, ...), the network and whatever else there is.
        scale: new over old number of voxels of each axis.
        thickness: the last axis has so many times fewer, as with thicker slices.
        oracle: bring the image back to its own size before the inferer sees it, which shows what the resampling costs.

    Raises:
        ValueError: when scale or thickness is not a finite number above 0, or the inferer gives no single tensor.

    Example::

        >>> infer = RescaledInferer(lambda inputs, network: network(inputs), scale=0.5)
        >>> sizes = []
        >>> infer(torch.rand(1, 1, 8, 8, 6), lambda x: sizes.append(x.shape) or x).shape
        torch.Size([1, 1, 8, 8, 6])
        >>> sizes
        [torch.Size([1, 1, 4, 4, 3])]
    """

    def __init__(self, inferer: Callable, scale: float = 1.0, thickness: float = 1.0, oracle: bool = False) -> None:
        for name, value in {"scale": scale, "thickness": thickness}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}; 1 leaves the image as it is.")
        self.inferer = inferer
        self.scale = scale
        self.thickness = thickness
        self.oracle = oracle

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs the inferer.

        Args:
            inputs: images (B, C, ...).
            network: what the inferer calls.
            args: for the inferer.
            kwargs: for the inferer.
        """
        own = list(inputs.shape[2:])
        factors = [self.scale] * (len(own) - 1) + [self.scale / self.thickness]
        rescaled = _resampled(inputs, [max(round(n * factor), 1) for n, factor in zip(own, factors, strict=True)])
        if self.oracle:
            return self.inferer(_resampled(rescaled, own), network, *args, **kwargs)
        answer = self.inferer(rescaled, network, *args, **kwargs)
        if not isinstance(answer, torch.Tensor):
            raise ValueError(
                f"inferer: expected a tensor from it, got {type(answer).__name__}; take one with one answer."
            )
        return answer if list(answer.shape[2:]) == own else F.interpolate(answer, own, mode=LINEAR[len(own)])


def _resampled(images: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Images (B, C, ...) in another size over the same extent; MONAI's ``Resize`` has no splines in 3D."""
    own = list(images.shape[2:])
    if size == own:
        return images
    sigmas = [0.5 * max((n / m) ** 2 - 1, 0) ** 0.5 for n, m in zip(own, size, strict=True)]
    factors = [m / n for n, m in zip(own, size, strict=True)]
    volumes = convert_to_numpy(images.detach().float()).reshape(-1, *own)
    # grid_mode: the outer faces of the volumes meet, not the centres of their outer voxels.
    smooth = (gaussian_filter(volume, sigmas) for volume in volumes)
    resampled = [zoom(volume, factors, order=3, mode="reflect", grid_mode=True) for volume in smooth]
    return convert_to_dst_type(np.stack(resampled).reshape(*images.shape[:2], *size), images)[0]
