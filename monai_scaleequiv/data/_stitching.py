"""Windows of an image run through a network and put together slice by slice, never all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

__all__ = ["PIECE", "slab_axis", "stitched_pieces"]

PIECE = 1 << 26  # bytes of all channels that are handed on at a time

Slices = tuple[slice, ...]


def slab_axis(size: Sequence[int], windows: SlidingWindowInferer) -> int:
    """The spatial axis along which the windows are the smallest part of the image, so that a slab takes least memory.

    Example::

        >>> slab_axis((64, 512, 400), SlidingWindowInferer((64, 64, 64)))
        1
    """
    roi = fall_back_tuple(windows.roi_size, size)
    return min(range(len(size)), key=lambda axis: roi[axis] / size[axis])


def stitched_pieces(
    image: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor], windows: SlidingWindowInferer, axis: int
) -> Iterator[torch.Tensor]:
    """What ``windows(image, network)`` gives, in pieces of a few slices along one axis, from the first to the last.

    Kept are the sums over the windows that begin at the same slice, and no slice that all windows have been added to.

    Args:
        image: one image (1, C, ...).
        network: from windows (B, C, ...) to (B, K, ...) of the same size.
        windows: size, overlap, weights, padding, number at a time, devices.
        axis: spatial axis of the slices.

    Yields:
        (K, ...) on the device of the sums.

    Raises:
        ValueError: when the network gives anything but a tensor of the window's size.

    Example::

        >>> image = torch.rand(1, 1, 9, 8, 7)
        >>> pieces = stitched_pieces(image, lambda x: 2 * x, SlidingWindowInferer((4, 4, 4)), axis=0)
        >>> torch.allclose(torch.cat(list(pieces), 1), 2 * image[0])
        True
    """
    size = image.shape[2:]
    roi = fall_back_tuple(windows.roi_size, size)
    image, front = _padded(image, roi, windows)
    inside = [slice(f, f + n) for f, n in zip(front, size, strict=True)]
    position = 0
    for piece in _pieces(image, network, windows, roi, axis):
        count = piece.shape[1 + axis]
        here = slice(max(inside[axis].start - position, 0), min(inside[axis].stop - position, count))
        position += count
        if here.start < here.stop:
            yield piece[(slice(None), *(here if a == axis else part for a, part in enumerate(inside)))]


def _pieces(
    image: torch.Tensor, network: Callable, windows: SlidingWindowInferer, roi: Sequence[int], axis: int
) -> Iterator[torch.Tensor]:
    weights = compute_importance_map(roi, windows.mode, windows.sigma_scale, image.device, image.dtype)
    sums = _Sums(windows.device or image.device, image.shape[2:], roi, axis, weights)
    for start, group in itertools.groupby(
        _placed(image.shape[2:], roi, windows, axis), lambda place: place[axis].start
    ):
        yield from sums.finished(start)
        places = list(group)
        for first in range(0, len(places), windows.sw_batch_size):
            some = places[first : first + windows.sw_batch_size]
            batch = torch.cat([image[(..., *place)] for place in some]).to(windows.sw_device or image.device)
            sums.add(some, _checked(network(batch), batch))
    yield from sums.finished(image.shape[2 + axis])


class _Sums:
    """Weighted sums over windows, of the slices from ``base`` on and as many as a window has."""

    def __init__(
        self, device: torch.device | str, size: Sequence[int], roi: Sequence[int], axis: int, weights: torch.Tensor
    ) -> None:
        self.axis = axis
        self.base = 0
        self.weights = weights
        self.shape = [roi[a] if a == axis else n for a, n in enumerate(size)]
        self.device = torch.device(device)
        self.share = torch.zeros(self.shape, dtype=weights.dtype, device=self.device)
        self.total: torch.Tensor | None = None

    def add(self, places: Sequence[Slices], values: torch.Tensor) -> None:
        if self.total is None:
            shape = [values.shape[1], *self.shape]
            self.total = torch.zeros(shape, dtype=self.weights.dtype, device=self.device)
        weighted = (values * self.weights.to(values.device)).to(self.device)
        share = self.weights.to(self.device)
        for place, value in zip(places, weighted, strict=True):
            here = tuple(slice(None) if a == self.axis else part for a, part in enumerate(place))
            self.total[(slice(None), *here)] += value
            self.share[here] += share

    def finished(self, stop: int) -> Iterator[torch.Tensor]:
        """Means of the slices before ``stop``, which then make room."""
        if self.total is None:
            return
        dim, count = 1 + self.axis, stop - self.base
        slice_bytes = self.total.element_size() * self.total.numel() // self.total.shape[dim]
        step = max(1, PIECE // slice_bytes)
        for first in range(0, count, step):
            n = min(step, count - first)
            share = self.share.narrow(self.axis, first, n)
            yield self.total.narrow(dim, first, n) / share
        for sums, along in ((self.total, dim), (self.share, self.axis)):
            _advance(sums, along, count)
        self.base = stop


def _advance(sums: torch.Tensor, dim: int, count: int) -> None:
    """Moves the slices from ``count`` on to the front, in place, and empties those behind."""
    kept = sums.shape[dim] - count
    for first in range(0, kept, count or 1):  # in steps that do not overlap
        n = min(count, kept - first)
        sums.narrow(dim, first, n).copy_(sums.narrow(dim, first + count, n))
    sums.narrow(dim, kept, count).zero_()


def _placed(size: Sequence[int], roi: Sequence[int], windows: SlidingWindowInferer, axis: int) -> list[Slices]:
    overlaps = ensure_tuple_rep(windows.overlap, len(size))
    steps = [r if r == n else max(int(r * (1 - o)), 1) for n, r, o in zip(size, roi, overlaps, strict=True)]
    return sorted(dense_patch_slices(size, roi, steps), key=lambda place: place[axis].start)


def _padded(image: torch.Tensor, roi: Sequence[int], windows: SlidingWindowInferer) -> tuple[torch.Tensor, list[int]]:
    """The image, at least as large as a window, and how much was put in front along each axis."""
    short = [max(r - n, 0) for r, n in zip(roi, image.shape[2:], strict=True)]
    front = [n // 2 for n in short]
    if any(short):
        pad = [amount for f, n in reversed(list(zip(front, short, strict=True))) for amount in (f, n - f)]
        mode = str(getattr(windows.padding_mode, "value", windows.padding_mode))
        value = windows.cval if mode == "constant" else None
        image = torch.nn.functional.pad(image, pad, mode=mode, value=value)
    return image, front


def _checked(values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        raise ValueError(
            f"network: expected a tensor, got {type(values).__name__}; wrap it so that it gives its logits alone."
        )
    if values.shape[2:] != batch.shape[2:] or values.shape[0] != batch.shape[0]:
        raise ValueError(
            f"network: expected windows of {tuple(batch.shape[2:])} back, got {tuple(values.shape[2:])}; "
            "choose a roi_size that its strides divide."
        )
    return values
