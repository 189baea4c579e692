"""What a sweep over sizes leaves: a table of all cases, means with their intervals, and a plot."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
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


def summary_of(rows: Sequence[Row], key_metric: str) -> Summary:
    """What ``sweep.json`` holds."""
    conditions = []
    for (condition, factor), group in groupby(rows, key=lambda row: (row.condition, row.factor)):
        cases = [row.values for row in group]
        metrics = {name: mean_and_interval([values[name] for values in cases]) for name in cases[0]}
        conditions.append({"condition": condition, "factor": factor, **metrics})
    return {"key_metric": key_metric, "metrics": list(rows[0].values), "conditions": conditions}


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
        "scale": ("oracle", "size of the anatomy in voxels / its size in the data"),
        "thickness": ("thickness oracle", "thickness of slices / thickness in the data"),
    }
    shown = {name: panel for name, panel in panels.items() if any(_curves(summary, name))}
    figure = Figure(figsize=(6.4 * len(shown) ** 0.7, 4.6), layout="constrained")
    for axes, (name, (oracle, label)) in zip(
        figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown.items(), strict=True
    ):
        _draw(axes, summary, name, oracle)
        axes.set_xlabel(label)
    key = summary["key_metric"]
    figure.axes[0].set_ylabel("Dice" if "dice" in key else key)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    cases = summary["conditions"][0][key]["mean"]["cases"]
    figure.suptitle(f"{cases} cases: mean and 95 % interval (bootstrap over cases)", fontsize=10)
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
    if len(classes) > 1:
        for (name, x, (middle, low, high)), colour in zip(
            classes, colormaps["plasma"](np.linspace(0.1, 0.7, len(classes))), strict=True
        ):
            axes.plot(x, middle, "o-", color=colour, markersize=4, linewidth=1.2, label=f"class {name}")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    _, x, (middle, low, high) = mean
    axes.plot(x, middle, "o-", color="black", markersize=5, linewidth=2, label="mean over classes")
    axes.fill_between(x, low, high, color="black", alpha=0.12, linewidth=0)
    *_, (_, x, (middle, _, _)) = _curves(summary, oracle)
    axes.plot(x, middle, "--", color="#777777", label="oracle: brought back to its size before")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{factor:g}" for factor in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#eeeeee")
