"""Ideal and antialiased rescaling of an image, one axis at a time, as matrix products."""

import math
from collections.abc import Sequence

import torch

_MOST_KEPT = 128  # a volume needs up to six for each scale; a large one's have some hundred kilobytes
_kept: dict[tuple[object, ...], torch.Tensor] = {}
# For good: a CUDA graph replays on the memory that it was captured with.
_captured: dict[tuple[object, ...], torch.Tensor] = {}


def as_ratio(value: float, denominator: int = 5_040_000) -> tuple[int, int]:
    """Numerator and denominator: sizes then follow by integer division, also where they are symbols."""
    # The denominator has all divisors up to 10, so that 2/3 stays exact and a voxel of 0.69999999 mm counts as 0.7 mm.
    return int(round(value * denominator)), denominator  # noqa: RUF046 - TorchScript's round gives a float


def _cosine_series_matrix(
    size: int, target_size: int, numerator: int, denominator: int, smoothing: float, like: torch.Tensor
) -> torch.Tensor:
    r"""Matrix (M, N) that reads a mirrored axis' cosine series off on a new grid of the same centre, as ``like``.

    .. math::
        y_j = \sum_{k < K} h(k/K)\, c_k \cos(\pi k\, p_j / N), \qquad
        c_k = \frac{2 - \delta_{k0}}{N} \sum_i x_i \cos(\pi k (i + 1/2)/N)

    with :math:`p_j = N/2 + \mathrm{step}\,(j - (M - 1)/2)`, :math:`K = \min(N, N/\mathrm{step})`: without frequencies
    that the new grid cannot hold. The step is numerator / denominator; sizes may be symbols of a graph. h is a Gaussian
    of standard deviation ``smoothing``, in new voxels, in place of the sharp end of the band.
    """
    cpu = torch.device("cpu")  # for float64, which not every device knows
    orders = torch.arange(size, device=cpu)
    kept = (orders * numerator < size * denominator).to(torch.float64)
    damping = torch.exp(-0.5 * (orders.to(torch.float64) * (smoothing * math.pi * numerator / denominator) / size) ** 2)
    gain = kept * damping * (2 - (orders == 0).to(torch.float64)) / size
    positions = size * denominator + numerator * (2 * torch.arange(target_size, device=cpu) - (target_size - 1))
    analysis = _cosine(orders[:, None] * (2 * orders + 1)[None, :], 2 * size)  # (K, N)
    synthesis = _cosine(positions[:, None] * orders[None, :], 2 * size * denominator)  # (M, K)
    return torch.matmul(synthesis * gain, analysis).to(like.device, like.dtype)


def _cosine(numerator: torch.Tensor, denominator: int) -> torch.Tensor:
    # cos(pi numerator / denominator); whole turns are taken off as integers, for large angles are inexact.
    turn = torch.ones(1, dtype=torch.int64, device=numerator.device) * (2 * denominator)
    return torch.cos(torch.remainder(numerator, turn).to(torch.float64) * math.pi / denominator)


def resample_axis(
    x: torch.Tensor, axis: int, target_size: int, numerator: int, denominator: int, smoothing: float = 0.0
) -> torch.Tensor:
    """Resamples one axis through its cosine series at a step of numerator / denominator voxels.

    Magnifying is exact, shrinking is the ideal low-pass filter, and shrinking twice is shrinking once by the product.
    """
    size = x.shape[axis]
    if torch.jit.is_scripting():
        matrix = _cosine_series_matrix(size, target_size, numerator, denominator, smoothing, x)
    else:
        if not torch.compiler.is_compiling() and size == target_size and numerator == denominator and smoothing == 0:
            return x
        matrix = _cached(size, target_size, numerator, denominator, smoothing, x)
    # Each form is one matrix product without copies of x.
    if axis == x.dim() - 1:
        return torch.matmul(x, matrix.t())
    if axis == x.dim() - 2:
        return torch.matmul(matrix, x)
    after = list(x.shape[axis + 1 :])
    return torch.matmul(matrix, x.flatten(axis + 1)).unflatten(axis + 1, after)


def resample_axes(
    x: torch.Tensor, size: list[int], steps: list[tuple[int, int]], smoothing: float = 0.0
) -> torch.Tensor:
    """Resamples the last axes to ``size``, each by :py:func:`resample_axis` at its step, the work kept least.

    Axes that shrink most come first, so that the others are computed on the smallest image.
    """
    first = x.dim() - len(size)
    for _, axis in sorted([(-steps[axis][0] / steps[axis][1], axis) for axis in range(len(size))]):
        numerator, denominator = steps[axis]
        x = resample_axis(x, first + axis, size[axis], numerator, denominator, smoothing)
    return x


@torch.jit.unused
def _cached(
    size: int, target_size: int, numerator: int, denominator: int, smoothing: float, like: torch.Tensor
) -> torch.Tensor:
    # Kept is what serves every later call: a plain tensor on its device, made outside of inference mode.
    args = (size, target_size, numerator, denominator, smoothing)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _cosine_series_matrix(*args, like)
    with torch.inference_mode(False), torch.no_grad():
        blank = torch.empty(0, dtype=like.dtype, device=like.device)
        if type(blank) is not torch.Tensor:  # under a mode that puts others in the place of tensors
            return _cosine_series_matrix(*args, blank)
        key = (*args, like.device, like.dtype)
        matrix = _kept.get(key)  # another thread may empty the store meanwhile
        if matrix is None:
            if len(_kept) >= _MOST_KEPT:
                _kept.clear()
            matrix = _kept[key] = _cosine_series_matrix(*args, blank)
        if blank.is_cuda and torch.cuda.is_current_stream_capturing():
            matrix = _captured.setdefault(key, matrix)
        return matrix


def rescale(x: torch.Tensor, size: Sequence[int], smoothing: float = 0.0) -> torch.Tensor:
    """Rescales images to another size over the same extent, free of aliasing, in their own dtype.

    Args:
        x: images of shape (..., D, H, W), or (..., H, W) when ``size`` has two numbers.
        size: new number of voxels of each spatial axis.
        smoothing: standard deviation in new voxels of a Gaussian instead of the sharp end of the band, which rings at
            edges; 0 for the ideal rescaling, which can be undone as long as the image grows.

    Raises:
        ValueError: when ``x`` has fewer axes than ``size`` or a number is out of range.

    Example::

        >>> rescale(torch.rand(2, 1, 9, 8, 8), size=(10, 10, 9)).shape
        torch.Size([2, 1, 10, 10, 9])
    """
    if x.dim() < len(size):
        raise ValueError(f"x must have at least {len(size)} axes, as many as size has numbers, got {list(x.shape)}.")
    for axis, target in enumerate(size, start=x.dim() - len(size)):
        if min(x.shape[axis], int(target)) < 1 or smoothing < 0:
            raise ValueError(
                "sizes must be at least 1 and smoothing at least 0, "
                f"got {list(x.shape)}, size={tuple(size)}, smoothing={smoothing}."
            )
    sizes = [int(n) for n in size]
    return resample_axes(x, sizes, list(zip(x.shape[x.dim() - len(size) :], sizes, strict=True)), smoothing)
