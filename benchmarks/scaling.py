"""How time and memory of SEUNet grow with the volume, the scales, the channels and the scales that interact.

    python -m benchmarks scaling --output=benchmarks/results --picture=docs/scaling.png

Each point is measured in a process of its own, on two threads: medians of forward passes and steps, and what a step
adds at most to the process. ``exponents`` are slopes of straight lines through the logarithms, of cost against voxels
(the edge's cube), scales, channels and interacting scales: 1 is linear. Points that are there already are kept.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import steerable_unet
from benchmarks.measuring import FORWARD, STEP, Results, Side, in_turns, peak_memory, rounded
from benchmarks.speed import THREADS, facts, in_new_process
from monai_scaleequiv import ScaleFilters

# Edge of the volume, number of scales, channels at the top level, number of scales that interact
MIDDLE = {"edge": 64, "scales": 4, "channels": 4, "scale_size": 1}
SWEEPS = {
    "edge": (32, 48, 64, 96, 128),
    "scales": (1, 2, 4, 8),
    "channels": (2, 4, 8, 16),
    "scale_size": (1, 2, 3, 4),
}
SMALL_SWEEPS = {name: (values[0], values[1]) for name, values in SWEEPS.items()}
COSTS = {"forward": "forward, s", "step": "step, s", "memory": "memory of a step, MiB"}


def point(edge: int, scales: int, channels: int, scale_size: int, budget: float) -> dict[str, Any]:
    """Seconds of a forward pass and a step, and MiB that a step adds."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    filters = ScaleFilters([0.9**i for i in range(scales)])
    net = steerable_unet(tuple(channels * 2**i for i in range(4)), scale_size, filters=filters)
    small, side = (Side(net, torch.randn(1, 4, n, n, n)) for n in (16, edge))
    small.run(STEP)
    row: dict[str, Any] = {"unit": "s", "memory": peak_memory(lambda: side.run(STEP), side.x.device)}
    for mode in (FORWARD, STEP):
        taken = in_turns({mode: lambda mode=mode: side.run(mode)}, side.x.device, budget, most=15)
        row[mode] = rounded(statistics.median(taken[mode]))
    return {**row, "ours": row[STEP]}


def exponents(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Slope of each cost along each sweep."""
    found = {}
    for name in SWEEPS:
        swept = [row for row in rows if row["sweep"] == name]
        size = np.log([row[name] ** (3 if name == "edge" else 1) for row in swept])
        found[name] = {cost: rounded(np.polyfit(size, np.log([row[cost] for row in swept]), 1)[0]) for cost in COSTS}
    return found


def plot(rows: Sequence[dict], slopes: dict[str, dict[str, float]], picture: str) -> None:
    """One column for each sweep, times above and memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(12, 5.5), sharex="col", sharey="row", layout="constrained")
    labels = {"edge": "voxels", "scales": "scales", "channels": "channels at the top", "scale_size": "scale_size"}
    for column, (name, label) in zip(axes.T, labels.items(), strict=True):
        swept = sorted((row for row in rows if row["sweep"] == name), key=lambda row: row[name])
        size = [row[name] ** (3 if name == "edge" else 1) for row in swept]
        for cost, style in (("forward", "s--"), ("step", "o-"), ("memory", "o-")):
            axis = column[1 if cost == "memory" else 0]
            axis.plot(size, [row[cost] for row in swept], style, label=f"{cost}: exponent {slopes[name][cost]:.2f}")
        for axis in column:
            axis.set(xscale="log", yscale="log")
            axis.grid(True, which="major", alpha=0.4)
            axis.legend(loc="upper left", fontsize="small")
            axis.minorticks_off()
        ticks = {n: f"{row[name]}³" if name == "edge" else str(n) for n, row in zip(size, swept, strict=True)}
        column[1].set_xticks(list(ticks), list(ticks.values()))
        column[1].set_xlabel(label)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("memory of a step, MiB")
    middle = "{edge}³ voxels, {scales} scales, {channels} channels, scale_size {scale_size}".format(**MIDDLE)
    figure.suptitle(f"SEUNet, kernel 5, batch 1, single precision, CPU, {THREADS} threads; where not varied {middle}")
    figure.savefig(picture, dpi=110)


def main(output: str, picture: str = "", smoke: bool = False) -> None:
    """Measures what is not there yet, then fits and draws.

    Args:
        output: folder for scaling.json.
        picture: file of the figure; none if empty.
        smoke: whether to show with few points that everything runs.
    """
    results = Results(Path(output) / "scaling.json", **facts(), threads=THREADS)
    for name, values in (SMALL_SWEEPS if smoke else SWEEPS).items():
        for value in values:
            row = f"SEUNet / {name} {value}"
            setting = {**MIDDLE, **({"edge": 16} if smoke else {}), name: value}
            if row in results:
                continue
            taken = in_new_process(partial(point, **setting, budget=0.1 if smoke else 6.0))
            results.add({"name": row, "sweep": name, **setting, **taken})
    slopes = exponents(results.rows)
    results.facts["exponents"] = slopes
    results.write()
    if picture:
        plot(results.rows, slopes, picture)
