"""Test images at another size, by SciPy's cubic splines: not the resampling that our networks use."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter1d

PRODUCTS = {  # of a matrix with one axis of images (B, C, ...)
    (2, 0): "bij,bcjx->bcix", (2, 1): "bij,bcxj->bcxi",
    (3, 0): "bij,bcjxy->bcixy", (3, 1): "bij,bcxjy->bcxiy", (3, 2): "bij,bcxyj->bcxyi",
}  # fmt: skip


@lru_cache(maxsize=512)
def line_matrix(n: int, m: int) -> torch.Tensor:
    """Matrix (m, n) of what SciPy does to a line: a Gaussian against aliasing, then cubic splines at the new points."""
    step = n / m
    line = np.eye(n)
    if step > 1:
        line = gaussian_filter1d(line, 0.5 * (step * step - 1) ** 0.5, axis=0, mode="reflect")
    offset = [(step - 1) / 2, 0]
    matrix = affine_transform(line, [step, 1], offset, output_shape=(m, n), order=3, mode="reflect")
    return torch.from_numpy(matrix).float()


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Images (B, C, D, H, W), or (B, C, H, W), with as many voxels as asked."""
    axes = x.dim() - 2
    for axis, m in enumerate(map(int, size)):
        if m != x.shape[2 + axis]:
            matrix = line_matrix(x.shape[2 + axis], m).to(x)
            x = torch.einsum(PRODUCTS[axes, axis], matrix.expand(len(x), -1, -1), x)
    return x


def size_of(shape: Sequence[int], condition: str) -> list[int]:
    """Voxels of an image under a test condition: a scale, or ``z2``: slices twice as thick along the last axis."""
    if condition.startswith("z"):
        return [*shape[:-1], max(round(shape[-1] / float(condition[1:])), 1)]
    return [max(round(n * float(condition)), 1) for n in shape]
