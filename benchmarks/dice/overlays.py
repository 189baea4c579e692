"""Predictions beside the truth, on slices of one case at several scales."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73")  # of the labels 1, 2, ...
TRUTH = "truth"


def slice_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the labels that either has; NaN where neither has any."""
    labels = set(np.unique(prediction)) | set(np.unique(truth))
    pairs = [(prediction == label, truth == label) for label in sorted(labels - {0})]
    return float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in pairs])) if pairs else float("nan")


def panel(axes: Axes, image: np.ndarray, labels: np.ndarray) -> None:
    """The image in grey with the labels' outlines."""
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    for label in (int(x) for x in np.unique(labels) if x):
        axes.contour(labels == label, [0.5], colors=[COLORS[(label - 1) % len(COLORS)]], linewidths=1.6)
    axes.set(xticks=[], yticks=[])


def overlays(
    slices: Mapping[float, tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]], output: str | Path
) -> None:
    """A row for each scale: the truth, then each prediction, with its Dice on this slice.

    Args:
        slices: by the scale, the image's slice, the truth's, and those of the predictions by their names.
        output: the picture's file.
    """
    names = list(dict.fromkeys(name for _, _, predictions in slices.values() for name in predictions))
    height, width = next(iter(slices.values()))[0].shape
    size = (10, 10 * len(slices) / (len(names) + 1) * height / width + 0.3)
    whole, axes = plt.subplots(len(slices), len(names) + 1, figsize=size, squeeze=False, layout="constrained")
    for row, (scale, (image, truth, predictions)) in zip(axes, slices.items(), strict=True):
        panel(row[0], image, truth)
        row[0].set_ylabel(f"scale {scale:g}")
        for one, name in zip(row[1:], names, strict=True):
            if name not in predictions:
                one.axis("off")
                continue
            panel(one, image, predictions[name])
            text = f"Dice {slice_dice(predictions[name], truth):.2f}"
            box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2}
            one.text(0.03, 0.96, text, transform=one.transAxes, va="top", color="white", bbox=box)
    for one, name in zip(axes[0], [TRUTH, *names], strict=True):
        one.set_title(name)
    whole.savefig(output, dpi=100)
    plt.close(whole)
