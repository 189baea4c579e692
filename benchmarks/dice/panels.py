"""Parts of the pictures of the trainings' results: what one pair of axes shows, and in which colours."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.dice.statistics import conditions_of, estimate, grouped, home, is_scale, seen_mean, values

# What is drawn, in this order: label, colour (Okabe and Ito's, which the colour-blind tell apart), marker and line.
ROWS = {
    ("canon_pyramid", "own"): ("ScalePyramid brought to size (ours)", "#0072B2", "o-"),
    ("canon_pyramid_matched", "own"): ("the same, as many parameters as UNet", "#009E73", "P-"),
    ("pyramid_aug", "four"): ("ScalePyramid (ours)", "#56B4E9", "D-"),
    ("pyramid_mm_aug", "own"): ("ScalePyramid in mm (ours)", "#CC79A7", "p-"),
    ("seunet_aug", "own"): ("SEUNet (ours)", "#CC79A7", "<-"),
    ("unet_aug", "own"): ("UNet", "#D55E00", "s-"),
    ("unet_aug", "half"): ("UNet, mean of 3 scales in the test", "#E69F00", "v-"),
    ("unet_whole_aug", "own"): ("UNet, trained on whole images", "0.5", "^-"),
    ("unet_resampled_aug", "own"): ("UNet at one voxel size", "black", "X-"),
    ("unet_aug", "oracle"): ("UNet, told the scale", "black", "--"),
}
ORACLE = "--"  # the line of what is told the scale
OTHERS = {"z2": "slices\n2x", "z3": "slices\n3x", "own": "own", "same": "training's", "1.5625": "1.56 mm"}


def by_volumes(runs: Sequence[dict]) -> dict[int, list[dict]]:
    """Of one setting, for each number of volumes the runs of the most frequent number of steps."""
    groups = [(group, own) for group, own in grouped(runs).items() if group.match == "steps"]
    found = {group.volumes: own for group, own in sorted(groups, key=lambda item: (len(item[1]), item[0].steps))}
    return dict(sorted(found.items()))


def main_volumes(found: dict[int, list[dict]]) -> int:
    """The number of volumes with most runs, of several the smallest: the networks are for few labelled volumes."""
    return max(found, key=lambda n: (len(found[n]), -n))


def estimate_at(runs: Sequence[dict], row: tuple[str, str], averaged: bool) -> tuple[float, float, float] | None:
    """Dice, and its interval, at the training's scale or averaged over the scales; over all conditions without any.

    None for a network that was not tested under all conditions of the others: its average would be another one.
    """
    found = values(runs, *row)
    conditions = conditions_of(runs)
    chosen = [c for c in conditions if is_scale(c)] or conditions if averaged else [home(conditions)]
    if not found or not set(chosen) <= set(found.conditions):
        return None
    mean, low, high = estimate(found.at(chosen).table)
    return mean[-1], low[-1], high[-1]


def draw(axes: Axes, x: Sequence[float], points: Sequence, style: tuple[str, str, str], filled: bool = True) -> None:
    """A line with its intervals shaded; one point alone gets a bar."""
    label, color, form = style
    mean, low, high = np.array(points).T
    if len(x) > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    else:
        axes.vlines(x, low, high, color=color, linewidth=1)
        form = "_" if form == ORACLE else form[0]
    axes.plot(x, mean, form, color=color, label=label, markerfacecolor=color if filled else "white")


def rows_to_draw(averaged: bool) -> dict:
    """At the training's scale it makes no difference to be told the scale."""
    return {row: style for row, style in ROWS.items() if averaged or style[2] != ORACLE}


def heading(runs: Sequence[dict], averaged: bool) -> str:
    conditions = conditions_of(runs)
    scaled = any(map(is_scale, conditions))
    if averaged:
        return "Dice, mean over scales" if scaled else "Dice, mean over voxel sizes"
    return f"Dice at scale {home(conditions)}" if scaled else f"Dice at {home(conditions)} voxels"


