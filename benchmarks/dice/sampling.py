"""Random training samples, drawn on the device: the same numbers on each, one shape, nothing decided on the host.

A sample is a box of the image around a random centre, resampled axis by axis with a cubic kernel that widens where the
image becomes smaller, against aliasing, and then rotated. What it reaches beyond the image is mirrored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks import one_hot

from benchmarks.dice.datasets import Volume
from benchmarks.dice.zooming import PRODUCTS

MARGIN = 1.25  # of the box that is rotated, over what is kept of it
NOISE_BANK = 1 << 22
MULTIPLE = 4  # that sizes of whole images are rounded to
WHOLE_NUMBERS = ("case", "noise_from", "size")  # of a plan


@dataclass(frozen=True)
class Augmentation:
    """How samples vary: sizes within 2 ** +-octaves, rotation in degrees, flips of these axes."""

    octaves: float = 0.0
    rotation: float = 15.0
    flips: tuple[int, ...] = (0,)
    is_whole: bool = False  # whether samples are whole images, of another size each step, and not boxes of one size
    gain: float = 0.2
    offset: float = 0.2
    noise: float = 0.1


class Bank:
    """The training volumes on the device, mirrored out to one size, as images (N, C, ...) and labels (N, ...).

    Args:
        volumes: of the training.
        size: of a sample, one number per axis; two for samples of single slices.
        classes: number of classes with the background.
        device: where samples are drawn.
    """

    def __init__(self, volumes: list[Volume], size: tuple[int, ...], classes: int, device: torch.device) -> None:
        self.size, self.classes, self.axes = size, classes, len(size)
        images, labels = [], []
        for volume in volumes:
            image, label = volume.normalised(), torch.from_numpy(volume.label)
            if self.axes == 2:  # each slice for itself
                images += image.movedim(-1, 0).unbind(0)
                labels += label.movedim(-1, 0).unbind(0)
            else:
                images.append(image)
                labels.append(label)
        largest = np.max([label.shape for label in labels], axis=0)
        self.of_volume = [i for i, v in enumerate(volumes) for _ in range(v.label.shape[-1] if self.axes == 2 else 1)]
        self.sizes = [tuple(label.shape) for label in labels]
        self.inside = [np.flatnonzero(label.numpy()) for label in labels]
        self.images = torch.stack([mirrored(x, largest) for x in images]).to(device, torch.float16)
        self.labels = torch.stack([mirrored(x[None], largest)[0] for x in labels]).to(device)
        self.noise = torch.randn(NOISE_BANK, generator=torch.Generator().manual_seed(0)).to(device)

    def plan(
        self, steps: int, batch: int, augmentation: Augmentation, seed: int, is_grouped: bool = False
    ) -> dict[str, torch.Tensor]:
        """What each sample of each step is: tensors (steps, batch, ...) on the device, which the seed alone decides.

        ``step`` is the distance of a sample's voxels in voxels of the image, negative for a flip; ``size`` is there for
        whole images, (steps, axes). With ``is_grouped``, all samples of a batch are of one volume.
        """
        rng = np.random.default_rng(seed)
        shape = (steps, batch)
        case = self._cases(shape, is_grouped, rng)
        zoom = 2 ** rng.uniform(-augmentation.octaves, augmentation.octaves, shape)
        step = np.repeat(1 / zoom[..., None], self.axes, axis=-1)
        centre = np.empty((*shape, self.axes))
        for index in np.ndindex(*shape):
            centre[index] = self._centre(case[index], step[index], rng)
        numbers = {"case": case}
        if augmentation.is_whole:  # of one size for all of a batch
            numbers["size"] = sizes = MULTIPLE * np.maximum(np.round(zoom[:, :1] * self.size / MULTIPLE), 1)
            step = np.repeat((self.size / sizes)[:, None], batch, axis=1)
            centre[:] = (np.array(self.sizes)[case] - 1) / 2
        for axis in augmentation.flips:
            step[..., axis] *= rng.choice([-1, 1], shape)
        degrees = rng.uniform(-augmentation.rotation, augmentation.rotation, (*shape, 3 if self.axes == 3 else 1))
        numbers |= {
            "centre": centre,
            "step": step,
            "rotation": _rotations(np.deg2rad(degrees)),
            "gain": 1 + rng.uniform(-augmentation.gain, augmentation.gain, shape),
            "offset": rng.uniform(-augmentation.offset, augmentation.offset, shape),
            "noise": augmentation.noise * rng.uniform(0, 1, shape),
            "noise_from": rng.integers(0, NOISE_BANK // 2, shape[:1]),
        }
        return {
            name: torch.as_tensor(x, dtype=torch.int64 if name in WHOLE_NUMBERS else torch.float32).to(
                self.noise.device
            )
            for name, x in numbers.items()
        }

    def _cases(self, shape: tuple[int, int], is_grouped: bool, rng: np.random.Generator) -> np.ndarray:
        if not is_grouped:
            return _in_turn(shape[0] * shape[1], len(self.sizes), rng).reshape(shape)
        slices = [np.flatnonzero(np.array(self.of_volume) == i) for i in range(max(self.of_volume) + 1)]
        return np.stack([rng.choice(slices[i], shape[1]) for i in _in_turn(shape[0], len(slices), rng)])

    def _centre(self, case: int, step: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Half of them within an organ; the box stays inside the image where it is smaller than it.
        size, length = np.array(self.sizes[case]), np.array(self.size) * step
        where = rng.uniform(0, 1, self.axes) * size - 0.5
        if rng.uniform() < 0.5 and len(self.inside[case]):
            where = np.array(np.unravel_index(rng.choice(self.inside[case]), tuple(size)), dtype=float)
        slack = np.maximum(size - length, 0) / 2
        centred = (size - 1) / 2
        return np.clip(where, centred - slack, centred + slack)

    @torch.no_grad()
    def sample(
        self, plan: dict[str, torch.Tensor], at: torch.Tensor, size: Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, ...) and labels (B, 1, ...) of one step; ``at`` holds its number, on the device."""
        size = tuple(size) or self.size
        now = {name: x.index_select(0, at)[0] for name, x in plan.items() if name != "size"}
        labels = one_hot(self.labels.index_select(0, now["case"])[:, None].float(), self.classes)
        x = torch.cat([self.images.index_select(0, now["case"]).float(), labels], dim=1)  # (B, C + classes, ...)
        box = [int(MARGIN * n) for n in size]
        for axis in range(self.axes):
            matrix = resampling(x.shape[2 + axis], box[axis], now["centre"][:, axis], now["step"][:, axis])
            x = torch.einsum(PRODUCTS[self.axes, axis], matrix, x)
        x = self._rotated(x, now["rotation"], size)
        channels = self.images.shape[1]
        image, label = x[:, :channels], x[:, channels:].argmax(dim=1, keepdim=True)
        each = [-1] + [1] * (self.axes + 1)
        at_random = now["noise_from"] + torch.arange(image.numel(), device=x.device) % (NOISE_BANK // 2)
        noise = self.noise[at_random].view_as(image)
        image = image * now["gain"].view(each) + now["offset"].view(each) + noise * now["noise"].view(each)
        return image, label

    def _rotated(self, x: torch.Tensor, rotation: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        grid = torch.matmul(self._points(size), rotation)  # (B, voxels, axes), in voxels from the centre
        # grid_sample's units: -1 to 1, the last axis first
        grid = torch.stack([2 / n * grid[..., i] for i, n in enumerate(reversed(x.shape[2:]))], dim=-1)
        return F.grid_sample(
            x, grid.unflatten(1, size), mode="bilinear", padding_mode="reflection", align_corners=False
        )

    def _points(self, size: tuple[int, ...]) -> torch.Tensor:
        points = [torch.arange(n, device=self.noise.device) - (n - 1) / 2 for n in size]
        return torch.stack(torch.meshgrid(*points, indexing="ij")[::-1], dim=-1).flatten(0, -2)


def _in_turn(count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers below n, each once before any comes again."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-count // n))])[:count]


def resampling(n: int, size: int, centre: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Matrices (B, size, n): values of a mirrored line of n at ``size`` points around ``centre``, ``step`` apart."""
    points = centre[:, None] + (torch.arange(size, device=centre.device) - (size - 1) / 2) * step[:, None]
    points = (points + 0.5).remainder(2 * n)
    points = torch.where(points > n, 2 * n - points, points) - 0.5  # within the line
    away = points[:, :, None] - torch.arange(-n, 2 * n, device=centre.device)
    weights = _cubic(away / step.abs().clamp(min=1)[:, None, None])
    weights = weights / weights.sum(dim=2, keepdim=True)
    before, within, after = weights.split(n, dim=2)
    return before.flip(2) + within + after.flip(2)


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Matrices (..., axes, axes): in the plane, or about the three axes one after the other."""
    cos, sin = np.cos(angles), np.sin(angles)
    if angles.shape[-1] == 1:
        return np.stack([cos, -sin, sin, cos], axis=-1).reshape(*angles.shape[:-1], 2, 2)
    total = np.broadcast_to(np.eye(3), (*angles.shape, 3))
    for axis in range(3):
        i, j = [k for k in range(3) if k != axis]
        turn = np.zeros((*angles.shape, 3))
        turn[..., axis, axis] = 1
        turn[..., i, i], turn[..., i, j] = cos[..., axis], -sin[..., axis]
        turn[..., j, i], turn[..., j, j] = sin[..., axis], cos[..., axis]
        total = total @ turn
    return total


def _cubic(x: torch.Tensor) -> torch.Tensor:
    # Keys' kernel (1981) with a = -1/2
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def mirrored(x: torch.Tensor, size: np.ndarray) -> torch.Tensor:
    """Images (C, ...) continued to this size beyond their ends, as in a mirror at the border of the last voxel."""
    for axis, n in enumerate(size, start=1):
        have = x.shape[axis]
        index = np.arange(n) % (2 * have)
        x = x.index_select(axis, torch.from_numpy(np.where(index < have, index, 2 * have - 1 - index)))
    return x
