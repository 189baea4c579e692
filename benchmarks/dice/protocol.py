"""Which runs there are, in order of priority, and the command that does them."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.dice.runs import do, mean, variants
from benchmarks.dice.training import Run

USUAL_RATE = 5e-3
RATES = (2.5e-3, USUAL_RATE, 1e-2)
MAIN = ("unet_aug", "pyramid_aug", "seunet_aug")
DESIGNS = (
    "canon_pyramid", "pyramid_attentive", "pyramid_wide",
    "pyramid_deep", "canon_unet", "pyramid_fine_steps",
)  # fmt: skip
TRIAL = Run("hippocampus", "unet_aug", 25, setting="validation", steps=500)
HIPPOCAMPUS = Run("hippocampus", "unet_aug", 25)
BRATS = Run("brats", "unet_aug", 25, steps=600)
ACDC = Run("acdc", "unet_aug", 37, setting="half", steps=1500)
SHIPPED = Run("hippocampus", "pyramid_aug", 168, setting="ship", steps=5000)
KEPT = [HIPPOCAMPUS, *variants(HIPPOCAMPUS, network=("pyramid_aug", "canon_pyramid"))]  # weights, for pictures
SEEDS = (0, 1, 2)
# How many steps a plain network does in the time of one of the others, on a GPU that does nothing else, by
# seconds_per_step of costs_*_cuda.json: runs with match="time" train the plain network that many times longer
AS_LONG = {"pyramid": 3.2, "seunet": 7.3}


def selection() -> list[list[Run]]:
    """Choices on validation volumes: learning rates of the main networks, and other designs at the usual one."""
    rates = [
        variants(TRIAL, network=[name], learning_rate=RATES, steps=[300 if name == "seunet_aug" else TRIAL.steps])
        for name in reversed(MAIN)
    ]
    return [*rates, variants(TRIAL, network=DESIGNS[:3]), variants(TRIAL, network=DESIGNS[3:])]


def chosen_rates(output: str) -> dict[str, float]:
    """Learning rate of each kind of network: the best on the validation volumes, over all test scales."""
    best: dict[str, tuple[float, float]] = {}
    for runs in selection()[: len(MAIN)]:
        for run in runs:
            file = Path(output) / f"{run.name}.json"
            if file.exists():
                rows = json.loads(file.read_text())["tests"]["own"]["dice"].values()
                found = mean([row for condition in rows for row in condition]), run.learning_rate
                kind = run.network.split("_")[0]
                best[kind] = max(best.get(kind, found), found)
    return {kind: rate for kind, (_, rate) in best.items()}


def protocol(rates: dict[str, float]) -> list[list[Run]]:
    """All runs, in groups that run beside each other on a GPU, those of high priority first."""
    groups = [
        *[variants(HIPPOCAMPUS, volumes=[n], network=[name], seed=SEEDS)
          for n in (25, 10, 126) for name in ("unet_aug", "pyramid_aug", "canon_pyramid")],
        *[variants(BRATS, network=[name], fold=folds) for name in reversed(MAIN) for folds in ((0, 1, 2), (3, 4, 5))],
        variants(SHIPPED, network=("pyramid_aug", "canon_pyramid", "unet_aug")),
        *[variants(HIPPOCAMPUS, volumes=[n], seed=SEEDS, steps=[int(1000 * AS_LONG["pyramid"])], match=["time"])
          for n in (25, 10, 126)],
        variants(HIPPOCAMPUS, network=["seunet_aug"], seed=SEEDS),
        *[variants(ACDC, setting=["coarse"], volumes=[33], network=[name], seed=SEEDS)
          for name in ("seunet_mm_aug", "pyramid_mm_aug", "unet_aug", "unet_resampled_aug")],
        *[variants(BRATS, volumes=[10], network=[name], fold=folds)
          for name in MAIN[:2] for folds in ((0, 1, 2), (3, 4, 5))],
        *[variants(BRATS, steps=[int(600 * AS_LONG["pyramid"])], match=["time"], fold=folds)
          for folds in ((0, 1, 2), (3, 4, 5))],
        variants(HIPPOCAMPUS, network=["pyramid"], seed=SEEDS),
        variants(HIPPOCAMPUS, network=["unet"], seed=SEEDS),
        *[variants(ACDC, network=[name], seed=SEEDS) for name in ("pyramid_mm_aug", "unet_aug", "unet_resampled_aug")],
        *[variants(BRATS, volumes=[n], network=[name], fold=folds)
          for n, name in ((10, "seunet_aug"), (15, "unet_aug"), (15, "pyramid_aug"))
          for folds in ((0, 1, 2), (3, 4, 5))],
        *[variants(HIPPOCAMPUS, network=[name], seed=SEEDS)
          for name in ("pyramid_attentive", "canon_unet", "pyramid_wide", "segresnet_aug", "published_aug")],
        *[variants(BRATS, steps=[int(600 * AS_LONG["seunet"])], match=["time"], fold=folds)
          for folds in ((0, 1, 2), (3, 4, 5))],
        *[variants(HIPPOCAMPUS, volumes=[n], network=["seunet_aug"], seed=SEEDS) for n in (10, 126)],
    ]  # fmt: skip
    return [[with_rate(run, rates) for run in group] for group in groups]


def with_rate(run: Run, rates: dict[str, float]) -> Run:
    """With the rate of its kind, a canonicalised network with the pyramid's; the usual one where none was chosen."""
    kind = run.network.split("_")[0].replace("canon", "pyramid")
    return variants(run, learning_rate=[rates.get(kind, USUAL_RATE)])[0]


def main(
    output: str, cases: str, workers: int = 2, beside: int = 1, limit: float = 1e9, trial_limit: float = 1e9
) -> None:
    """Does all runs that are not there yet, with progress; may be stopped and started again at any time.

    Learning rates follow from the choices that are there: once runs were begun with them, do not add to these.

    Args:
        output: folder with the reports.
        cases: folder with what ``prepare`` left.
        workers: processes, of one thread each.
        beside: 1 for one run after the other in each of them, more for groups that share a GPU.
        limit: seconds after which no run is begun any more.
        trial_limit: the same for the choices on validation volumes.
    """
    start = time.time()
    do(_split(selection(), beside), cases, output, workers, min(limit, trial_limit))
    rates = chosen_rates(output)
    sys.stdout.write(f"learning rates chosen on the validation volumes: {rates}\n")
    kept = [with_rate(run, rates).name for run in (*KEPT, *variants(SHIPPED, network=("pyramid_aug", "canon_pyramid")))]
    do(_split(protocol(rates), beside), cases, output, workers, limit - (time.time() - start), kept)


def _split(groups: Sequence[list[Run]], beside: int) -> list[list[Run]]:
    return [group[i : i + beside] for group in groups for i in range(0, len(group), beside)]
