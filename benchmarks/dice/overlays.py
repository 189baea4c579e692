"""Predictions beside the truth, on a slice of one case at several scales.

python -m benchmarks dice overlays --cases=FOLDER --weights=FOLDER --output=docs/dice_overlays.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import nn

from benchmarks.dice.datasets import CLASSES, Volume, load, split
from benchmarks.dice.evaluating import label_maps
from benchmarks.dice.networks import ENTRIES, once
from benchmarks.dice.sampling import mirrored
from benchmarks.dice.zooming import resized, size_of
from monai_scaleequiv.handlers import draw_overlay, legend_lines

DATASET = "hippocampus"
NETWORKS = {"unet_aug": "UNet + augmentation", "canon_pyramid": "ours"}  # a case is drawn that is typical of the first
WEIGHTS = f"{DATASET}_{{}}_25_0_0_scale_steps_1000_*_weights.pt"  # of each network
SCALES = ("0.6", "1", "1.6")
TRUTH = "truth"
MARGIN = 6  # voxels about the truth
DPI = 100  # at 10 inches 1000 pixels


class Shown(NamedTuple):
    """One scale: a slice of the rescaled image, which covers ``extent`` voxels of the labels' grid, and of labels."""

    image: np.ndarray
    extent: Sequence[int]
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]  # by the network's name, each with
    dice: Mapping[str, float]  # that of the whole volume


def mean_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the labels that either has; NaN where neither has any."""
    labels = set(np.unique(prediction)) | set(np.unique(truth))
    pairs = [(prediction == label, truth == label) for label in sorted(labels - {0})]
    return float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in pairs])) if pairs else float("nan")


def trained(folder: str | Path, network: str) -> nn.Module:
    """A network of the comparison with the weights that its training left."""
    files = sorted(Path(folder).glob(WEIGHTS.format(network)))
    if len(files) != 1:
        raise FileNotFoundError(f"expected one file {WEIGHTS.format(network)} in {folder}, got {len(files)}")
    net = ENTRIES[network].build(3, 1, 1 + len(CLASSES[DATASET]))
    net.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    return once(net).eval()


@torch.no_grad()
def segmented(net: nn.Module, seen: torch.Tensor, truth: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Labels on the truth's grid, of an image (1, C, ...) whose own size was ``size``, as ``measure`` finds them."""
    labels = label_maps(net(seen), size)[0].numpy()
    return labels[tuple(slice(0, n) for n in truth.shape)]


def typical_case(
    net: nn.Module, images: Sequence[torch.Tensor], truths: Sequence[np.ndarray], scales: Sequence[str]
) -> int:
    """Which case's Dice is nearest to the median of all at these scales: none on which a network does oddly well."""
    found = np.empty((len(images), len(scales)))
    for row, image, truth in zip(found, images, truths, strict=True):
        size = list(image.shape[2:])
        row[:] = [mean_dice(segmented(net, resized(image, size_of(size, s)), truth, size), truth) for s in scales]
    return int(np.abs(found - np.median(found, axis=0)).sum(axis=1).argmin())


def best_slice(truth: np.ndarray) -> int:
    """Sagittal, that with most of its rarer label."""
    counts = [(truth == label).sum(axis=(1, 2)) for label in np.unique(truth) if label]
    return int(np.min(counts, axis=0).argmax())


def shown(nets: Mapping[str, nn.Module], image: torch.Tensor, truth: np.ndarray, scales: Sequence[str]) -> dict:
    """For each scale what ``picture`` draws of one case."""
    size = list(image.shape[2:])
    at = best_slice(truth)
    found = {}
    for scale in scales:
        seen = resized(image, size_of(size, scale))
        nearest = int((at + 0.5) * seen.shape[2] / size[0])
        labels = {name: segmented(net, seen, truth, size) for name, net in nets.items()}
        dice = {name: mean_dice(each, truth) for name, each in labels.items()}
        found[scale] = Shown(
            seen[0, 0, nearest].numpy(), size[1:], truth[at], {name: each[at] for name, each in labels.items()}, dice
        )
    return found


def panel(axes: Axes, one: Shown, labels: np.ndarray) -> None:
    """The image in grey, its voxels as large as they are, with the labels' outlines; the first axis to the right."""
    inside = np.nonzero(one.truth)
    width, height = one.extent
    # The labels' grid may end before the image, which was mirrored on to the size of the largest.
    rest = [(0, length - n) for length, n in zip(one.extent, labels.shape, strict=True)]
    shown, truth = (np.pad(part, rest) for part in (labels, one.truth))
    draw_overlay(axes, one.image, one.extent, shown, None if labels is one.truth else truth)
    (left, right), (bottom, top) = ((x.min() - MARGIN + 0.5, x.max() + MARGIN + 0.5) for x in inside)
    axes.set(xlim=(max(left, 0), min(right, width)), ylim=(max(bottom, 0), min(top, height)))


def picture(found: Mapping[str, Shown], classes: Sequence[str], output: str | Path) -> None:
    """A row for each scale: the image with the truth, then each prediction with its Dice."""
    names = list(dict.fromkeys(name for one in found.values() for name in one.predictions))
    with plt.rc_context({"font.size": 11}):
        whole, axes = plt.subplots(len(found), len(names) + 1, squeeze=False, layout="constrained")
        for row, (scale, one) in zip(axes, found.items(), strict=True):
            panel(row[0], one, one.truth)
            row[0].set_ylabel(f"scale {scale}")
            for place, name in zip(row[1:], names, strict=True):
                if name not in one.predictions:
                    place.axis("off")
                    continue
                panel(place, one, one.predictions[name])
                box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 3}
                text = f"Dice {one.dice[name]:.2f}"
                place.text(0.02, 0.04, text, transform=place.transAxes, color="white", bbox=box)
        for place, name in zip(axes[0], [TRUTH, *names], strict=True):
            place.set_title(name)
        lines = legend_lines(range(1, len(classes) + 1), dict(enumerate(classes, start=1)))
        lines.append(Line2D([], [], color="0.6", linewidth=1, linestyle=":", label=TRUTH))
        whole.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
        (left, right), (bottom, top) = axes[0, 0].get_xlim(), axes[0, 0].get_ylim()
        high = 9.6 / axes.shape[1] * (top - bottom) / (right - left)
        whole.set_size_inches(10, axes.shape[0] * (high + 0.06) + 0.7)
        whole.savefig(output, dpi=DPI)
        plt.close(whole)


def main(cases: str, weights: str, output: str) -> None:
    """Draws the test case on which the UNet does as on most, at several scales.

    Args:
        cases: folder with what ``prepare`` left.
        weights: folder with the weights that the protocol keeps.
        output: the picture's file.
    """
    nets = {label: trained(weights, network) for network, label in NETWORKS.items()}
    volumes: list[Volume] = split(DATASET, load(DATASET, cases), "scale", 0)[1]
    size = np.max([volume.label.shape for volume in volumes], axis=0)
    size = size + size % 2
    images = [mirrored(volume.normalised(), size)[None] for volume in volumes]
    truths = [volume.label for volume in volumes]
    chosen = typical_case(next(iter(nets.values())), images, truths, SCALES)
    picture(shown(nets, images[chosen], truths[chosen], SCALES), CLASSES[DATASET], output)
