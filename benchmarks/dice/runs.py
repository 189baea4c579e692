"""Many runs beside each other: each finished one leaves a JSON file, and those that are there are not done again."""

import dataclasses
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from benchmarks.dice.costs import gmacs
from benchmarks.dice.datasets import CLASSES, load, split
from benchmarks.dice.evaluating import CONDITIONS, measure, measure_slices
from benchmarks.dice.networks import ENTRIES
from benchmarks.dice.training import Run, Trainer, finish


def finish_group(runs: Sequence[Run], cases: str, output: Path, device: torch.device) -> Iterator[tuple[Trainer, list]]:
    """Trains runs beside each other, from their checkpoints if there are any; gives each with its test volumes."""
    trainers, tests, checkpoints = [], [], [output / f"{run.name}.pt" for run in runs]
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        pool, test = split(run.dataset, _loaded(run.dataset, cases), run.setting, run.fold)
        if len(pool) < run.volumes:
            raise ValueError(f"{run.name}: expected {run.volumes} volumes to train with, got {len(pool)}.")
        trainers.append(Trainer(run, pool[: run.volumes], device))
        tests.append(test)
        if checkpoint.exists():
            trainers[-1].load(checkpoint)
    finish(trainers, checkpoints)
    for trainer, checkpoint in zip(trainers, checkpoints, strict=True):
        trainer.save(checkpoint)
    yield from zip(trainers, tests, strict=True)


def tested(trainer: Trainer, test: list, output: Path, keep_weights: bool) -> dict[str, Any]:
    """Measures a trained network, writes the report, and removes the checkpoint or leaves the weights in its place."""
    run, start = trainer.run, time.perf_counter()
    evaluate = measure_slices if run.dataset == "acdc" else measure
    is_choice = run.dataset == "hippocampus" and run.setting == "validation"
    conditions = CONDITIONS["selection" if is_choice else run.dataset]
    tests = evaluate(trainer.net, ENTRIES[run.network], test, conditions, trainer.device)
    report = {
        **described(trainer),
        "test_seconds": round(time.perf_counter() - start, 2),
        "cases": [volume.name for volume in test],
        "classes": CLASSES[run.dataset],
        "tests": tests,
    }
    if keep_weights:
        torch.save(trainer.net.state_dict(), output / f"{run.name}_weights.pt")
    unfinished = output / f"{run.name}.tmp"
    unfinished.write_text(json.dumps(report) + "\n")
    unfinished.replace(output / f"{run.name}.json")
    (output / f"{run.name}.pt").unlink(missing_ok=True)
    return report


def described(trainer: Trainer) -> dict[str, Any]:
    """Facts about a run for its report."""
    return {
        **dataclasses.asdict(trainer.run),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "gmacs": round(gmacs(trainer), 3),
        "training_seconds": round(trainer.seconds, 2),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "loss": [round(v, 4) for v in trainer.lost.view(-1)[:: max(trainer.run.steps // 20, 1)].tolist()],
    }


_volumes: dict[str, list] = {}


def _loaded(dataset: str, cases: str) -> list:
    if dataset not in _volumes:
        _volumes[dataset] = load(dataset, cases)
    return _volumes[dataset]


def _work(waiting: Any, finished: Any, cases: str, output: str, device: str, deadline: float, kept: set[str]) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    while time.time() < deadline:
        try:
            group: Sequence[Run] = waiting.get(timeout=1)
        except Empty:
            return
        start = time.perf_counter()
        try:
            for trainer, test in finish_group(group, cases, Path(output), torch.device(device)):
                report = tested(trainer, test, Path(output), trainer.run.name in kept)
                finished.put(_line(trainer.run, report))
        except Exception:  # of whatever kind: one group's failure must not end the others
            names = ", ".join(run.name for run in group)
            error = traceback.format_exc()[-1500:]
            finished.put(f"{names}: FAILED after {time.perf_counter() - start:.0f} s\n{error}")
        if device == "cuda":
            trainer = None
            torch.cuda.empty_cache()  # for the others on the card


def _line(run: Run, report: dict[str, Any]) -> str:
    means = {test: {c: mean(rows) for c, rows in found["dice"].items()} for test, found in report["tests"].items()}
    return f"{run.name}: {report['training_seconds']} s + {report['test_seconds']} s {means}"


def mean(rows: Sequence[Sequence[float | None]]) -> float:
    """Over all cases and classes where there is something to measure."""
    values = [v for row in rows for v in row if v is not None]
    return round(sum(values) / max(len(values), 1), 4)


def do(
    groups: Sequence[Sequence[Run]], cases: str, output: str, workers: int = 2, limit: float = 1e9,
    keep: Sequence[str] = (), grace: float = 60.0,
) -> None:  # fmt: skip
    """Does the runs that have no report yet, in order, with several processes, each with a group beside each other.

    None is begun after ``limit`` seconds, and those that are under way then have ``grace`` seconds more. The weights of
    runs whose names are in ``keep`` stay beside their reports.
    """
    deadline = time.time() + limit
    Path(output).mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    waiting, finished = context.Queue(), context.Queue()
    left = [[run for run in group if not (Path(output) / f"{run.name}.json").exists()] for group in groups]
    left = [group for group in left if group]
    count = sum(map(len, left))
    for group in left:
        waiting.put(group)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = (waiting, finished, cases, output, device, deadline, set(keep))
    crew = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(min(workers, len(left)))]
    for process in crew:
        process.start()
    done = 0
    while any(process.is_alive() for process in crew) or not finished.empty():
        if time.time() > deadline + grace:
            break
        try:
            line = finished.get(timeout=1)
        except Empty:
            continue
        done += 1
        sys.stdout.write(f"[{done}/{count}, {limit - (deadline - time.time()):.0f} s] {line}\n")
        sys.stdout.flush()
    for process in crew:
        process.terminate()  # those whose time is over: they would go on beside what comes next


def variants(run: Run, **lists: Sequence[Any]) -> list[Run]:
    """The run with each combination of values."""
    found = [run]
    for name, values in lists.items():
        found = [dataclasses.replace(r, **{name: value}) for r in found for value in values]
    return found
