"""Time and memory of large depthwise convolutions and of RepUXNet, beside torch's own convolution.

    python benchmarks/large_kernel.py --output=benchmarks/results --parts=layer,network,kernel_sizes
    python benchmarks/large_kernel.py --output=benchmarks/results --parts=plot

Both sides live in processes of their own and take turns; what is compared are medians of wall time, and beside them of
CPU time, which depends less on what else the machine is doing. The first run of each side is left out where a side has
more than one. Peak memory is what that run adds at most to the resident memory of a process that holds network and
input (and, for a layer, has run the same on a twelfth of the channels). Results are one JSON file per part; rows that
are there already are kept, so that an interrupted run goes on where it was. Memory is read from /proc, which takes
Linux.
"""

import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin while they wait disturb others

import fire
import torch
from torch import nn

from monai_scaleequiv import LargeKernelConv, RepUXNet

THREADS = 2
SIDES = ("baseline", "ours")
FORWARD, BOTH, HALF = "forward", "forward+backward", "forward, ours with bfloat16 autocast"
LEAN = "forward+backward, 24 channels at full size"
KEPT = "forward+backward, freed memory kept"
TRAINING = (BOTH, LEAN, KEPT)
# For KEPT, on both sides: glibc gives the memory of large tensors back to the system and gets it again, page by page.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
LAYERS = ((384, 6), (192, 12), (96, 24), (48, 48))  # channels and edge of the image
KERNELS = (7, 13, 21, 31)
Case = tuple[str, int, int, int, str]  # what, channels, edge of the image, edge of the kernel, mode


def cases(part: str) -> Iterator[tuple[Case, dict[str, int]]]:
    """What is measured, and how many runs there are of each side."""
    if part == "network":
        for mode, runs in ((FORWARD, (3, 3)), (HALF, (2, 4)), (BOTH, (1, 5)), (LEAN, (1, 5)), (KEPT, (2, 5))):
            yield ("network", 1, 96, 21, mode), dict(zip(SIDES, runs, strict=True))
    elif part == "layer":
        for channels, edge in LAYERS:
            yield ("layer", channels, edge, 21, FORWARD), dict.fromkeys(SIDES, 11 if edge > 24 else 41)
            slow = {6: 13, 12: 9, 24: 2, 48: 1}[edge]
            yield ("layer", channels, edge, 21, BOTH), {"baseline": slow, "ours": max(slow, 10)}
    else:
        for kernel in KERNELS:
            yield ("layer", 48, 32, kernel, FORWARD), dict.fromkeys(SIDES, 11)
            yield ("layer", 48, 32, kernel, BOTH), {"baseline": {7: 5, 13: 3, 21: 1, 31: 0}[kernel], "ours": 10}


@cache
def built(case: Case, side: str) -> tuple[nn.Module, torch.Tensor]:
    """Module and input. The baseline has the same parameters."""
    what, channels, edge, kernel, mode = case
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if what == "network":
        net: nn.Module = RepUXNet(3, channels, 14, full_size_channels=24 if mode == LEAN else None)
    else:
        net = LargeKernelConv(3, channels, kernel)
    if side == "baseline":
        for conv in net.modules():
            if isinstance(conv, LargeKernelConv):
                conv._fast = partial(by_torch, conv)
    x = torch.randn([1, channels, edge, edge, edge], requires_grad=mode == BOTH and what == "layer")
    return net.train(mode in TRAINING), x


