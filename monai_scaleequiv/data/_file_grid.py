"""From class scores on the grid that a network sees, slice by slice, to labels on the grid of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, to_affine_nd

from monai_scaleequiv.data._faults import Fault, refuse

__all__ = ["FileGrid", "file_grid"]

CHUNK = 1 << 25  # bytes of scores that are resampled at a time


@dataclass(frozen=True)
class FileGrid:
    """Where the voxels of a file lie on the working grid: axes swapped, flipped, and scaled, no more.

    Args:
        order: axis of the file for each axis of the working grid.
        flips: working axes that the file has the other way round.
        positions: for each working axis, where the file's slices lie on it, rising.
        affine: of the file.

    Example::

        >>> grid = file_grid(MetaTensor(torch.rand(1, 4, 5, 6)), name="image")
        >>> grid.order, grid.flips, [len(p) for p in grid.positions]
        ([0, 1, 2], [], [4, 5, 6])
    """

    order: list[int]
    flips: list[int]
    positions: list[torch.Tensor]
    affine: torch.Tensor

    def labels(self, pieces: Iterable[torch.Tensor], axis: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Resamples and takes the largest class, a few slices at a time.

        Args:
            pieces: scores (K, ...) on the working grid, in order along one axis.
            axis: this axis.
            classes: the first so many of the K channels are probabilities of classes, the others maps of numbers.

        Returns:
            labels, uint8, and maps (K - classes, ...), both on the file's grid.
        """
        size = [len(p) for p in self.positions]
        labels, maps, done = torch.empty(size, dtype=torch.uint8), torch.empty(0, *size), 0
        for scores, count in self._resampled(pieces, axis):
            if not done:
                maps = torch.empty(scores.shape[0] - classes, *size)
            labels.narrow(axis, done, count).copy_(scores[:classes].argmax(0))
            maps.narrow(1 + axis, done, count).copy_(scores[classes:])
            done += count
        return self._as_in_file(labels[None])[0], self._as_in_file(maps)

    def _as_in_file(self, volume: torch.Tensor) -> torch.Tensor:
        volume = volume.flip([1 + axis for axis in self.flips]) if self.flips else volume
        back = np.argsort(self.order).tolist()
        return volume.permute(0, *(1 + axis for axis in back)).contiguous()

    def _resampled(self, pieces: Iterable[torch.Tensor], axis: int) -> Iterator[tuple[torch.Tensor, int]]:
        """Slices of the file's grid as soon as the two slices of the working grid around them are known."""
        where = self.positions[axis]
        kept, first, done = None, 0, 0  # scores from slice ``first`` on; slices of the file's grid that are done
        last = int(where.max().ceil())
        for piece in pieces:
            kept = piece if kept is None else torch.cat([kept, piece], 1 + axis)
            known = first + kept.shape[1 + axis]
            ready = len(where) if known > last else int((where.ceil() < known).sum())
            while done < ready:
                count = min(ready - done, self._chunk(kept.shape[0], axis))
                yield self._interpolated(kept, axis, first, where[done : done + count]), count
                done += count
            if done < len(where):
                begin = min(int(where[done]), known - 1)
                kept, first = kept.narrow(1 + axis, begin - first, known - begin).clone(), begin

    def _chunk(self, channels: int, axis: int) -> int:
        others = [len(p) for a, p in enumerate(self.positions) if a != axis]
        return max(1, CHUNK // (8 * channels * int(np.prod(others))))

    def _interpolated(self, scores: torch.Tensor, axis: int, first: int, where: torch.Tensor) -> torch.Tensor:
        scores = _linear(scores, 1 + axis, where - first)
        for other, positions in enumerate(self.positions):
            if other != axis:
                scores = _linear(scores, 1 + other, positions)
        return scores.to(torch.float32)


def file_grid(image: torch.Tensor, name: str) -> FileGrid:
    """How the grid of the file that a preprocessed image came from lies on the image's own grid.

    Args:
        image: channel-first, with the metadata of ``LoadImage`` if it has any; else its own grid counts.
        name: the file, for errors.

    Raises:
        ValueError: when the image was rotated, sheared, or cropped on the way from the file.

    Example::

        >>> file_grid(torch.rand(1, 4, 5, 6), name="image").order
        [0, 1, 2]
    """
    size = list(image.shape[1:])
    rank = len(size)
    meta = image.meta if isinstance(image, MetaTensor) else {}
    affine = torch.as_tensor(np.asarray(image.affine if meta else np.eye(rank + 1)), dtype=torch.float64)
    to_file = torch.as_tensor(np.asarray(meta.get("original_affine", affine)), dtype=torch.float64)
    file_size = [int(n) for n in np.asarray(meta.get("spatial_shape", size)).ravel()[:rank]]
    step = np.linalg.solve(to_affine_nd(rank, affine.numpy()), to_affine_nd(rank, to_file.numpy()))
    order = abs(step[:rank, :rank]).argmax(1).tolist()
    _refuse_turned(step[:rank, :rank], order, file_size, name)
    flips, positions = [], []
    for axis, from_axis in enumerate(order):
        place = step[axis, from_axis] * np.arange(file_size[from_axis]) + step[axis, -1]
        if step[axis, from_axis] < 0:
            flips.append(axis)
            place = place[::-1]
        _refuse_outside(place, size[axis], axis, name)
        positions.append(_placed(place, size[axis]))
    return FileGrid(order, flips, positions, to_file)


def _placed(place: np.ndarray, size: int) -> torch.Tensor:
    # As MONAI's resampling does: nothing where hardly anything would change, and the last voxel goes on for ever.
    same = len(place) == size and np.allclose(np.diff(place), 1, atol=AFFINE_TOL) and abs(place[0]) < AFFINE_TOL
    place = np.arange(size) if same else np.clip(place, 0, size - 1)
    return torch.from_numpy(np.ascontiguousarray(place, dtype=np.float64))


def _refuse_turned(step: np.ndarray, order: Sequence[int], size: Sequence[int], name: str) -> None:
    rest = abs(step)
    rest[np.arange(len(order)), order] = 0
    if len(set(order)) < len(order) or (rest @ np.asarray(size) > 0.1).any():
        expected = "preprocessing that swaps, flips or scales axes and no more"
        remedy = "use LoadImaged, Orientationd and Spacingd"
        refuse(name, Fault("grid", expected, "one that turns or shears the image", remedy))


def _refuse_outside(place: np.ndarray, size: int, axis: int, name: str) -> None:
    slack = 1 + abs(place[-1] - place[0]) / max(len(place) - 1, 1)
    if place[0] < -slack or place[-1] > size - 1 + slack:
        got = f"{size} slices for a file that lies at {place[0]:.4g} to {place[-1]:.4g}"
        expected = f"preprocessing that keeps the whole image along axis {axis}"
        refuse(name, Fault("grid", expected, got, "crop nothing"))


def _linear(volume: torch.Tensor, dim: int, where: torch.Tensor) -> torch.Tensor:
    """Linear interpolation along one axis at rising positions within it."""
    last = volume.shape[dim] - 1
    if len(where) == last + 1 and bool((where == torch.arange(last + 1)).all()):
        return volume
    below = where.floor().clamp(0, last)
    share = (where - below).clamp(0, 1).to(volume.device)
    low = below.long().to(volume.device)
    if not bool(share.any()):
        return volume.index_select(dim, low)
    volume = volume.to(torch.float64)
    low_values = volume.index_select(dim, low)
    high_values = volume.index_select(dim, (low + 1).clamp(max=last))
    shape = [-1 if d == dim else 1 for d in range(volume.dim())]
    return torch.lerp(low_values, high_values, share.reshape(shape))