def ticks(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    axes.set_xticks(places, labels)
    axes.minorticks_off()


def against_volumes(axes: Axes, found: dict[int, list[dict]], averaged: bool) -> None:
    for row, style in rows_to_draw(averaged).items():
        points = {n: estimate_at(runs, row, averaged) for n, runs in found.items()}
        points = {n: point for n, point in points.items() if point}
        if points:
            draw(axes, np.log2(list(points)), list(points.values()), style)
    ticks(axes, np.log2(list(found)), [str(n) for n in found])
    axes.set(xlabel="labelled volumes", ylabel=heading(list(chain(*found.values())), averaged))


def against_scale(axes: Axes, runs: Sequence[dict], start: float = 0, prefix: str = "") -> dict[float, str]:
    """Scales on an axis of octaves, then conditions that are no scale, as single points; returns the ticks."""
    found = {row: values(runs, *row) for row in ROWS}
    found = {row: value for row, value in found.items() if value}
    seen = dict.fromkeys(c for value in found.values() for c in value.conditions)
    scales = {c: np.log2(float(c)) for c in seen if is_scale(c)}
    first = max([*scales.values(), start - 0.7])
    others = {c: first + 0.7 * (i + 1) for i, c in enumerate(c for c in seen if not is_scale(c))}
    for i, (row, value) in enumerate(found.items()):
        points = dict(zip(value.conditions, np.array(estimate(value.table)).T, strict=False))  # the average is left
        chosen = sorted((c for c in points if c in scales), key=float)
        if chosen:
            draw(axes, [scales[c] for c in chosen], [points[c] for c in chosen], ROWS[row])
        shift = 0.4 / len(found) * (i - (len(found) - 1) / 2)  # side by side
        for condition in (c for c in points if c in others):
            draw(axes, [others[condition] + shift], [points[condition]], ROWS[row])
    return {x: c for c, x in scales.items()} | {x: prefix + OTHERS.get(c, c) for c, x in others.items()}


def apart(places: dict[float, str], share: float) -> dict[float, str]:
    """Without the labels that come closer to the one before than this share of the axis."""
    least, last, shown = share * (max(places, default=0) - min(places, default=0)), -np.inf, {}
    for x, label in sorted(places.items()):
        shown[x] = label if x - last >= least else ""
        last = x if shown[x] else last
    return shown


def scale_axes(axes: Axes, runs: dict[str, list[dict]], share: float = 0.0) -> None:
    """Dice against the test's scale; several settings stand side by side. ``share`` is that of ``apart``."""
    places = {}
    for setting, chosen in runs.items():
        prefix = f"{setting},\n" if len(runs) > 1 else ""
        places |= against_scale(axes, chosen, max(places, default=-0.9) + 0.9, prefix)
    labels = apart(places, share)
    ticks(axes, list(labels), list(labels.values()))
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="size of the test images, 1 is the training's", ylabel="Dice")
    if places and not any(is_scale(c) for own in runs.values() for c in conditions_of(own)):
        axes.set(xlabel="voxels of the test images", xlim=(min(places) - 0.6, max(places) + 0.6))


def against_time(axes: Axes, runs: Sequence[dict], averaged: bool) -> None:
    """A point for each length of training: filled for the same steps, open for the same time."""
    axes.set_xscale("log")
    for row, style in rows_to_draw(averaged).items():
        for match in ("steps", "time"):
            points = {}
            alike = [run for run in runs if run["match"] == match]
            for steps in sorted({run["steps"] for run in alike if run["network"] == row[0]}):
                chosen = [run for run in alike if run["steps"] == steps]
                point = estimate_at(chosen, row, averaged)
                if point:
                    seconds = [run["training_seconds"] for run in chosen if run["network"] == row[0]]
                    points[float(np.mean(seconds))] = point
            if points:
                draw(axes, list(points), list(points.values()), style, filled=match == "steps")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="seconds of training (filled: same steps, open: same time)", ylabel=heading(runs, averaged))


def validation_curves(axes: Axes, runs: Sequence[dict]) -> None:
    """Dice on the validation volumes during the training, mean over the runs, within the axes' present limits."""
    limits = axes.get_ylim()
    colors = {network: color for (network, _), (_, color, _) in reversed(ROWS.items())}  # a network's first row
    for network, color in colors.items():
        points = defaultdict(list)
        for step, *point in (entry for run in runs if run["network"] == network for entry in run.get("curve", ())):
            points[step].append(point)
        if points:
            x, y = np.array([seen_mean(np.array(points[step], dtype=float), axis=0) for step in sorted(points)]).T
            axes.plot(x, np.where(y < limits[0], np.nan, y), ":", color=color, linewidth=1)
            limits = limits[0], np.nanmax([limits[1], *(y + 0.01)])
    axes.set_ylim(limits)
