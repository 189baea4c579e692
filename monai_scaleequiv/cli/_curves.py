"""A picture of the equivariance report: errors and consistency against the ratio of sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

__all__ = ["save_curves"]

# Label, colour (told apart by colour-blind readers, too), line and marker of each reading.
_READINGS = {
    "projected": ("output", "#dc267f", "-", "o"),
    "interior": ("before the projection of scales", "#648fff", "none", "D"),
    "unshifted": ("the same, scales not matched (control)", "#785ef0", "none", "x"),
    "floor": ("rescaling there and back, where it loses anything", "#777777", "--", "."),
}
_ROUNDING = 1e-10

Points = list[tuple[float, float]]


def save_curves(rows: Sequence[Mapping[str, Any]], title: str, target: Path) -> None:
    """Saves the errors on a logarithmic axis and the consistency Dice beside it.

    Args:
        rows: of the report, one per ratio: ``used`` for the ratio and the means of its readings, with their ``cases``.
        title: what was measured.
        target: PNG file to write.

    Example::

        >>> row = {"used": 0.8, "floor": 0.01, "projected": 0.1, "interior": None, "unshifted": None}
        >>> save_curves([{**row, "consistency_dice": 0.9, "cases": []}], "UNet", Path("curves.png"))
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    errors, dice = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _errors(errors, rows)
    _dice(dice, rows)
    for axes in (errors, dice):
        _ratio_axis(axes, [row["used"] for row in rows])
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)


def _errors(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for reading, (label, colour, line, marker) in _READINGS.items():
        # Magnifying is exact but for rounding, which would stretch the axis.
        points = [(row["used"], row[reading]) for row in rows if row[reading] and row[reading] > _ROUNDING]
        if points:
            style = {"label": label, "color": colour, "linestyle": line, "marker": marker, "markersize": 6}
            axes.plot(*zip(*_apart(points), strict=True), **style)
    axes.set(yscale="log", ylabel="relative error (energy)")
    axes.set_title("rescaled output against output of the rescaled image", fontsize=9)


def _dice(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    key = "consistency_dice"
    cases = [(row["used"], case[key]) for row in rows for case in row["cases"] if case[key] is not None]
    means = [(row["used"], row[key]) for row in rows if row[key] is not None]
    if cases:
        axes.plot(*zip(*cases, strict=True), "o", color="#bbbbbb", markersize=4, label="Dice of each image")
    if means:
        axes.plot(*zip(*_apart(means), strict=True), "o-", color="#fe6100", label="mean Dice")
    lowest = min((value for _, value in [*cases, *means]), default=0)
    room = 0.03 * (1 - lowest) + 0.005
    axes.set(ylim=(lowest - room, 1 + room), ylabel="consistency Dice")
    axes.set_title("agreement of the label maps", fontsize=9)


def _apart(points: Points) -> Points:
    """With a gap where nothing is rescaled: there is no reading between shrinking and magnifying."""
    return sorted([*points, (1.0, math.nan)])


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    axes.set(xscale="log", xlabel="size of the rescaled image / size of the image")
    axes.set_xticks(ratios, [f"{ratio:.2f}" for ratio in ratios], rotation=45 if len(ratios) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color="#dddddd", linewidth=1, zorder=0)
    axes.grid(axis="y", color="#eeeeee")
