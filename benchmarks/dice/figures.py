"""Pictures of the trainings' results, one for each data set and a summary of all.

python -m benchmarks dice figures --results=benchmarks/results/dice --output=docs
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.dice.panels import (
    ROWS,
    against_others,
    against_scale,
    against_time,
    against_volumes,
    as_long,
    by_volumes,
    drawn_rows,
    main_volumes,
    of_all_cases,
)
from benchmarks.dice.statistics import VALIDATION, conditions_of, grouped, is_scale, load

NAMES = {"hippocampus": "Hippocampus", "brats": "BraTS", "acdc": "ACDC"}
ASIDE = ("canon_pyramid_matched",)  # what the summary leaves to the pictures of the data sets
SAME_TIME = "time"  # the shortest of the times that trainings were given
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
    chosen = list(dict.fromkeys(label for label, _, _ in ROWS.values() if label in handles))
    figure.legend([handles[label] for label in chosen], chosen, **where)


def by_setting(results: Sequence[dict], dataset: str) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for run in results:
        if run["dataset"] == dataset and run["setting"] != VALIDATION:
            found[run["setting"]].append(run)
    return dict(sorted(found.items(), reverse=True))  # half before coarse


def mosaic(runs: Sequence[dict]) -> list[list[str]]:
    """Names of the panels of one setting, four in a row: only those that there is something to draw in."""
    found = by_volumes(runs)
    rows = [["home", "home", "mean", "mean"]] if len(found) > 1 else []
    if found:
        scaled = {is_scale(c) for c in conditions_of(found[main_volumes(found)])}
        rows.append([*["scale" if True in scaled else "others"] * 3, "scale" if False not in scaled else "others"])
    if len(by_volumes(runs, SAME_TIME)) > 1:
        rows.append(["long home", "long home", "long mean", "long mean"])
    if any(run["match"] != "steps" for run in runs):
        scaled = any(map(is_scale, conditions_of(runs)))
        rows.append(["time home", "time home", "time mean", "time mean"] if scaled else ["same time"] * 4)
    return rows


def setting_panels(part, runs: Sequence[dict], name: str) -> None:
    """All panels of one setting of a data set."""
    found, long = by_volumes(runs), by_volumes(runs, SAME_TIME)
    axes = part.subplot_mosaic(mosaic(runs))
    n = main_volumes(found) if found else min(run["volumes"] for run in runs)
    alike = of_all_cases([run for run in runs if run["volumes"] == n])
    draw = {
        "home": lambda one: against_volumes(one, found, averaged=False),
        "mean": lambda one: against_volumes(one, found, averaged=True),
        "long home": lambda one: against_volumes(one, long, averaged=False),
        "long mean": lambda one: against_volumes(one, long, averaged=True),
        "scale": lambda one: against_scale(one, found[n]),
        "others": lambda one: against_others(one, {name: found[n]}),
        "same time": lambda one: against_others(one, {name: as_long(alike)}),
        "time home": lambda one: against_time(one, alike, averaged=False),
        "time mean": lambda one: against_time(one, alike, averaged=True),
    }
    for where, one in axes.items():
        draw[where](one)
        if where not in ("home", "mean"):
            volumes = "" if where.startswith("long") else f"{n} labelled volumes, "
            one.set_title((volumes + "trained for the same time" * where.startswith(("same", "long"))).rstrip(", "))
    part.suptitle(name, fontweight="bold")
    legend(part, axes.values(), loc="outside lower center", ncols=3)


def figure(results: Sequence[dict], dataset: str, output: str | Path) -> None:
    """All that is known of one data set, the settings below each other."""
    settings = by_setting(results, dataset)
    with plt.rc_context(STYLE):
        heights = [len(mosaic(runs)) + 0.3 for runs in settings.values()]
        whole = plt.figure(figsize=(10, 3.1 * sum(heights)), layout="constrained")
        parts = whole.subfigures(len(settings), squeeze=False, height_ratios=heights)[:, 0]
        for part, (setting, runs) in zip(parts, settings.items(), strict=True):
            setting_panels(part, runs, f"{NAMES.get(dataset, dataset)}, {setting}")
        whole.savefig(output, dpi=DPI)
        plt.close(whole)


def is_compared(runs: Sequence[dict]) -> bool:
    """Whether there are several networks."""
    return len({network for network, _ in drawn_rows(runs)}) > 1


def summary_panels(results: Sequence[dict], dataset: str) -> dict[str, Callable[[Axes], None]]:
    """What the summary shows of a data set, by title; nothing of one network alone."""
    settings = by_setting([run for run in results if run["network"] not in ASIDE], dataset)
    found = {setting: by_volumes(runs) for setting, runs in settings.items()}
    chosen = {setting: (main_volumes(runs), runs) for setting, runs in found.items() if runs}
    chosen = {setting: (n, runs) for setting, (n, runs) in chosen.items() if is_compared(runs[n])}
    if not chosen:
        return {}
    setting, (main, volumes) = next(iter(chosen.items()))
    numbers = " and ".join(dict.fromkeys(str(n) for n, _ in chosen.values()))
    panels: dict[str, Callable[[Axes], None]] = {}
    if any(map(is_scale, conditions_of(volumes[main]))):
        panels[f"{numbers} labelled, same steps"] = lambda axes: against_scale(axes, volumes[main], share=0.1)
        if len(volumes) > 1:
            panels["mean over the scales, same steps"] = lambda axes: against_volumes(axes, volumes, averaged=True)
        groups = grouped(settings[setting]).items()  # the longest last
        long = [of_all_cases(runs) for group, runs in groups if group.volumes == main and group.match != "steps"]
        if long and is_compared(long[-1]):
            panels[f"{numbers} labelled, same time"] = lambda axes: against_scale(axes, long[-1], share=0.1)
    else:
        each = {setting: runs[n] for setting, (n, runs) in chosen.items()}
        panels[f"{numbers} labelled, same steps"] = lambda axes: against_others(axes, each)
        timed = {setting: as_long(of_all_cases(settings[setting])) for setting in chosen}
        if all(map(is_compared, timed.values())):
            panels[f"{numbers} labelled, same time"] = lambda axes: against_others(axes, timed)
    return panels


def summary(results: Sequence[dict], output: str | Path) -> None:
    """A row for each data set that has something to compare: Dice against scale and volumes, by steps and by time."""
    found = {name: summary_panels(results, dataset) for dataset, name in NAMES.items()}
    rows = {name: panels for name, panels in found.items() if panels}
    if not rows:
        return
    with plt.rc_context(STYLE):
        whole = plt.figure(figsize=(10, 3.6 * len(rows)), layout="constrained")
        for part, (name, panels) in zip(whole.subfigures(len(rows), squeeze=False)[:, 0], rows.items(), strict=True):
            axes = part.subplots(1, len(panels), squeeze=False)[0]
            for one, (title, draw) in zip(axes, panels.items(), strict=True):
                draw(one)
                one.set(title=f"{name}, {title}", ylabel="Dice")
            legend(part, axes, loc="outside lower center", ncols=3)
        whole.savefig(output, dpi=DPI)
        plt.close(whole)


def main(results: str, output: str) -> None:
    """Draws all pictures: ``dice.png``, and ``dice_DATASET.png`` for each data set.

    Args:
        results: folder with the JSON files of the runs.
        output: folder for the pictures.
    """
    runs = load(results)
    Path(output).mkdir(parents=True, exist_ok=True)
    for dataset in sorted({run["dataset"] for run in runs}):
        if by_setting(runs, dataset):
            figure(runs, dataset, Path(output) / f"dice_{dataset}.png")
    summary(runs, Path(output) / "dice.png")
