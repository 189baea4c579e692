"""Pictures: the curves of the equivariance report, and the demo's overlay of labels on a volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from monai.transforms import LoadImage

from monai_scaleequiv.handlers import draw_overlay, legend_lines

# All colours differ for colour-blind readers, too.
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

    The files share a grid whose axes run to the right, anterior and superior; ``classes`` names labels 1, 2 and so on.
    """
    volume, *maps = (LoadImage(image_only=True, dtype=None)(path) for path in (image, truth, prediction))
    lengths = (volume.pixdim * torch.tensor(volume.shape)).tolist()  # mm
    middle = np.round(np.argwhere(maps[0].numpy() > 0).mean(axis=0)).astype(int)
    planes = {"axial": 2, "coronal": 1, "sagittal": 0}
    heights = [lengths[1 if axis == 2 else 2] for axis in planes.values()]
    widest = max(lengths[:2])
    figure = Figure(figsize=(7.5, 2.3 * sum(heights) / widest + 0.9), layout="constrained", facecolor="black")
    grid = figure.subplots(3, 3, gridspec_kw={"height_ratios": heights})
    for (plane, axis), row in zip(planes.items(), grid, strict=True):
        grey, *labels = (part.numpy().take(middle[axis], axis=axis) for part in (volume, *maps))
        width, height = (length for i, length in enumerate(lengths) if i != axis)
        for shown, axes in zip((np.zeros_like(labels[0]), *labels), row, strict=True):
            draw_overlay(axes, grey, (width, height), shown, labels[0] if shown is labels[1] else None)
            margin = (widest - width) / 2  # so that a millimetre is as long in every plane
            axes.set(xlim=(-margin, width + margin), facecolor="black")
        row[0].set_ylabel(f"{plane}, slice {middle[axis]}", color="white", fontsize=10)
    titles = (Path(image).name.split(".")[0], "truth", "prediction, truth dotted")
    for title, axes in zip(titles, grid[0], strict=True):
        axes.set_title(title, color="white", fontsize=11)
    lines = legend_lines(range(1, len(classes) + 1), dict(enumerate(classes, start=1)))
    options = {"ncols": len(classes), "frameon": False, "labelcolor": "white", "fontsize": 11}
    figure.legend(handles=lines, loc="outside lower center", **options)
    figure.savefig(target, dpi=150)
