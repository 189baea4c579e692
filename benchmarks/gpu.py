"""Correctness and speed on one GPU in under six minutes, beside the published data path, UNet and conv3d.

    python -m benchmarks gpu --output=benchmarks/results
    python -m benchmarks gpu --output=/tmp/smoke --smoke

Parts: ``check`` (outputs and gradients against the CPU's in float64), ``time`` (each cell of the table in single
precision, TF32 and bfloat16, with peak memory), ``profile`` (the kernels of the main steps), ``graphs`` (what a CUDA
graph captures, and its gain). Each row is written as soon as it is there; what fails is a row with its error, and the
rest goes on. Rows measured earlier are kept. ``--smoke`` shows on the CPU, with small networks, that all of it runs.
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, gpu_checks, gpu_parts
from benchmarks.loader import loader_beside_step
from benchmarks.measuring import FORWARD, MEMORY, STEP, Results, Side, difference, gain, gradients, peak_memory, timed

PARTS = ("check", "time", "profile", "graphs")
PRECISIONS = {"float32": (False, False), "TF32": (True, False), "bfloat16": (True, True)}  # TF32 allowed, autocast
HALF_GOAL = 1.5  # of bfloat16 beside TF32


class Session:
    """One run: where it computes, what it has measured, and until when it may go on."""

    def __init__(self, results: Results, device: str, small: bool, limit: float) -> None:
        self.results, self.device, self.small = results, device, small
        self.deadline = time.monotonic() + limit
        self.failures = 0

    def take(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Adds the row, or one with the error."""
        if name in self.results:
            return
        if time.monotonic() > self.deadline:
            self.results.add({"name": name, "skipped": "the time limit was reached"})
            return
        try:
            row = measure()
        except Exception as error:  # of whatever kind: the rest of the time is not to be lost with it
            row = {"error": f"{type(error).__name__}: {error}"[:1000]}
        self.failures += "error" in row or row.get("passed") is False
        self.results.add({"name": name, **row})


@contextmanager
def precision(name: str) -> Iterator[bool]:
    """Whether TF32 is allowed, within; gives whether to compute under autocast."""
    tf32, half = PRECISIONS[name]
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield half
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def check(session: Session) -> None:
    """Networks and layers on the device against the CPU in float64."""
    for name, build, shape in gpu_checks.modules(session.small):
        for dtype in gpu_checks.TOLERANCES:
            with precision("float32"):
                session.take(
                    f"{session.device} / check {dtype} / {name}",
                    lambda args=(build, shape, dtype): gpu_checks.checked(*args, session.device),
                )


def measure_times(session: Session, data: str) -> None:
    """Every cell of the table, then the bundle's loader."""
    for case in cases.networks(session.small).values():
        _case_times(session, case, tuple(PRECISIONS), (FORWARD, STEP))
    for case in cases.large_kernels(session.small).values():
        if case.is_layer and case.shape[0] == 1:
            continue
        which = ("float32", "bfloat16") if case.name.startswith("RepUXNet") else ("float32",)
        _case_times(session, case, which, (FORWARD, STEP))
    for case in cases.checkpointed(session.small).values():
        _case_times(session, case, ("float32", "bfloat16"), (STEP,))
    for workers in (None, 4):
        session.take(
            f"{session.device} / hippocampus bundle / a batch, loader beside step / {workers or 'own'} workers",
            lambda workers=workers: loader_beside_step(data, session.device, workers, session.small),
        )


def _case_times(session: Session, case: cases.Case, which: Sequence[str], modes: Sequence[str]) -> None:
    sides = cache(lambda: case.sides(session.device))  # built by the first row that needs them
    for kind in which:
        for mode in modes:
            name = f"{session.device} / {kind} / {case.name} / {mode}"
            session.take(name, lambda args=(kind, mode): _timed(case, sides(), *args, session.small))
        if not case.is_layer:
            name = f"{session.device} / {kind} / {case.name} / {MEMORY}"
            session.take(name, lambda kind=kind: _memory(case, sides(), kind))
    for mode in modes if {"TF32", "bfloat16"} <= set(which) else ():
        name = f"{session.device} / bfloat16 beside TF32 / {case.name} / {mode}"
        session.take(name, lambda mode=mode: _half_beside_tf32(session, case.name, mode))