def by_torch(conv: LargeKernelConv, x: torch.Tensor) -> torch.Tensor:
    """Torch's own conv3d, with as many groups as channels."""
    padding = [k // 2 for k in conv.kernel_size]
    return nn.functional.conv3d(x, conv.effective_kernel(), conv.bias, padding=padding, groups=conv.channels)


def memory(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


@cache
def warm_up(case: Case, side: str) -> None:
    """The same on few channels, so that the code itself is loaded before memory is read."""
    if case[0] == "layer" and case[1] >= 12:
        run((case[0], case[1] // 12, *case[2:]), side)


def run(case: Case, side: str) -> dict[str, float]:
    """One run: seconds on the wall, seconds of CPU, and MiB added at most; the mean of ten calls where one takes ms."""
    net, x = built(case, side)
    warm_up(case, side)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = memory("VmRSS")
    half = torch.autocast("cpu", torch.bfloat16) if case[-1] == HALF and side == "ours" else contextlib.nullcontext()
    calls = 10 if case[-1] == FORWARD and case[2] <= 12 else 1
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        with torch.set_grad_enabled(case[-1] in TRAINING), half:
            y = net(x)
        if case[-1] in TRAINING:
            y.square().mean().backward()
    seconds = {"wall": (time.perf_counter() - wall) / calls, "cpu": (time.process_time() - cpu) / calls}
    for p in (x, *net.parameters()):
        p.grad = None
    return {**seconds, "mib": memory("VmHWM") - before}


def measured(case: Case, runs: dict[str, int]) -> dict:
    """One row: both sides in turns, the one with fewer runs spread evenly among the other's."""
    readings: dict[str, list[dict]] = {side: [] for side in SIDES}
    most = max(runs.values())
    for name, value in KEEP.items():  # read by the processes as they start
        os.environ.pop(name, None)
        if case[-1] == KEPT:
            os.environ[name] = value
    with contextlib.ExitStack() as stack:
        pools = {s: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for s in SIDES}
        for i in range(most):
            for side in SIDES[:: 1 if i % 2 else -1]:
                # A single run falls amid the other's.
                if (i + most // 2) * runs[side] // most != (i + most // 2 + 1) * runs[side] // most:
                    readings[side].append(pools[side].submit(run, case, side).result())
    keys = ("what", "channels", "edge", "kernel", "mode")
    row: dict = dict(zip(keys, case, strict=True))
    for side in SIDES:
        row[side] = summary(readings[side]) if readings[side] else None
    if row["baseline"]:
        for name in ("wall", "cpu"):
            row[f"{name}_ratio"] = round(row["baseline"][name] / row["ours"][name], 2)
    return {**row, "load": os.getloadavg()[0]}


def summary(readings: Sequence[dict[str, float]]) -> dict[str, float]:
    timed = readings[1:] or readings
    row = {"runs": len(timed), "mib": round(readings[0]["mib"], 1)}
    row |= {name: float(f"{statistics.median(r[name] for r in timed):.4g}") for name in ("wall", "cpu")}
    return {**row, "wall_min": float(f"{min(r['wall'] for r in timed):.4g}")}


def plot(file: Path, picture: str) -> None:
    """Cost against the edge of the kernel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads(file.read_text())["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, mode in zip(axes, (FORWARD, BOTH), strict=True):
        for side, label, style in (("baseline", "torch conv3d", "s--"), ("ours", "LargeKernelConv", "o-")):
            points = sorted((row["kernel"], row[side]["cpu"]) for row in rows if row["mode"] == mode and row[side])
            axis.plot(*zip(*points, strict=True), style, label=label)
        axis.set(yscale="log", title=mode, xlabel="edge of the kernel, voxels", xticks=KERNELS)
        axis.grid(True, which="major", alpha=0.4)
    axes[0].set_ylabel("CPU time, seconds")
    axes[0].legend(loc="upper left")
    figure.suptitle(f"48 channels of 32³, single precision, CPU, {THREADS} threads")
    figure.savefig(picture, dpi=110)


def main(output: str, parts: str = "layer,network,kernel_sizes,plot", picture: str = "docs/large_kernel_cost.png"):
    """Measures the parts, prints each row as it comes and writes it at once; rows of an earlier run are kept.

    Args:
        output: folder for a JSON file per part; remove a file to measure its part again.
        parts: which of layer, network, kernel_sizes and plot, with commas between.
        picture: file for the plot of the part kernel_sizes.
    """
    for part in parts if isinstance(parts, tuple) else parts.split(","):
        file = Path(output) / f"large_kernel_{part}.json"
        if part == "plot":
            plot(file.with_stem("large_kernel_kernel_sizes"), picture)
            continue
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        known = {(r["what"], r["channels"], r["edge"], r["kernel"], r["mode"]) for r in rows}
        sys.stdout.writelines(f"measured earlier: {json.dumps(row)}\n" for row in rows)
        for case, runs in cases(part):
            if case in known:
                continue
            rows.append(measured(case, runs))
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
            facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": THREADS}
            file.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
