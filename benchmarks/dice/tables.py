"""Results of trainings as Markdown.

python -m benchmarks dice table --results=benchmarks/results/dice
"""

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.dice.statistics import (
    Difference,
    Group,
    conditions_of,
    difference,
    estimate,
    grouped,
    home,
    in_average,
    load,
    longest,
    rows_of,
    seen_mean,
    values,
)

# fmt: off
PAIRS = {  # ours and the baseline, network/test
    "hippocampus": [
        ("canon_pyramid/own", "unet_aug/own"), ("canon_pyramid/own", "unet_aug/four_mean"),
        ("canon_whole_aug/own", "unet_whole_aug/half"), ("canon_unet/half", "unet_aug/four_mean"),
        ("canon_unet_after/four_mean", "unet_aug/four_mean"), ("canon_unet_after_1000/four_mean", "unet_aug/four_mean"),
    ],
    "brats": [("canon_pyramid_matched/own", "unet_aug/half"), ("seunet_aug/own", "unet_aug/half")],
    "acdc": [("pyramid_mm_aug/own", "unet_resampled_aug/own")],
}
# fmt: on
COSTS = {  # heading: of a run, format
    "parameters": (lambda run: run["parameters"], ",.0f"),
    "GMAC": (lambda run: run["gmacs"], ".3g"),
    "ms per step": (lambda run: 1000 * run.get("seconds_per_step", run["training_seconds"] / run["steps"]), ".3g"),
    "training s": (lambda run: run["training_seconds"], ".0f"),
}


def number(x: float | None, form: str = ".3f") -> str:
    return "-" if x is None or np.isnan(x) else format(x, form)


def interval(low: float, high: float, form: str = ".3f") -> str:
    return "-" if np.isnan(low + high) else f"{low:{form}} to {high:{form}}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def title(group: Group) -> str:
    of_plain = group.match.removeprefix("time")  # steps, or none for the shortest of several times
    same = f"the time of {of_plain} steps of the plain network" if of_plain else "the same time"
    trained = f"{group.steps} steps" if group.match == "steps" else same
    return f"### {group.dataset}, {group.setting}, {group.volumes} volumes, {trained}"


def costs(runs: Sequence[dict]) -> list[str]:
    return [number(np.mean([cost(run) for run in runs]), form) for cost, form in COSTS.values()]


def dice_cells(runs: Sequence[dict], row: tuple[str, str], conditions: Sequence[str]) -> list[str]:
    """Means, and intervals at home and of the average, which is left out where a condition is: it would be another."""
    found = values(runs, *row)
    if not found:
        return ["-"] * (len(conditions) + 3)
    mean, low, high = estimate(found.table, counted=in_average(found.conditions))
    means = dict(zip(found.conditions, mean, strict=False))
    intervals = dict(zip(found.conditions, map(interval, low, high), strict=False))
    complete = found.conditions == list(conditions)
    average, its_interval = (number(mean[-1]), interval(low[-1], high[-1])) if complete else ("-", "-")
    each = [number(means.get(c)) for c in conditions]
    return [*each, average, intervals.get(home(conditions), "-"), its_interval]


def distance_cell(runs: Sequence[dict], row: tuple[str, str], condition: str) -> str:
    found = values(runs, *row, measure="hd95")
    if not found or condition not in found.conditions:
        return "-"
    return number(seen_mean(found.at([condition]).table, axis=(0, 1))[0], ".2f")


def line(runs: Sequence[dict], row: tuple[str, str], conditions: Sequence[str]) -> list[str]:
    """Cells of one network and test."""
    own = longest(run for run in runs if run["network"] == row[0] and row[1] in run["tests"])
    distance = distance_cell(runs, row, home(conditions))
    return ["/".join(row), *dice_cells(runs, row, conditions), distance, *costs(own), str(len(own))]


def average_of(conditions: Sequence[str]) -> str:
    return "mean" if all(in_average(conditions)) else "mean over scales"


def results_table(runs: Sequence[dict]) -> str:
    """Dice and costs of every network and test of one group."""
    rows = rows_of(runs)
    conditions = conditions_of(runs)
    at = home(conditions)
    head = [
        "network/test",
        *conditions,
        average_of(conditions),
        f"95 % at {at}",
        "95 % of the mean",
        f"HD95 at {at}",
        *COSTS,
        "runs",
    ]
    return markdown(head, [line(runs, row, conditions) for row in rows])


def verdict(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else ""


def difference_table(found: Difference) -> str:
    """One line for each condition, the last for their average."""
    lines = []
    for name, mean, low, high, p in zip(
        [*found.conditions, average_of(found.conditions)], *found.estimate, found.p, strict=True
    ):
        lines.append([name, number(mean, "+.3f"), interval(low, high, "+.3f"), number(p, ".2g"), verdict(low, high)])
    return markdown(["condition", "difference", "95 %", "p", ""], lines)


def comparison(runs: Sequence[dict], ours: str, baseline: str) -> str:
    pair = [values(runs, *name.split("/")) for name in (ours, baseline)]
    found = difference(*pair) if all(pair) else None
    if not found:
        return f"{ours} less {baseline}: no run of both."
    return f"{ours} less {baseline}, {found.runs} runs, {found.cases} volumes:\n\n{difference_table(found)}"


def main(results: str, ours: str | None = None, baseline: str | None = None) -> None:
    """Prints the results of every group of runs, and how two rows of it differ.

    Args:
        results: folder with the JSON files of the runs.
        ours: network/test whose difference to the baseline is taken; by default those of the data set in ``PAIRS``.
        baseline: network/test that is subtracted.
    """
    for group, runs in grouped(load(results)).items():
        pairs = dict.fromkeys((ours or ours_usual, baseline or usual) for ours_usual, usual in PAIRS[group.dataset])
        parts = [title(group), results_table(runs), *(comparison(runs, *pair) for pair in pairs)]
        sys.stdout.write("\n\n".join(parts) + "\n\n")
