"""From class scores on the grid that a network sees, slice by slice, to labels on the grid of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, to_affine_nd
from torch.nn.functional import grid_sample

from monai_scaleequiv.data._faults import MAX_SHEAR, Fault, refuse

__all__ = ["FileGrid", "file_grid"]

CHUNK = 1 << 25  # bytes of scores that are resampled at a time
MOVED = 0.01  # voxels by which a shear has to move something to make a difference


@dataclass(frozen=True)
class FileGrid:
    """Where the voxels of a file lie on the working grid: axes swapped, flipped, scaled, and sheared a little.

    Args:
        order: axis of the file for each axis of the working grid.
        flips: working axes that the file has the other way round.
        positions: for each working axis, where the file's slices lie on it, rising.
        affine: of the file.
        size: of the working grid.
        shear: by how much each further slice along the file's axes, in the order of the working grid, moves the
            positions along each working axis; None where it makes no difference.

    Example::

        >>> grid = file_grid(MetaTensor(torch.rand(1, 4, 5, 6)), name="image")
        >>> grid.order, grid.flips, [len(p) for p in grid.positions]
        ([0, 1, 2], [], [4, 5, 6])
    """

    order: list[int]
    flips: list[int]
    positions: list[torch.Tensor]
    affine: torch.Tensor
    size: list[int]
    shear: np.ndarray | None = None

    def labels(self, pieces: Iterable[torch.Tensor], axis: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Resamples and takes the largest class, a few slices at a time.

        Args:
            pieces: scores (K, ...) on the working grid, in order along one axis.
            axis: this axis.
            classes: the first so many of the K channels are probabilities of classes, the others maps of numbers.

        Returns:
            labels, uint8, and maps (K - classes, ...), both on the file's grid.

        Raises:
            RuntimeError: when the pieces end too early.
        """
        size = [len(p) for p in self.positions]
        labels, maps, done = torch.empty(size, dtype=torch.uint8), torch.empty(0, *size), 0
        for scores, count in self._resampled(pieces, axis):
            if not done:
                maps = torch.empty(scores.shape[0] - classes, *size)
            labels.narrow(axis, done, count).copy_(scores[:classes].argmax(0))
            maps.narrow(1 + axis, done, count).copy_(scores[classes:])
            done += count
        if done != size[axis]:  # what is not written to is whatever the memory held
            raise RuntimeError(f"scores: expected {size[axis]} slices, got {done}; please report it.")
        return self._as_in_file(labels[None])[0], self._as_in_file(maps)

    def _as_in_file(self, volume: torch.Tensor) -> torch.Tensor:
        volume = volume.flip([1 + axis for axis in self.flips]) if self.flips else volume
        back = np.argsort(self.order).tolist()
        return volume.permute(0, *(1 + axis for axis in back)).contiguous()

    def _resampled(self, pieces: Iterable[torch.Tensor], axis: int) -> Iterator[tuple[torch.Tensor, int]]:
        """Slices of the file's grid as soon as the two slices of the working grid around them are known."""
        low, high = self._between(axis)
        kept, first, done = None, 0, 0  # scores from slice ``first`` on; slices of the file's grid that are done
        last = int(high.max().ceil())
        for piece in pieces:
            kept = piece if kept is None else torch.cat([kept, piece], 1 + axis)
            known = first + kept.shape[1 + axis]
            ready = len(high) if known > last else int((high.ceil() < known).sum())
            while done < ready:
                count = min(ready - done, self._chunk(kept.shape[0], axis))
                yield self._interpolated(kept, axis, first, slice(done, done + count)), count
                done += count
            if done < len(low):
                begin = min(int(low[done]), known - 1)
                kept, first = kept.narrow(1 + axis, begin - first, known - begin).clone(), begin

    def _between(self, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and highest position of each of the file's slices along an axis."""
        where = self.positions[axis]
        if self.shear is None:
            return where, where
        moved = self.shear[axis] * (np.array([len(p) for p in self.positions]) - 1)
        last = self.size[axis] - 1
        return (where + moved.clip(max=0).sum()).clamp(0, last), (where + moved.clip(min=0).sum()).clamp(0, last)

    def _chunk(self, channels: int, axis: int) -> int:
        others = [len(p) for a, p in enumerate(self.positions) if a != axis]
        numbers = channels if self.shear is None else channels + 2 * len(self.positions)
        return max(1, CHUNK // (8 * numbers * int(np.prod(others))))

    def _interpolated(self, scores: torch.Tensor, axis: int, first: int, part: slice) -> torch.Tensor:
        if self.shear is not None:
            return _sampled(scores, self._places(axis, part), axis, first).to(torch.float32)
        scores = _linear(scores, 1 + axis, self.positions[axis][part] - first)
        for other, positions in enumerate(self.positions):
            if other != axis:
                scores = _linear(scores, 1 + other, positions)
        return scores.to(torch.float32)

    def _places(self, axis: int, part: slice) -> list[torch.Tensor]:
        """Where the voxels of some of the file's slices lie, along each working axis."""
        rank = len(self.positions)
        parts = [part if a == axis else slice(None) for a in range(rank)]

        def along(values: torch.Tensor, a: int) -> torch.Tensor:
            return values[parts[a]].reshape([-1 if d == a else 1 for d in range(rank)])

        numbers = [along(torch.arange(len(p), dtype=torch.float64), a) for a, p in enumerate(self.positions)]
        places = []
        for a, positions in enumerate(self.positions):
            place = along(positions, a) + sum(float(self.shear[a, d]) * numbers[d] for d in range(rank))
            places.append(place.clamp(0, self.size[a] - 1))
        return list(torch.broadcast_tensors(*places))


def file_grid(image: torch.Tensor, name: str) -> FileGrid:
    """How the grid of the file that a preprocessed image came from lies on the image's own grid.

    Args:
        image: channel-first, with the metadata of ``LoadImage`` if it has any; else its own grid counts.
        name: the file, for errors.

    Raises:
        ValueError: when the image was rotated or cropped on the way from the file.

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
    _refuse_turned(step[:rank, :rank], affine[:rank, :rank].numpy(), order, name)
    file_size = [file_size[from_axis] for from_axis in order]  # from here on in the order of the working grid
    step = step[:, [*order, rank]]
    flips = [axis for axis in range(rank) if step[axis, axis] < 0]
    for axis in flips:
        step[:, -1] += step[:, axis] * (file_size[axis] - 1)
        step[:, axis] *= -1
    shear = step[:rank, :rank] * (1 - np.eye(rank))
    moved = shear * (np.asarray(file_size) - 1)
    is_sheared = bool((abs(moved).sum(1) > MOVED).any())
    positions = []
    for axis, n in enumerate(file_size):
        place = step[axis, axis] * np.arange(n) + step[axis, -1]
        _refuse_outside(place, moved[axis], size[axis], axis, name)
        positions.append(torch.from_numpy(place) if is_sheared else _placed(place, size[axis]))
    return FileGrid(order, flips, positions, to_file, size, shear if is_sheared else None)


def _placed(place: np.ndarray, size: int) -> torch.Tensor:
    # As MONAI's resampling does: nothing where hardly anything would change, and the last voxel goes on for ever.
    same = len(place) == size and np.allclose(np.diff(place), 1, atol=AFFINE_TOL) and abs(place[0]) < AFFINE_TOL
    place = np.arange(size) if same else np.clip(place, 0, size - 1)
    return torch.from_numpy(np.ascontiguousarray(place, dtype=np.float64))


def _refuse_turned(step: np.ndarray, affine: np.ndarray, order: Sequence[int], name: str) -> None:
    """Refuses axes that are not those of the file, but for the shear that ``CheckVolumed`` takes."""
    millimetres = np.linalg.norm(affine, axis=0)[:, None] * step
    rest = abs(millimetres) / np.linalg.norm(millimetres, axis=0)
    rest[np.arange(len(order)), order] = 0
    if len(set(order)) < len(order) or rest.max() > 2 * MAX_SHEAR:
        expected = "preprocessing that swaps, flips or scales axes and no more"
        remedy = "use LoadImaged, Orientationd and Spacingd"
        refuse(name, Fault("grid", expected, "one that turns or shears the image", remedy))


def _refuse_outside(place: np.ndarray, moved: np.ndarray, size: int, axis: int, name: str) -> None:
    slack = 1 + abs(place[-1] - place[0]) / max(len(place) - 1, 1)
    low, high = place[0] + moved.clip(max=0).sum(), place[-1] + moved.clip(min=0).sum()
    if low < -slack or high > size - 1 + slack:
        got = f"{size} slices for a file that lies at {low:.4g} to {high:.4g}"
        expected = f"preprocessing that keeps the whole image along axis {axis}"
        refuse(name, Fault("grid", expected, got, "crop nothing"))


def _sampled(scores: torch.Tensor, places: Sequence[torch.Tensor], axis: int, first: int) -> torch.Tensor:
    """Linear interpolation at any positions; along one axis the scores begin with slice ``first``."""
    low, high = (int(n) for n in (places[axis].min().floor(), places[axis].max().ceil()))
    scores = scores.narrow(1 + axis, low - first, high + 1 - low)
    begin = [low if a == axis else 0 for a in range(len(places))]
    ends = [max(n - 1, 1) for n in scores.shape[1:]]
    grid = [2 * (p - b) / n - 1 for p, b, n in zip(places, begin, ends, strict=True)]
    grid = torch.stack(grid[::-1], -1)[None].to(scores.device)
    return grid_sample(scores[None].to(torch.float64), grid, padding_mode="border", align_corners=True)[0]


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
