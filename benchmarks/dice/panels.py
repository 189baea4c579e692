"""Parts of the pictures of the trainings' results: what one pair of axes shows, and in which colours."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.dice.statistics import conditions_of, estimate, grouped, home, is_scale, rows_of, values

# What is drawn, in this order: label, colour (Okabe and Ito's, which the colour-blind tell apart), marker and line.
ROWS = {
    ("canon_pyramid", "own"): ("ScaleCanonicalizer (ours)", "#0072B2", "o-"),
    ("canon_pyramid_matched", "own"): ("ScaleCanonicalizer, as small as UNet (ours)", "#009E73", "P-"),
    ("canon_whole_aug", "own"): ("ScaleCanonicalizer on whole images (ours)", "#009E73", "P-"),
    ("canon_unet", "half"): ("ScaleCanonicalizer, plain UNet (ours)", "#009E73", "h-"),
    ("canon_unet_after_1000", "four_mean"): ("UNet, mean of 4, canonicalised (ours)", "#009E73", "*-"),
    ("pyramid_aug", "four"): ("ScalePyramid (ours)", "#56B4E9", "D-"),
    ("pyramid_aug", "own"): ("ScalePyramid (ours)", "#56B4E9", "D-"),
    ("pyramid_mm_aug", "own"): ("ScalePyramid in mm (ours)", "#009E73", "p-"),
    ("unet_mm_after", "mm"): ("UNet, applied in mm (ours)", "#0072B2", "*-"),
    ("seunet_aug", "own"): ("SEUNet (ours)", "#CC79A7", "<-"),
    ("seunet_one_scale_mm_aug", "own"): ("SEUNet in mm (ours)", "#CC79A7", ">-"),
    ("seunet_one_scale_mm_aug", "octaves"): ("SEUNet in mm, mean of 2 scales (ours)", "#CC79A7", "P-"),
    ("seunet_aug", "octaves"): ("SEUNet, mean of 2 scales (ours)", "#CC79A7", "P-"),
    ("seunet_one_scale_aug", "own"): ("SEUNet, one scale a step (ours)", "black", ">-"),
    ("seunet_one_scale_aug", "octaves"): ("SEUNet, one scale a step, mean of 2 (ours)", "black", "P-"),
    ("unet_aug", "own"): ("UNet + augmentation", "#D55E00", "s-"),
    ("unet_aug", "four_mean"): ("UNet + augmentation, mean of 4 scales", "#E69F00", "v-"),
    ("unet_mm_after", "four_mean"): ("UNet + augmentation, mean of 4 scales", "#E69F00", "v-"),
    ("unet_aug", "half"): ("UNet + augmentation, mean of 3 scales", "#E69F00", "v-"),
    ("unet_whole_aug", "half"): ("UNet on whole images, mean of 3 scales", "0.5", "^-"),
    ("unet_resampled_aug", "own"): ("UNet at one voxel size", "black", "X-"),
    ("unet_aug", "oracle"): ("UNet + augmentation, told the scale", "black", "--"),
}
BETTER = {
    ("pyramid_aug", "own"): ("pyramid_aug", "four"), ("unet_aug", "half"): ("unet_aug", "four_mean"),
    ("unet_mm_after", "four_mean"): ("unet_aug", "four_mean"),
}  # fmt: skip
"""Rows that are drawn only where the other was not measured, which is better over all scales or of more trainings."""
ORACLE = "--"  # the line of what is told the scale
OTHERS = {"z2": "slices\n2x", "z3": "slices\n3x", "own": "own\nvoxels", "same": "training's", "1.5625": "1.56 mm"}
SETTINGS = {"half": "half of the\npatients", "coarse": "trained above\n1.5 mm"}
USUAL_VOLUMES = 25
MEASURE = "pyramid_mm_aug"  # whose time the others were given on data sets without scales, ACDC


def of_all_cases(runs: Sequence[dict]) -> list[dict]:
    """Without networks that were not tested on all cases of the others, as of some folds: it is another mean."""
    seen = defaultdict(set)
    for run in runs:
        seen[run["network"], run["match"], run["steps"]].update(run["cases"])
    every = set().union(*seen.values())
    return [run for run in runs if seen[run["network"], run["match"], run["steps"]] == every]


def as_long(runs: Sequence[dict]) -> list[dict]:
    """Those of the same time: the network whose time was the measure, and those that were trained for as long."""
    return [run for run in runs if run["match"] != "steps" or run["network"] == MEASURE]


def by_volumes(runs: Sequence[dict], match: str = "steps") -> dict[int, list[dict]]:
    """Of one setting, for each number of volumes the comparable runs of the most frequent number of steps."""
    groups = [(group, of_all_cases(own)) for group, own in grouped(runs).items() if group.match == match]
    groups.sort(key=lambda item: (len(item[1]), item[0].steps or 0))
    return dict(sorted({group.volumes: own for group, own in groups if own}.items()))


def main_volumes(found: dict[int, list[dict]]) -> int:
    """The number of volumes with most runs, of several the usual one, else the smallest: few labels are our subject."""
    return max(found, key=lambda n: (len(found[n]), n == USUAL_VOLUMES, -n))


def drawn_rows(runs: Iterable[dict]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Those of ``ROWS`` that these runs have."""
    seen = set(rows_of(runs))
    return {row: style for row, style in ROWS.items() if row in seen and BETTER.get(row) not in seen}


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
        axes.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0)
    else:
        axes.vlines(x, low, high, color=color, linewidth=1)
        form = "_" if form == ORACLE else form[0]
    axes.plot(x, mean, form, color=color, label=label, markerfacecolor=color if filled else "white")


