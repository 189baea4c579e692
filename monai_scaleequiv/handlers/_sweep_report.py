"""What a sweep over sizes leaves: a table of all cases, means with their intervals, and a plot."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_scaleequiv import data

FILES = ("sweep.csv", "sweep.json", "sweep.png")
RESAMPLES = 2000
Summary = dict[str, Any]


class Row(NamedTuple):
    """One case under one condition; ``values`` has each metric's values of the classes."""

    condition: str
    factor: float
    case: str
    values: dict[str, np.ndarray]


def mean_and_interval(values: Sequence[np.ndarray]) -> dict[str, Summary]:
    """Mean and 95 % interval by class and of the cases' means over classes; of values (cases, classes)."""
    table = np.array(values, dtype=float)
    columns = {str(label): column for label, column in enumerate(table.T, start=1)}
    columns["mean"] = np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in table])
    return {name: _interval(column[np.isfinite(column)]) for name, column in columns.items()}


def _interval(values: np.ndarray) -> Summary:
    if not len(values):
        return {"mean": None, "low": None, "high": None, "cases": 0}  # JSON has no NaN
    # The same draws for every condition of as many cases, so that their intervals can be compared.
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "cases": len(values)}


def summary_of(rows: Sequence[Row], key_metric: str, class_names: Mapping[int, str]) -> Summary:
    """What ``sweep.json`` holds."""
    classes = range(1, max(map(len, rows[0].values.values())) + 1)
    conditions = []
    for (condition, factor), group in groupby(rows, key=lambda row: (row.condition, row.factor)):
        cases = [row.values for row in group]
        metrics = {name: mean_and_interval([values[name] for values in cases]) for name in cases[0]}
        conditions.append({"condition": condition, "factor": factor, **metrics})
    names = {str(label): class_names.get(label, f"class {label}") for label in classes}
    return {"key_metric": key_metric, "metrics": list(rows[0].values), "classes": names, "conditions": conditions}


def write_report(folder: str | os.PathLike, rows: Sequence[Row], summary: Summary) -> None:
    """Writes the files, each of which is there whole or not at all."""
    table, numbers, plot = (Path(folder) / name for name in FILES)
    with data.whole_file(table) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        names = [f"{name}_{i}" for name, values in rows[0].values.items() for i, _ in enumerate(values, start=1)]
        csv.writer(file).writerow(["condition", "factor", "case", *names])
        for row in rows:
            csv.writer(file).writerow([*row[:3], *(value for values in row.values.values() for value in values)])
    with data.whole_file(numbers) as unfinished:
        unfinished.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with data.whole_file(plot) as unfinished:
        _save_plot(summary, unfinished)


def _save_plot(summary: Summary, target: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and of use here alone

    panels = {
        "scale": ("oracle", "size of the anatomy in voxels / size in the data"),
        "thickness": ("thickness oracle", "thickness of the slices / thickness in the data"),
    }
    shown = {name: panel for name, panel in panels.items() if any(_curves(summary, name))}
    figure = Figure(figsize=(1.5 + 5.5 * len(shown), 4.8), layout="constrained")
    every = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (name, (oracle, label)) in zip(every, shown.items(), strict=True):
        _draw(axes, summary, name, oracle)
        axes.set_xlabel(label)
    key = summary["key_metric"]
    if "dice" in key:
        every[0].set(ylabel="Dice", ylim=(0, 1))  # the whole range, so that plots of several networks compare
    else:
        every[0].set_ylabel(key)
    entries = every[0].get_legend_handles_labels()
    for columns in (4, 3, 2, 1):  # as many as names of this length leave room for
        legend = figure.legend(*entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    cases = summary["conditions"][0][key]["mean"]["cases"]
    figure.suptitle(f"{cases} cases: mean and 95 % interval", fontsize=11)
    figure.savefig(target, dpi=150)


def _curves(summary: Summary, condition: str) -> Iterator[tuple[str, list[float], np.ndarray]]:
    """Of a condition, by class and for their mean: name, factors, and mean, low and high at each (3, factors)."""
    points = [point for point in summary["conditions"] if point["condition"] == condition]
    for name in points[0][summary["key_metric"]] if points else ():
        curve = [[point[summary["key_metric"]][name][part] for point in points] for part in ("mean", "low", "high")]
        yield name, [point["factor"] for point in points], np.array(curve, dtype=float)


def _draw(axes: Any, summary: Summary, condition: str, oracle: str) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import NullLocator

    *classes, mean = _curves(summary, condition)
    if len(classes) == 1:  # which is the mean
        classes = []
    styles: list[dict[str, Any]] = [
        {"color": colour, "linewidth": 1.2, "markersize": 4, "label": summary["classes"][name]}
        for (name, *_), colour in zip(classes, colormaps["plasma"](np.linspace(0.15, 0.75, len(classes))), strict=True)
    ]
    styles.append({"color": "black", "linewidth": 2, "markersize": 5, "label": "mean"})
    for (_, factors, (middle, low, high)), style in zip([*classes, mean], styles, strict=True):
        axes.plot(factors, middle, "o-", **style)
        axes.fill_between(factors, low, high, color=style["color"], alpha=0.15, linewidth=0)
    *_, (_, factors, (ceiling, _, _)) = _curves(summary, oracle)
    axes.plot(factors, ceiling, "--", color="#777777", label="oracle (mean): image brought back to its own size")
    axes.set_xscale("log")
    axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
