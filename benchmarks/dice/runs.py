"""Many runs beside each other: each finished one leaves a JSON file, and those that are there are not done again."""

import dataclasses
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from benchmarks.dice.datasets import CLASSES, load, split
from benchmarks.dice.evaluating import CONDITIONS, measure, measure_slices
from benchmarks.dice.networks import ENTRIES
from benchmarks.dice.training import Run, Trainer, described


def finish(run: Run, cases: str, output: Path, device: torch.device, keep_weights: bool) -> dict[str, Any]:
    """Trains and tests one run, and writes its JSON file; goes on from a checkpoint if there is one."""
    volumes = _loaded(run.dataset, cases)
    pool, test = split(run.dataset, volumes, run.setting, run.fold)
    trainer = Trainer(run, pool[: run.volumes], device)
    checkpoint = output / f"{run.name}.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    trainer.finish(checkpoint)
    trainer.save(checkpoint)
    return tested(trainer, test, output, keep_weights)


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


_volumes: dict[str, list] = {}


def _loaded(dataset: str, cases: str) -> list:
    if dataset not in _volumes:
        _volumes[dataset] = load(dataset, cases)
    return _volumes[dataset]


def _work(waiting: Any, finished: Any, cases: str, output: str, device: str, deadline: float, kept: set[str]) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    while True:
        try:
            run: Run = waiting.get(timeout=1)
        except Empty:
            return
        if time.time() > deadline:
            return
        start = time.perf_counter()
        try:
            report = finish(run, cases, Path(output), torch.device(device), run.name in kept)
            means = {
                test: {c: _mean(rows) for c, rows in found["dice"].items()} for test, found in report["tests"].items()
            }
            facts = f"{report['training_seconds']} s + {report['test_seconds']} s"
            finished.put(f"{run.name}: {facts} {means}")
            del report
        except Exception:  # of whatever kind: one run's failure must not end the others
            finished.put(f"{run.name}: FAILED after {time.perf_counter() - start:.0f} s\n{traceback.format_exc()[-1500:]}")
        if device == "cuda":
            torch.cuda.empty_cache()  # for the others on the card


def _mean(rows: Sequence[Sequence[float | None]]) -> float:
    values = [v for row in rows for v in row if v is not None]
    return round(sum(values) / max(len(values), 1), 4)


def do(
    runs: Sequence[Run], cases: str, output: str, workers: int = 2, limit: float = 1e9, keep: Sequence[str] = ()
) -> None:
    """Does the runs that have no report yet, in order, with several processes; none is begun after ``limit`` seconds."""
    deadline = time.time() + limit
    Path(output).mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    waiting, finished = context.Queue(), context.Queue()
    left = [run for run in runs if not (Path(output) / f"{run.name}.json").exists()]
    for run in left:
        waiting.put(run)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = (waiting, finished, cases, output, device, deadline, set(keep))
    crew = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(min(workers, len(left)))]
    for process in crew:
        process.start()
    done = 0
    while any(process.is_alive() for process in crew) or not finished.empty():
        try:
            line = finished.get(timeout=1)
        except Empty:
            continue
        done += 1
        sys.stdout.write(f"[{done}/{len(left)}, {limit - (deadline - time.time()):.0f} s] {line}\n")
        sys.stdout.flush()
        if time.time() > deadline + 60:
            break


def variants(run: Run, **lists: Sequence[Any]) -> list[Run]:
    """The run with each combination of values."""
    found = [run]
    for name, values in lists.items():
        found = [dataclasses.replace(r, **{name: value}) for r in found for value in values]
    return found
