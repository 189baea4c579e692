"""Pictures: the curves of the equivariance report, and the demo's overlay of labels on a volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from monai.transforms import LoadImage

# All colours differ for colour-blind readers, too.
COLOURS = ("#ffb000", "#dc267f", "#648fff", "#fe6100", "#785ef0")
CURVES = {  # label, colour and marker of each reading
    "projected": ("output", "#dc267f", "o"),
    "interior": ("before the projection of scales", "#648fff", "D"),
    "unshifted": ("the same, scales not matched (control)", "#785ef0", "x"),
    "floor": ("rescaling there and back, where it loses anything", "#777777", "."),
}
ROUNDING = 1e-10  # magnifying is exact but for rounding, which would stretch the axis


def save_curves(rows: Sequence[Mapping[str, Any]], title: str, target: Path) -> None:
    """Saves the errors on a logarithmic axis and the consistency Dice beside it."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    errors, dice = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for reading, (label, colour, marker) in CURVES.items():
        points = [(row["used"], row[reading]) for row in rows if row[reading] and row[reading] > ROUNDING]
        if points:
            errors.plot(*zip(*points, strict=True), marker, color=colour, label=label)
    errors.set(yscale="log", ylabel="relative error (energy)")
    errors.set_title("rescaled output against output of the rescaled image", fontsize=9)
    cases = [(row["used"], case["consistency_dice"]) for row in rows for case in row["cases"]]
    dice.plot(*zip(*cases, strict=True), "o", color="#bbbbbb", markersize=4, label="Dice of each image")
    means = [(row["used"], row["consistency_dice"]) for row in rows]
    dice.plot(*zip(*means, strict=True), "o", color="#fe6100", label="mean Dice")
    dice.set(ylabel="consistency Dice")
    dice.set_title("agreement of the label maps", fontsize=9)
    ratios = [row["used"] for row in rows]
    for axes in (errors, dice):
        axes.set(xscale="log", xlabel="size of the rescaled image / size of the image")
        axes.set_xticks(ratios, [f"{ratio:.2f}" for ratio in ratios], rotation=45)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", color="#eeeeee")
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)


def save_overlay(image: Path, truth: Path, prediction: Path, classes: Sequence[str], target: Path) -> None:
    """Saves three orthogonal slices through the middle of the labelled structure: image, truth and prediction.

    The files share a grid whose axes run to the right, anterior and superior; ``classes`` names labels 1 to 5 at most.
    """
    volume, *maps = (LoadImage(image_only=True, dtype=None)(path).numpy() for path in (image, truth, prediction))
    low, high = np.percentile(volume, (0.5, 99.9))
    middle = np.round(np.argwhere(maps[0] > 0).mean(axis=0)).astype(int)
    planes = {"axial": 2, "coronal": 1, "sagittal": 0}
    heights = [volume.shape[1 if axis == 2 else 2] for axis in planes.values()]
    widest = max(volume.shape[:2])
    figure = Figure(figsize=(7.5, 2.3 * sum(heights) / widest + 0.9), layout="constrained", facecolor="black")
    grid = figure.subplots(3, 3, gridspec_kw={"height_ratios": heights})
    colours = ListedColormap(COLOURS[: len(classes)])
    for (plane, axis), row in zip(planes.items(), grid, strict=True):
        for labels, axes in zip((None, *maps), row, strict=True):
            grey = volume.take(middle[axis], axis=axis).T
            axes.imshow(grey, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            if labels is not None:
                part = np.ma.masked_equal(labels.take(middle[axis], axis=axis).T, 0)
                style = {"cmap": colours, "vmin": 1, "vmax": len(classes), "alpha": 0.5, "interpolation": "nearest"}
                axes.imshow(part, origin="lower", **style)
            margin = (widest - grey.shape[1]) / 2  # so that a voxel is as large in every plane
            axes.set(xlim=(-0.5 - margin, grey.shape[1] - 0.5 + margin), xticks=[], yticks=[], facecolor="black")
        row[0].set_ylabel(f"{plane}, slice {middle[axis]}", color="white", fontsize=10)
    for title, axes in zip((Path(image).name.split(".")[0], "truth", "prediction"), grid[0], strict=True):
        axes.set_title(title, color="white", fontsize=11)
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(COLOURS, classes, strict=False)]
    options = {"ncols": len(classes), "frameon": False, "labelcolor": "white", "fontsize": 11}
    figure.legend(handles=handles, loc="outside lower center", **options)
    figure.savefig(target, dpi=150)
