"""A picture of a volume, its true labels and the predicted ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.transforms import LoadImage

COLOURS = ("#ffb000", "#dc267f", "#648fff", "#fe6100", "#785ef0")  # that differ for colour-blind readers, too


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
