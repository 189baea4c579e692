"""What a step of each network costs on a machine that does nothing else, and whether it can be captured."""

import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dice.datasets import load, split
from benchmarks.dice.networks import ENTRIES, WORKING
from benchmarks.dice.training import Run, Trainer
from monai_scaleequiv import ScaleCanonicalizer

CHEAP = 400  # samples planned at most


def main(
    output: str, cases: str, dataset: str = "hippocampus", networks: Sequence[str] = tuple(ENTRIES), limit: float = 1e9
) -> None:
    """Writes ``costs_DATASET_DEVICE.json``: seconds per step, multiply-adds and parameters of each network.

    Args:
        output: folder for the file.
        cases: folder with what ``prepare`` left.
        dataset: hippocampus, brats or acdc.
        networks: which of the comparison.
        limit: seconds after which no network is begun.
    """
    start = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    setting = "half" if dataset == "acdc" else "scale"
    pool = split(dataset, load(dataset, cases), setting, 0)[0][:10]
    Path(output).mkdir(parents=True, exist_ok=True)
    file = Path(output) / f"costs_{dataset}_{device.type}.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    for name in networks:
        if time.time() - start > limit or "error" not in rows.get(name, {"error": ""}):
            continue
        try:
            rows[name] = _row(Run(dataset, name, len(pool), setting=setting, steps=CHEAP), pool, device)
        except Exception as error:  # of whatever kind: the other networks' figures are not to be lost with it
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.write(f"{time.time() - start:.0f} s {dataset} {name}: {rows[name]}\n")
        sys.stdout.flush()
        file.write_text(json.dumps(rows, indent=1) + "\n")


def _row(run: Run, pool: list, device: torch.device) -> dict:
    trainer = Trainer(run, pool, device)
    row = {"gmacs": round(gmacs(trainer), 3), "parameters": sum(p.numel() for p in trainer.net.parameters())}
    row["seconds_per_step"] = seconds_per_step(trainer)
    if trainer.stages.last:
        trainer.done = trainer.stages.segmenting
        trainer.at.fill_(trainer.done)
        row["seconds_per_estimator_step"] = seconds_per_step(trainer)
        row["estimator_steps"] = ENTRIES[run.network].estimator_last
    row["machine"] = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    )
    if device.type == "cuda":
        row["mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        torch.cuda.reset_peak_memory_stats()
    return row


def seconds_per_step(trainer: Trainer) -> float:
    """Median seconds of a step on a machine that does nothing else; the trainer is of no further use.

    Of a network that draws its scale, the mean over the scales of each one's median.
    """
    kinds = len(trainer.one_scale.whole.scales) if trainer.one_scale else 1
    steps = 5 if trainer.device.type == "cpu" else 30
    torch.backends.cudnn.benchmark = trainer.device.type == "cuda"
    taken: dict[int, list[float]] = {}
    while len(taken) < kinds or min(map(len, taken.values())) < steps:
        start = time.perf_counter()
        trainer.advance()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        kind = trainer.one_scale.drawn if trainer.one_scale else 0
        taken.setdefault(kind, []).append(time.perf_counter() - start)
    return float(f"{mean(median(values) for values in taken.values()):.4g}")


def gmacs(trainer: Trainer) -> float:
    """Multiply-adds, in thousands of millions, of one sample's forward pass (convolutions and matrix products).

    Of an image of the training's size: one that a canonicaliser finds as it should be, of the working voxel size in mm.
    A network that draws its scale in a step has here those of all scales, as in the test.
    """
    images, _ = trainer.bank.sample(trainer.plan, torch.zeros_like(trainer.at))
    net = copy.deepcopy(trainer.net).eval()
    if isinstance(net, ScaleCanonicalizer):
        nn.init.zeros_(net.estimator.last.weight)
        nn.init.zeros_(net.estimator.last.bias)
    told = [[WORKING / ENTRIES[trainer.run.network].unit] * trainer.bank.axes] if trainer.spacings else []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images[:1], *told)
    return counter.get_total_flops() / 2e9
