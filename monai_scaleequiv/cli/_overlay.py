"""A picture of a volume, its true labels and the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.visualize import blend_images

__all__ = ["save_overlay"]

_COLOURS = ("#ffb000", "#dc267f", "#648fff", "#fe6100", "#785ef0")  # told apart by colour-blind readers, too
_OPACITY = 0.5


def save_overlay(image: Path, truth: Path, prediction: Path, classes: Sequence[str], target: Path) -> None:
    """Saves three orthogonal slices through the middle of the labelled structure: image, truth and prediction.

    Args:
        image: NIfTI file of the volume, whose axes run to the right, anterior and superior.
        truth: label map on the same grid.
        prediction: label map on the same grid.
        classes: names of the labels 1, 2 and so on, five at most.
        target: PNG file to write.

    Example::

        >>> save_overlay("image.nii.gz", "label.nii.gz", "seg.nii.gz", ["body", "core"], "out.png")  # doctest: +SKIP
    """
    volume, true_labels, labels = (np.asarray(nib.load(path).dataobj) for path in (image, truth, prediction))
    low, high = np.percentile(volume, (0.5, 99.9))
    grey = np.clip((volume - low) / (high - low), 0, 1)[None].astype(np.float32)
    columns = {
        Path(image).name.split(".")[0]: np.repeat(grey, 3, axis=0),
        "truth": _coloured(grey, true_labels, len(classes)),
        "prediction": _coloured(grey, labels, len(classes)),
    }
    middle = np.round(np.argwhere(true_labels > 0).mean(axis=0)).astype(int)
    _figure(columns, middle, classes).savefig(target, dpi=150)


def _coloured(grey: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as shares of the colour map, so that a class has one colour whichever others are there."""
    share = labels[None].astype(np.float32) / classes
    colours = ListedColormap(["black", *_COLOURS[:classes]])
    return np.clip(blend_images(grey, share, alpha=_OPACITY, cmap=colours, rescale_arrays=False), 0, 1)


def _figure(columns: dict[str, np.ndarray], middle: np.ndarray, classes: Sequence[str]) -> Figure:
    shape = next(iter(columns.values())).shape[1:]
    planes = {"axial": 2, "coronal": 1, "sagittal": 0}
    heights = [shape[1] if axis == 2 else shape[2] for axis in planes.values()]
    widest = max(shape[:2])
    figure = Figure(figsize=(7.5, 2.3 * sum(heights) / widest + 0.9), layout="constrained", facecolor="black")
    grid = figure.subplots(len(planes), len(columns), gridspec_kw={"height_ratios": heights}, squeeze=False)
    for (plane, axis), row in zip(planes.items(), grid, strict=True):
        for volume, axes in zip(columns.values(), row, strict=True):
            slice_ = volume.take(middle[axis], axis=axis + 1).transpose(2, 1, 0)
            margin = (widest - slice_.shape[1]) / 2  # so that a voxel is as large in every plane
            axes.imshow(slice_, origin="lower", interpolation="nearest")
            axes.set(xlim=(-0.5 - margin, slice_.shape[1] - 0.5 + margin), xticks=[], yticks=[], facecolor="black")
        row[0].set_ylabel(f"{plane}, slice {middle[axis]}", color="white", fontsize=10)
    for title, axes in zip(columns, grid[0], strict=True):
        axes.set_title(title, color="white", fontsize=11)
    handles = [Patch(facecolor=c, label=name) for c, name in zip(_COLOURS, classes, strict=False)]
    options = {"loc": "outside lower center", "ncols": len(classes), "frameon": False, "labelcolor": "white"}
    figure.legend(handles=handles, fontsize=11, **options)
    return figure
