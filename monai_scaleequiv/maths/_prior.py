"""The spatial prior of a large kernel."""

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import ensure_tuple_rep


def frequency_prior(kernel_size: Sequence[int] | int, alpha: float = 1.0, spatial_dims: int = 3) -> torch.Tensor:
    r"""Factor (\*kernel_size) of each tap of a kernel: :math:`\alpha / (d + \alpha)`, d its distance from the centre.

    Args:
        kernel_size: edge of the kernel in voxels, odd, one for all axes or one per axis.
        alpha: distance in voxels at which the factor has fallen to a half.
        spatial_dims: number of spatial dimensions.

    Raises:
        ValueError: when ``alpha`` is not above 0 and finite, or an edge not odd and positive.

    Example::

        >>> frequency_prior(5, alpha=1.0, spatial_dims=1)
        tensor([0.3333, 0.5000, 1.0000, 0.5000, 0.3333], dtype=torch.float64)

    Source: Lee et al. 2023 (RepUX-Net, arXiv 2303.05785), Bayesian frequency re-parameterisation.
    """
    sizes = ensure_tuple_rep(kernel_size, spatial_dims)
    if not sys.float_info.min <= alpha < math.inf:
        raise ValueError(f"alpha of a frequency_prior must be above 0 and finite, got {alpha}.")
    if any(k < 1 or k % 2 == 0 for k in sizes):
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
    offsets = np.meshgrid(*[np.arange(k, dtype=np.float64) - k // 2 for k in sizes], indexing="ij")
    # By NumPy, so that the values are there also where torch's default device is the meta device.
    return torch.from_numpy(alpha / (np.sqrt(np.square(offsets).sum(0)) + alpha))
