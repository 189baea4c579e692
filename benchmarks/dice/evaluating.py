"""Dice of a trained network on test images of other sizes, on the label's own grid."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks import one_hot
from torch import nn

from benchmarks.dice.datasets import CLASSES, Volume
from benchmarks.dice.networks import Entry, once
from benchmarks.dice.sampling import mirrored
from benchmarks.dice.zooming import resized, size_of

CONDITIONS = {
    "hippocampus": ("0.5", "0.6", "0.7", "0.85", "1", "1.2", "1.4", "1.7", "2", "z2", "z3"),
    "brats": ("0.7", "0.8", "0.9", "1", "1.25", "1.4"),
    "selection": ("0.5", "0.7", "1", "1.4", "2"),
    "acdc": ("own", "1.5625"),  # mm; the second is most volumes' own
}
SHORT = ("own", "half", "octaves", "without")  # tests on larger images: no copies of eight times their voxels
MOST_VOXELS = 2_000_000  # of the images that are segmented at once
# Conditions under which the oracle is measured, which sees images brought back to their own size; not all, to save time
BROUGHT_BACK = ("0.5", "0.7", "1", "1.4", "2", "1.25", "z2", "z3")
WITH_DISTANCE = ("1", "own")  # conditions of which HD95 is taken


@torch.no_grad()
def measure(
    net: nn.Module, entry: Entry, volumes: Sequence[Volume], conditions: Sequence[str], device: torch.device
) -> dict:
    """Dice, and HD95 in mm where asked, of each way to apply the network: by condition, case and class.

    ``"oracle"`` sees the rescaled image brought back to its own size: what no rule for sizes can be better than.
    """
    net.eval()
    tests = {name: wrap for name, wrap in entry.tests.items() if volumes[0].dataset == "hippocampus" or name in SHORT}
    applied = {name: wrap(net).eval() for name, wrap in tests.items()}
    found: dict = {name: {"dice": {}, "hd95": {}} for name in [*applied, "oracle"]}
    if entry.is_mirrored:
        volumes = [volume.mirrored() for volume in volumes]
    size = np.max([volume.label.shape for volume in volumes], axis=0)
    size = size + size % 2
    images = torch.stack([mirrored(volume.normalised(), size) for volume in volumes]).to(device)
    truths = [torch.from_numpy(volume.label).to(device) for volume in volumes]
    for condition in conditions:
        seen_size = size_of(size, condition)
        chunk = max(MOST_VOXELS // int(np.prod(seen_size)), 1)
        for images_now, volumes_now, truths_now in zip(
            images.split(chunk), batched(volumes, chunk), batched(truths, chunk), strict=True
        ):
            seen = resized(images_now, seen_size)
            answers = {name: net_applied(seen) for name, net_applied in applied.items()}
            if condition in BROUGHT_BACK:
                answers["oracle"] = once(net)(resized(seen, size))
            for name, logits in answers.items():
                for labels, truth, volume in zip(label_maps(logits, size), truths_now, volumes_now, strict=True):
                    cut = labels[tuple(slice(0, n) for n in truth.shape)]
                    _add(found[name], condition, cut, truth, volume)
    return found


@torch.no_grad()
def measure_slices(
    net: nn.Module, entry: Entry, volumes: Sequence[Volume], conditions: Sequence[str], device: torch.device
) -> dict:
    """The same for volumes that are segmented slice by slice: at their own voxel size, and brought to that of training.

    A network that is told voxel sizes is told the new one.
    """
    net.eval()
    applied = {name: wrap(net).eval() for name, wrap in entry.tests.items()}
    found: dict = {name: {"dice": {}, "hd95": {}} for name in applied}
    for volume in volumes:
        truth = torch.from_numpy(volume.label).to(device)
        image = volume.normalised().movedim(-1, 0).to(device)  # (slices, 1, H, W)
        for condition in conditions:
            size, spacing = list(image.shape[2:]), volume.spacing[:2]
            if condition != "own":
                size = [max(round(n * s / float(condition)), 1) for n, s in zip(size, spacing, strict=True)]
                spacing = [s * n / m for n, m, s in zip(image.shape[2:], size, spacing, strict=True)]
            seen = resized(image, size) if condition != "own" else image
            told = [[s / entry.unit for s in spacing]] if entry.unit else []
            for name, net_applied in applied.items():
                labels = label_maps(net_applied(seen, *told), truth.shape[:2])  # (slices, H, W)
                _add(found[name], condition, labels.movedim(0, -1), truth, volume)
    return found


# One volume's Dice, and HD95 in mm, after those of the volumes before; None where it is not defined: for a class that
# the truth lacks, and HD95 for one that the prediction lacks.
def _add(found: dict, condition: str, prediction: torch.Tensor, truth: torch.Tensor, volume: Volume) -> None:
    classes = 1 + len(CLASSES[volume.dataset])
    pair = [one_hot(x[None, None].float(), classes) for x in (prediction, truth)]
    found["dice"].setdefault(condition, []).append(_numbers(compute_dice(*pair, include_background=False)[0]))
    if condition in WITH_DISTANCE:
        pair = [x.cpu() for x in pair]
        distance = compute_hausdorff_distance(*pair, percentile=95, spacing=list(volume.spacing))[0]
        found["hd95"].setdefault(condition, []).append(_numbers(distance))


def label_maps(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels (B, D, H, W) on a grid of this size, from logits (B, C, ...) of rescaled images."""
    probabilities = torch.softmax(logits.float(), dim=1)
    if tuple(logits.shape[2:]) != tuple(size):
        mode = "trilinear" if len(size) == 3 else "bilinear"
        probabilities = F.interpolate(probabilities, size=tuple(int(n) for n in size), mode=mode)
    return probabilities.argmax(1)


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]


def batched(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """In parts of n, and the rest."""
    rest = iter(items)
    return list(iter(lambda: tuple(islice(rest, n)), ()))