def rows_to_draw(runs: Iterable[dict], averaged: bool) -> dict[tuple[str, str], tuple[str, str, str]]:
    """At the training's scale it makes no difference to be told the scale."""
    return {row: style for row, style in drawn_rows(runs).items() if averaged or style[2] != ORACLE}


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
    every = list(chain(*found.values()))
    for row, style in rows_to_draw(every, averaged).items():
        points = {n: estimate_at(runs, row, averaged) for n, runs in found.items()}
        points = {n: point for n, point in points.items() if point}
        if points:
            draw(axes, np.log2(list(points)), list(points.values()), style)
    ticks(axes, np.log2(list(found)), [str(n) for n in found])
    axes.set(xlabel="labelled volumes", ylabel=heading(every, averaged))


def against_scale(axes: Axes, runs: Sequence[dict], share: float = 0.0) -> None:
    """Lines over the test's scales, on an axis of octaves; ``share`` is that of ``apart``."""
    seen = {}
    for row, style in drawn_rows(runs).items():
        found = values(runs, *row)
        scales = [c for c in found.conditions if is_scale(c)] if found else []
        if scales:
            points = np.array(estimate(found.at(scales).table)).T[:-1]  # the average is left
            places = dict(zip(np.log2(np.array(scales, dtype=float)), scales, strict=True))
            draw(axes, list(places), points, style)
            seen |= places
    labels = apart(seen, share)
    ticks(axes, list(labels), list(labels.values()))
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="scale of the test images", ylabel="Dice")


def against_others(axes: Axes, runs: dict[str, list[dict]]) -> None:
    """Points side by side for the conditions that are no scale; several settings stand beside each other."""
    shown: dict[float, str] = {}
    for setting, own in runs.items():
        found = {row: values(own, *row) for row in drawn_rows(own)}
        found = {row: value for row, value in found.items() if value}
        conditions = [c for c in conditions_of(own) if not is_scale(c)]
        places = {c: len(shown) + i for i, c in enumerate(conditions)}
        for i, (row, value) in enumerate(found.items()):
            points = dict(zip(value.conditions, np.array(estimate(value.table)).T, strict=False))
            shift = 0.6 / len(found) * (i - (len(found) - 1) / 2)
            for condition in places.keys() & points.keys():
                draw(axes, [places[condition] + shift], [points[condition]], ROWS[row])
        prefix = f"{SETTINGS.get(setting, setting)},\n" if len(runs) > 1 else ""
        shown |= {x: prefix + OTHERS.get(c, c) for c, x in places.items()}
    ticks(axes, list(shown), list(shown.values()))
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="Dice", xlim=(-0.6, len(shown) - 0.4))


def apart(places: dict[float, str], share: float) -> dict[float, str]:
    """Without the labels that come closer to the one before than this share of the axis."""
    least, last, shown = share * (max(places, default=0) - min(places, default=0)), -np.inf, {}
    for x, label in sorted(places.items()):
        shown[x] = label if x - last >= least else ""
        last = x if shown[x] else last
    return shown


def against_time(axes: Axes, runs: Sequence[dict], averaged: bool) -> None:
    """A point for each length of training: filled for the same steps, open for the same time."""
    axes.set_xscale("log")
    for row, style in rows_to_draw(runs, averaged).items():
        for is_filled in (True, False):
            points = {}
            alike = [run for run in runs if (run["match"] == "steps") == is_filled]
            for steps in sorted({run["steps"] for run in alike if run["network"] == row[0]}):
                chosen = [run for run in alike if run["steps"] == steps]
                point = estimate_at(chosen, row, averaged)
                seconds = np.mean([run["training_seconds"] for run in chosen if run["network"] == row[0]])
                if point and np.isfinite(seconds):
                    points[float(seconds)] = point
            if points:
                draw(axes, list(points), list(points.values()), style, is_filled)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="seconds of training (filled: same steps, open: same time)", ylabel=heading(runs, averaged))
