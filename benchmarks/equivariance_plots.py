"""Pictures of the results in ``benchmarks/results`` for ``docs/equivariance.md``.

python benchmarks/equivariance_plots.py --results=benchmarks/results --output=docs
"""

from __future__ import annotations

import json
from pathlib import Path

import fire
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

NETWORKS = {
    "own_grid_tested_-2_-1_0_1_mean": ("SEUNet, own grids, finest four scales", "C0", "o-"),
    "own_grid": ("SEUNet, own grids, all five scales", "C9", "o:"),
    "fixed_grid": ("SEUNet, fixed grid", "C1", "s-"),
    "published": ("published SE U-Net", "C3", "v--"),
    "unet": ("UNet", "0.45", "^--"),
    "unet_augmented": ("UNet + scale augmentation", "0.15", "x--"),
}


def generalisation(results: Path, output: Path) -> None:
    """Dice against the size of the test volumes."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (label, color, style) in NETWORKS.items():
        row = json.loads((results / f"scale_generalisation_{name}_0.json").read_text())
        axes.plot(row["scales"], row["dice"], style, color=color, label=label)
    axes.plot(row["scales"], row["dice_of_the_resampled_label"], ":", color="0.6", label="the label itself, resampled")
    axes.set_xscale("log")
    axes.set_xticks(row["scales"], [f"{s:g}" for s in row["scales"]])
    axes.minorticks_off()
    axes.set(xlabel="size of the test volumes; all training at 1", ylabel="mean Dice, 40 volumes", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower center")
    figure.savefig(output / "scale_generalisation.png", dpi=110)


def errors(results: Path, output: Path) -> None:
    """Interior error of untrained layers and networks against the kernel size."""
    rows = json.loads((results / "equivariance_layers.json").read_text())["rows"]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    layers = [r for r in rows if r["table"] == "layers"]
    networks = [r for r in rows if r["table"] == "networks" and r["sizes"] == [73, 81]]
    groups = {
        "one layer": [r for r in layers if r["convolutions"] == 1],
        "three layers with SiLU": [r for r in layers if r["convolutions"] == 3],
        "U-Net, two strides": [r for r in networks if len(r["channels"]) == 3],
    }
    for i, (label, group) in enumerate(groups.items()):
        ours = [r for r in group if r.get("filters", "least_squares") == "least_squares"]
        ours = [r for r in ours if r.get("network", "SEUNet") == "SEUNet"]
        kernels = sorted({r["kernel"] for r in ours})
        best = [min(r["mean"] for r in ours if r["kernel"] == k) for k in kernels]
        theirs = [r["mean"] for r in group if "published" in (r.get("filters"), r.get("network", "").lower()[:9])]
        axes.semilogy(kernels, best, "o-", color=f"C{i}", label=label)
        axes.semilogy([5], theirs, "v", color=f"C{i}", label=f"{label}, published")
    axes.set_xticks([5, 7, 9, 11])
    axes.set(xlabel="kernel size", ylabel="interior error at ratio 10/9")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(output / "equivariance_layers.png", dpi=110)


def main(results: str, output: str) -> None:
    """Draws all pictures.

    Args:
        results: folder with the JSON files of the measurements.
        output: folder for the pictures.
    """
    generalisation(Path(results), Path(output))
    errors(Path(results), Path(output))


if __name__ == "__main__":
    fire.Fire(main)