def _timed(case: cases.Case, sides: dict[str, Side], kind: str, mode: str, small: bool) -> dict[str, Any]:
    with precision(kind) as half:
        for side in sides.values():
            side.half = half
        limits = {"budget": 0, "least": 1} if small else {"budget": 0.8, "most": 20}
        row = {**timed(sides, mode, **limits), "goal": case.goals.get("cuda", {}).get(mode)}
        if case.is_same and kind == "float32" and mode == STEP:
            (y, grad), (expected, expected_grad) = (gradients(side) for side in sides.values())
            row |= {"outputs": difference(y, expected), "gradients": difference(grad, expected_grad)}
    return row


def _memory(case: cases.Case, sides: dict[str, Side], kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"unit": "MiB", "goal": case.goals.get("cuda", {}).get(MEMORY)}
    with precision(kind) as half:
        for name, side in sides.items():
            side.half = half
            row[name] = peak_memory(lambda side=side: side.run(STEP), side.x.device)
    return {**row, "gain": gain(row)}


def _half_beside_tf32(session: Session, case: str, mode: str) -> dict[str, Any]:
    rows = {row["name"]: row for row in session.results.rows}
    pair = {"ours": "bfloat16", "baseline": "TF32"}
    row = {side: rows[f"{session.device} / {kind} / {case} / {mode}"]["ours"] for side, kind in pair.items()}
    return {"unit": "s", **row, "gain": gain(row), "goal": HALF_GOAL}


def profile(session: Session) -> None:
    """The kernels of the main steps in bfloat16."""
    for name, case in cases.every(session.small).items():
        if name.startswith(("SEUNet 4-32", "SEUNet 16-64 beside", "RepUXNet")) and "checkpoint" not in name:
            with precision("bfloat16"):
                session.take(
                    f"{session.device} / profile bfloat16 / {name} / {STEP}",
                    lambda case=case: gpu_parts.kernels(case.sides(session.device)["ours"]),
                )


def graphs(session: Session) -> None:
    """Forward passes, and the training step of a pyramid, as one CUDA graph."""
    for name, case in cases.networks(session.small).items():
        is_pyramid = name.startswith("pyramid")
        if not (is_pyramid and name.endswith("x 1")) and not name.startswith(("SEUNet published", "SEUNet 16-64")):
            continue
        captures = {FORWARD: gpu_parts.captured_forward} | ({STEP: gpu_parts.captured_step} if is_pyramid else {})
        for mode, capture in captures.items():
            session.take(
                f"{session.device} / CUDA graph beside eager / {name} / {mode}",
                lambda case=case, capture=capture: capture(case.sides(session.device)["ours"]),
            )


def facts(device: str) -> dict[str, Any]:
    """Machine and versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "device": device}
    if device == "cuda":
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version()}
        if shutil.which("nvidia-smi"):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return found


def main(
    output: str, parts: Sequence[str] | str = PARTS, data: str = "../shared/data/Task04_Hippocampus",
    limit: float = 340.0, smoke: bool = False,
) -> None:  # fmt: skip
    """Runs the parts, prints each row as it comes and writes it at once; the exit status is 1 if something failed.

    Args:
        output: folder for gpu.json.
        parts: which of check, time, profile and graphs, with commas between.
        data: folder of the data set that the bundle's loader reads.
        limit: seconds after which no row is begun any more.
        smoke: whether to compute on the CPU with small networks.
    """
    device = "cpu" if smoke else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, found none; --smoke runs on the CPU.")
    session = Session(Results(Path(output) / "gpu.json", **facts(device)), device, smoke, limit)
    steps = {"check": check, "time": lambda s: measure_times(s, data), "profile": profile, "graphs": graphs}
    for part in parts.split(",") if isinstance(parts, str) else parts:
        steps[part](session)
    if session.failures:
        raise SystemExit(f"{session.failures} rows failed, see {session.results.file}")
