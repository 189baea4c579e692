"""A picture of the equivariance report: errors and consistency against the ratio of sizes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# Label and format of each reading; the colours differ for colour-blind readers, too.
_READINGS: dict[str, tuple[str, dict[str, str]]] = {
    "projected": ("output", {"color": "#dc267f", "marker": "o"}),
    "interior": ("before the projection of scales", {"color": "#648fff", "linestyle": "none", "marker": "D"}),
    "unshifted": ("the same, scales not matched (control)", {"color": "#785ef0", "linestyle": "none", "marker": "x"}),
    "floor": ("rescaling there and back, where it loses anything", {"color": "#777777", "ls": "--", "marker": "."}),
}
_ROUNDING = 1e-10  # magnifying is exact but for rounding, which would stretch the axis


def save_curves(rows: Sequence[Mapping[str, Any]], title: str, target: Path) -> None:
    """Saves the errors on a logarithmic axis and the consistency Dice beside it."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    errors, dice = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for reading, (label, style) in _READINGS.items():
        points = [(row["used"], row[reading]) for row in rows if row[reading] and row[reading] > _ROUNDING]
        if points:
            errors.plot(*_apart(points), label=label, markersize=6, **style)
    errors.set(yscale="log", ylabel="relative error (energy)")
    errors.set_title("rescaled output against output of the rescaled image", fontsize=9)
    key = "consistency_dice"
    cases = [(row["used"], case[key]) for row in rows for case in row["cases"] if case[key] is not None]
    means = [(row["used"], row[key]) for row in rows if row[key] is not None]
    if cases:
        dice.plot(*zip(*cases, strict=True), "o", color="#bbbbbb", markersize=4, label="Dice of each image")
    if means:
        dice.plot(*_apart(means), "o-", color="#fe6100", label="mean Dice")
    lowest = min((value for _, value in [*cases, *means]), default=0)
    room = 0.03 * (1 - lowest) + 0.005
    dice.set(ylim=(lowest - room, 1 + room), ylabel="consistency Dice")
    dice.set_title("agreement of the label maps", fontsize=9)
    ratios = [row["used"] for row in rows]
    for axes in (errors, dice):
        axes.set(xscale="log", xlabel="size of the rescaled image / size of the image")
        axes.set_xticks(ratios, [f"{ratio:.2f}" for ratio in ratios], rotation=45 if len(ratios) > 6 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(1, color="#dddddd", linewidth=1, zorder=0)
        axes.grid(axis="y", color="#eeeeee")
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)


def _apart(points: Sequence[tuple[float, float]]) -> list[tuple[float, ...]]:
    """Points by axis, with a gap where nothing is rescaled: between shrinking and magnifying there is no reading."""
    return list(zip(*sorted([*points, (1.0, math.nan)]), strict=True))
