"""How the benchmarks measure: runs in turns, medians, peak memory, differences, and rows that a JSON file keeps."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORWARD, STEP, MEMORY = "forward", "step", "memory of a step"  # forward and backward, without an optimizer


@dataclass
class Side:
    """One of two things that are measured beside each other."""

    net: nn.Module
    x: torch.Tensor
    half: bool = False  # bfloat16 autocast

    def run(self, mode: str) -> torch.Tensor:
        """One forward pass in evaluation, or one training step."""
        is_step = mode == STEP
        if self.net.training != is_step:
            self.net.train(is_step)
        half = torch.autocast(self.x.device.type, torch.bfloat16) if self.half else nullcontext()
        with torch.set_grad_enabled(is_step), half:
            y = self.net(self.x)
        if is_step:
            y.float().square().mean().backward()
            self.forget()
        return y

    def forget(self) -> None:
        for tensor in (self.x, *self.net.parameters()):
            tensor.grad = None


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, by the GPU's own clock where it runs on one."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.cuda.synchronize()  # else what was queued before hides the time that launching takes
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: torch.device, budget: float = 10.0, least: int = 3, most: int = 30
) -> dict[str, list[float]]:
    """Seconds of each call, taken in turns after two that do not count, for about ``budget`` seconds in all.

    Of calls of some milliseconds there are up to ten times ``most``.
    """
    warm = [[seconds(run, device) for run in runs.values()] for _ in range(2)]
    round_seconds = max(sum(warm[-1]), 1e-6)
    rounds = max(least, min(most if round_seconds > 0.05 else 10 * most, int(budget / round_seconds)))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            taken[name].append(seconds(runs[name], device))
    return taken


def timed(sides: Mapping[str, Side], mode: str, **limits: Any) -> dict[str, Any]:
    """Row with the medians of both sides, and how many times the baseline takes."""
    device = next(iter(sides.values())).x.device
    taken = in_turns({name: lambda side=side: side.run(mode) for name, side in sides.items()}, device, **limits)
    row = {name: rounded(statistics.median(values)) for name, values in taken.items()}
    row |= {f"{name}_min": rounded(min(values)) for name, values in taken.items()}
    return {"unit": "s", **row, "gain": gain(row), "runs": len(taken["ours"])}


def gain(row: Mapping[str, Any]) -> float | None:
    """The baseline's cost over ours."""
    return rounded(row["baseline"] / row["ours"]) if row.get("baseline") and row.get("ours") else None


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def gradients(side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Output in training, and the gradients of all parameters, and of the input if it asks for one, in one vector."""
    side.net.train()
    half = torch.autocast(side.x.device.type, torch.bfloat16) if side.half else nullcontext()
    with half:
        y = side.net(side.x)
    wanted = [t for t in (side.x, *side.net.parameters()) if t.requires_grad]
    return y.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(y.float().square().mean(), wanted)])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest entry of the second."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return rounded(((a - b).abs().max() / b.abs().max()).item())


def host_memory(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """MiB that a call adds at most to what is held now: of the process, or of the GPU's tensors. Takes Linux."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return rounded((torch.cuda.max_memory_allocated() - before) / 2**20)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = host_memory("VmRSS")
    run()
    return rounded(host_memory("VmHWM") - before)


class Results:
    """Rows in a JSON file, written as they come; those of an earlier run on the same machine are kept.

    Args:
        file: where they are.
        facts: about machine and versions, stored beside the rows.
    """

    def __init__(self, file: str | Path, **facts: Any) -> None:
        self.file = Path(file)
        stored = json.loads(self.file.read_text()) if self.file.exists() else {}
        other = {key: stored[key] for key in facts if stored.get(key, facts[key]) != facts[key]}
        if other:
            raise SystemExit(f"{file}: expected rows of this machine, got those of {other}; remove or rename the file.")
        self.rows: list[dict] = stored.get("rows", [])
        self.facts = facts
        for row in self.rows:
            sys.stdout.write(f"measured earlier: {json.dumps(row)}\n")

    def __contains__(self, name: str) -> bool:
        return any(row["name"] == name and not row.keys() & {"error", "skipped"} for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, or puts it in the place of one of the same name, and shows it."""
        self.rows = [r for r in self.rows if r["name"] != row["name"]]
        self.rows.append({**row, "load": round(os.getloadavg()[0], 2)})
        self.write()
        sys.stdout.write(json.dumps(self.rows[-1]) + "\n")
        sys.stdout.flush()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n")
