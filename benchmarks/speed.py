"""Speed of the networks on the CPU, beside the published data path, MONAI's UNet and torch's conv3d.

    python -m benchmarks speed --output=benchmarks/results
    python -m benchmarks speed --output=benchmarks/results --rows=build_seunet,pyramid

Every row is measured in a new process, both sides in turns; figures are medians of wall time, ``gain`` is the
baseline's time over ours and ``goal`` what it is to be. Where both sides compute the same function, ``outputs`` and
``gradients`` are their relative differences. Peak memory is what a step adds at most to a process that has run one on a
small image. Rows that are in speed.json already are kept; remove the file, or a row, to measure anew.
"""

import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import cases
from benchmarks.loader import loader_beside_step
from benchmarks.measuring import FORWARD, MEMORY, STEP, Results, Side, difference, gain, gradients, peak_memory, timed

THREADS = 2
# glibc gives the memory of large tensors back to the system and gets it again, page by page; not with these.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
SMALL_EDGE = 29  # of the image that a process runs before its memory is read; the published network takes it


@dataclass(frozen=True)
class Row:
    """A row to measure: ``take`` runs in a new process with further variables, or starts processes itself (None)."""

    name: str
    take: Callable[[], dict[str, Any]]
    environment: dict[str, str] | None


def plan(small: bool, data: str) -> Iterator[Row]:
    """All rows, the networks' first."""
    budget = 0.2 if small else 12.0
    for name in cases.networks(small):
        for mode in (FORWARD, STEP):
            take = partial(beside, name, mode, small, budget)
            yield Row(f"{name} / {mode}", take, {})
            if "pyramid" in name:
                yield Row(f"{name} / {mode} / freed memory kept", take, KEEP)
            if name.startswith("SEUNet") and "kernel 5" not in name:
                yield Row(f"{name} / {mode} / bfloat16 beside float32", partial(half, name, mode, small, budget), {})
    for name in cases.drawn(small):
        yield Row(f"{name} / {STEP}", partial(beside, name, STEP, small, budget), {})
    for name in list(cases.networks(small))[:2]:
        yield Row(f"{name} / {MEMORY}", partial(memory, name, small), None)
    for name in cases.checkpointed(small):
        yield Row(f"{name} / {MEMORY}", partial(memory, name, small), None)
        if name.startswith("SEUNet"):
            yield Row(f"{name} / {STEP}", partial(beside, name, STEP, small, budget), {})
    for name in cases.large_kernels(small):
        if name.endswith("x 1"):
            yield Row(f"{name} / {FORWARD}", partial(beside, name, FORWARD, small, budget / 4), {})
    yield Row("hippocampus bundle / a batch, loader beside step", partial(loader, data, small), {})


def case_of(name: str, small: bool) -> cases.Case:
    torch.set_num_threads(THREADS)
    return cases.every(small)[name]


def beside(name: str, mode: str, small: bool, budget: float) -> dict[str, Any]:
    """A case beside its baseline."""
    case = case_of(name, small)
    sides = case.sides()
    row: dict[str, Any] = {"goal": case.goals.get("cpu", {}).get(mode)}
    if case.is_same:
        row |= differences(*sides.values())
    return {**timed(sides, mode, budget=budget), **row}


def differences(ours: Side, baseline: Side) -> dict[str, float]:
    """Of outputs and gradients; in training, for which the same image gives the same statistics."""
    (y, grad), (expected, expected_grad) = gradients(ours), gradients(baseline)
    return {"outputs": difference(y, expected), "gradients": difference(grad, expected_grad)}


def half(name: str, mode: str, small: bool, budget: float) -> dict[str, Any]:
    """A case under bfloat16 autocast beside the same in single precision."""
    side = case_of(name, small).sides()["ours"]
    return {**timed({"ours": Side(side.net, side.x, half=True), "baseline": side}, mode, budget=budget), "goal": 1.0}


def loader(data: str, small: bool) -> dict[str, Any]:
    """The bundle's training: its loader beside its step."""
    torch.set_num_threads(THREADS)
    return loader_beside_step(data, small=small)


def memory(name: str, small: bool) -> dict[str, Any]:
    """Peak memory of a step, each side in a process of its own."""
    row: dict[str, Any] = {"unit": "MiB", "goal": cases.every(small)[name].goals.get("cpu", {}).get(MEMORY)}
    for which in ("ours", "baseline"):
        row[which] = in_new_process(partial(memory_of, name, which, small))
    return {**row, "gain": gain(row)}


def memory_of(name: str, which: str, small: bool) -> float:
    side = case_of(name, small).sides()[which]
    Side(side.net, side.x[..., :SMALL_EDGE, :SMALL_EDGE, :SMALL_EDGE]).run(STEP)
    return peak_memory(lambda: side.run(STEP), torch.device("cpu"))


def in_new_process(run: Callable[[], Any], environment: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Result of a call in a process that starts with further variables; the allocator reads them then."""
    before = {name: os.environ.get(name) for name in KEEP}
    for name in KEEP:
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(run).result()
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def facts() -> dict[str, Any]:
    return {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}


def main(
    output: str, rows: Sequence[str] | str = "", data: str = "../shared/data/Task04_Hippocampus",
    smoke: bool = False,
) -> None:  # fmt: skip
    """Measures what is not there yet, prints each row as it comes and writes it at once.

    Args:
        output: folder for speed.json.
        rows: parts of names of rows to measure, with commas between; all if empty.
        data: folder of the data set that the bundle's loader reads.
        smoke: whether to show with small networks that everything runs.
    """
    results = Results(Path(output) / "speed.json", **facts())
    wanted = rows.split(",") if isinstance(rows, str) else list(rows)
    planned = list(plan(smoke, data))
    exact = {row.name for row in planned} & set(wanted)
    for row in planned:
        if row.name in results or not (row.name in exact if exact else any(part in row.name for part in wanted)):
            continue
        taken = row.take() if row.environment is None else in_new_process(row.take, row.environment)
        setting = "".join(f"{name}={value} " for name, value in (row.environment or {}).items())
        command = f"{setting}python -m benchmarks speed --output={output} --rows={shlex.quote(row.name)}"
        results.add({"name": row.name, **taken, "threads": THREADS, "torch": torch.__version__, "command": command})
