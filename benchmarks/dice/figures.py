"""Pictures of the trainings' results, one for each data set and a summary of all.

python -m benchmarks dice figures --results=benchmarks/results/dice --output=docs
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.dice.panels import (
    ROWS,
    against_time,
    against_volumes,
    by_volumes,
    main_volumes,
    scale_axes,
    validation_curves,
)
from benchmarks.dice.statistics import VALIDATION, load

NAMES = {"hippocampus": "Hippocampus", "brats": "BraTS", "acdc": "ACDC"}
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "lines.markersize": 4.5, "lines.linewidth": 1.5,
}  # fmt: skip
DPI = 100  # at 10 inches 1000 pixels


def legend(figure, axes: Iterable[Axes], **where) -> None:
    """Each label once, whichever axes it is in."""
    handles = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    chosen = [label for label, _, _ in ROWS.values() if label in handles]
    figure.legend([handles[label] for label in chosen], chosen, **where)


def by_setting(results: Sequence[dict], dataset: str) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for run in results:
        if run["dataset"] == dataset and run["setting"] != VALIDATION:
            found[run["setting"]].append(run)
    return dict(sorted(found.items(), reverse=True))  # half before coarse


def setting_panels(part, runs: Sequence[dict], name: str) -> None:
    """All panels of one setting of a data set."""
    found = by_volumes(runs)
    several = [["home", "mean"]] if len(found) > 1 else []
    axes = part.subplot_mosaic([*several, ["scale", "scale"], ["time home", "time mean"]])
    n = main_volumes(found) if found else min(run["volumes"] for run in runs)
    for averaged, where in enumerate(several[0] if several else []):
        against_volumes(axes[where], found, bool(averaged))
    for averaged, where in enumerate(("time home", "time mean")):
        against_time(axes[where], [run for run in runs if run["volumes"] == n], bool(averaged))
    axes["scale"].set_title(f"{n} labelled volumes")
    if found:
        scale_axes(axes["scale"], {name: found[n]})
        validation_curves(axes["time home"], found[n])
        axes["time home"].set_title("dotted: Dice on the validation volumes")
    part.suptitle(name, fontweight="bold")
    legend(part, axes.values(), loc="outside lower center", ncols=3)


def figure(results: Sequence[dict], dataset: str, output: str | Path) -> None:
    """All that is known of one data set, the settings below each other."""
    settings = by_setting(results, dataset)
    with plt.rc_context(STYLE):
        panels = [3 if len(by_volumes(runs)) > 1 else 2 for runs in settings.values()]
        whole = plt.figure(figsize=(10, 3.3 * sum(panels)), layout="constrained")
        parts = whole.subfigures(len(settings), squeeze=False, height_ratios=panels)[:, 0]
        for part, (setting, runs) in zip(parts, settings.items(), strict=True):
            setting_panels(part, runs, f"{NAMES.get(dataset, dataset)}, {setting}")
        whole.savefig(output, dpi=DPI)
        plt.close(whole)


def summary(results: Sequence[dict], output: str | Path) -> None:
    """Three data sets: Dice against the test's scale above, against the number of volumes below."""
    with plt.rc_context(STYLE):
        whole, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
        for (dataset, name), (scale, volumes) in zip(NAMES.items(), axes.T, strict=True):
            found = {setting: by_volumes(runs) for setting, runs in by_setting(results, dataset).items()}
            chosen = {setting: (main_volumes(runs), runs) for setting, runs in found.items() if runs}
            scale_axes(scale, {setting: runs[n] for setting, (n, runs) in chosen.items()}, share=0.1)
            numbers = sorted({n for n, _ in chosen.values()})
            scale.set_title(", ".join([name, *(f"{n} volumes" for n in numbers)]))
            for _, runs in list(chosen.values())[:1]:
                against_volumes(volumes, runs, averaged=False)
        axes[1, 2].clear()
        axes[1, 2].axis("off")  # ACDC has one number of volumes: room for the legend
        legend(whole, list(axes.flat), loc="center", bbox_to_anchor=(0.85, 0.25))
        whole.savefig(output, dpi=DPI)
        plt.close(whole)


def main(results: str, output: str) -> None:
    """Draws all pictures: ``dice.png``, and ``dice_DATASET.png`` for each data set.

    Args:
        results: folder with the JSON files of the runs.
        output: folder for the pictures.
    """
    runs = load(results)
    for dataset in sorted({run["dataset"] for run in runs}):
        figure(runs, dataset, Path(output) / f"dice_{dataset}.png")
    summary(runs, Path(output) / "dice.png")
