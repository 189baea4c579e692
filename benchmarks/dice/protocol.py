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
TUNED = ("canon_pyramid", *MAIN)  # have a learning rate of their own
DESIGNS = (
    "pyramid_attentive", "pyramid_wide",
    "pyramid_deep", "canon_unet", "pyramid_fine_steps",
    "canon_two_scales", "canon_wider_kernels",
)  # fmt: skip
TRIAL = Run("hippocampus", "unet_aug", 25, setting="validation", steps=500)
HIPPOCAMPUS = Run("hippocampus", "unet_aug", 25)
BRATS = Run("brats", "unet_aug", 25, steps=600)
ACDC = Run("acdc", "unet_aug", 37, setting="half", steps=1500)
KEPT = [HIPPOCAMPUS, *variants(HIPPOCAMPUS, network=("pyramid_aug", "canon_pyramid"))]  # weights, for pictures
SEEDS = (0, 1, 2)
# How many steps a plain network does in the time of one of the others, on a GPU that does nothing else, by
# seconds_per_step of costs_*_cuda.json: runs with match="time" train the plain network that many times longer, those
# with match="timeN" as long as N of its steps take
AS_LONG = {"canon": 3.7, "canon_unet": 1.5, "seunet": 7.3}
# Of a SEUNet at one scale at a time, as 3,700, 4,380 and 7,180; the last on a CPU, in turns, in the setting "half"
ONE_SCALE_AS_LONG = {"hippocampus": 1610, "brats": 1880, "acdc": 3100}
ACDC_AS_LONG = 7180  # of a plain network in the time of 1,500 of the pyramid in mm, on a CPU, both in turns
# Steps of other designs in about the time of 3,700 of the plain network's; each in which an estimator is trained by
# itself counts as one of those, and the coarse pyramids take a tenth longer
IN_THAT_TIME = {
    "canon_late": 2600, "canon_unet_rarely": 3500, "canon_unet_after": 3700, "canon_pyramid": 1000,
    "canon_pyramid_wide": 1000, "canon_coarse": 1550, "canon_coarse_wide": 1550,
}  # fmt: skip
# How long networks are trained to see who is ahead in the end, by steps of the plain one; the estimators of the last
# two come on top, 2 and 5 %
LONGER = {
    7400: {"unet_aug": 7400, "canon_pyramid": 2000},
    14800: {
        "unet_aug": 14800, "canon_pyramid": 4000, "canon_unet_after": 14800 + 500,
        "canon_unet_after_1000": 14800 + 1000,
    },
}  # fmt: skip


def selection() -> list[list[Run]]:
    """Choices on validation volumes: learning rates of the main networks, and other designs at the usual one."""
    rates = [
        variants(TRIAL, network=[name], learning_rate=RATES, steps=[300 if name == "seunet_aug" else TRIAL.steps])
        for name in reversed(TUNED)
    ]
    designs = [variants(TRIAL, network=DESIGNS[:2]), variants(TRIAL, network=DESIGNS[2:])]
    faster = [
        variants(TRIAL, network=[name], match=["time"], steps=[steps], learning_rate=RATES[2:])
        for name, steps in IN_THAT_TIME.items()
    ]
    one_scale = variants(
        TRIAL, network=["seunet_one_scale_aug"], match=["time"], steps=[ONE_SCALE_AS_LONG["hippocampus"]],
        learning_rate=RATES[1:],
    )  # fmt: skip
    return [*rates, *designs, variants(TRIAL, network=["canon_unet"], learning_rate=RATES[2:]), *faster, one_scale]


def chosen_rates(output: str) -> dict[str, float]:
    """Learning rate of each kind of network: the best on the validation volumes, over all test scales."""
    best: dict[str, tuple[float, float]] = {}
    for runs in selection()[: len(TUNED)]:
        for run in runs:
            file = Path(output) / f"{run.name}.json"
            if file.exists():
                rows = json.loads(file.read_text())["tests"]["own"]["dice"].values()
                found = mean([row for condition in rows for row in condition]), run.learning_rate
                kind = kind_of(run)
                best[kind] = max(best.get(kind, found), found)
    return {kind: rate for kind, (_, rate) in best.items()}


def protocol(rates: dict[str, float]) -> list[list[Run]]:
    """All runs, in groups of one kind, those of high priority first."""
    groups = [
        *[variants(HIPPOCAMPUS, volumes=[n], network=[name], seed=SEEDS)
          for n in (25, 10, 126) for name in ("unet_aug", "pyramid_aug", "canon_pyramid")],
        *[variants(HIPPOCAMPUS, network=[name], seed=SEEDS) for name in ("unet_whole_aug", "canon_whole_aug")],
        *[variants(BRATS, network=[name], fold=range(6))
          for name in ("seunet_aug", "unet_aug", "canon_pyramid_matched")],
        variants(HIPPOCAMPUS, seed=SEEDS, steps=[int(1000 * AS_LONG["canon"])], match=["time"]),
        *[variants(HIPPOCAMPUS, network=[name], seed=SEEDS, match=["time"],
                   steps=[int(1000 * AS_LONG["canon"] / AS_LONG["canon_unet"])])
          for name in ("canon_unet", "canon_unet_wide")],
        variants(HIPPOCAMPUS, network=["canon_unet_after"], seed=SEEDS, match=["time"],
                 steps=[IN_THAT_TIME["canon_unet_after"]]),
        *[variants(HIPPOCAMPUS, network=[name], seed=SEEDS, match=[f"time{time}"], steps=[steps])
          for time, networks in LONGER.items() for name, steps in networks.items()],
        variants(HIPPOCAMPUS, network=["canon_pyramid_no_aug"], seed=SEEDS),
        *[variants(ACDC, setting=["coarse"], volumes=[33], network=[name], seed=SEEDS)
          for name in ("pyramid_mm_aug", "unet_aug", "unet_resampled_aug", "seunet_one_scale_mm_aug")],
        *[variants(BRATS, volumes=[n], network=[name], fold=range(6))
          for n in (10, 15) for name in ("unet_aug", "canon_pyramid_matched")],
        *[variants(ACDC, setting=["coarse"], volumes=[33], network=[name], seed=SEEDS, match=["time"],
                   steps=[ACDC_AS_LONG]) for name in ("unet_aug", "unet_mm_after")],
        variants(BRATS, steps=[int(600 * AS_LONG["canon"])], match=["time"], fold=range(6)),
        variants(BRATS, network=["unet_mirrored_aug"], fold=range(6)),
        *[variants(BRATS, volumes=[n], network=[name], fold=range(6), match=["time"],
                   steps=[ONE_SCALE_AS_LONG["brats"]])
          for n, name in ((25, "seunet_one_scale_aug"), (10, "seunet_one_scale_aug"), (15, "seunet_one_scale_aug"),
                          (25, "seunet_one_scale_mirrored_aug"))],
        *[variants(BRATS, volumes=[n], network=["seunet_aug"], fold=range(6)) for n in (10, 15)],
        variants(HIPPOCAMPUS, network=["seunet_one_scale_aug"], seed=SEEDS, match=["time"],
                 steps=[ONE_SCALE_AS_LONG["hippocampus"]]),
        *[variants(HIPPOCAMPUS, volumes=[n], seed=SEEDS, steps=[int(1000 * AS_LONG["canon"])], match=["time"])
          for n in (10, 126)],
        *[variants(HIPPOCAMPUS, volumes=[n], network=[name], seed=SEEDS)
          for n in (10, 126) for name in ("unet_whole_aug", "canon_whole_aug")],
        variants(HIPPOCAMPUS, network=["unet"], seed=SEEDS),
        variants(HIPPOCAMPUS, network=["pyramid"], seed=SEEDS),
        *[variants(ACDC, network=[name], seed=SEEDS) for name in ("pyramid_mm_aug", "unet_aug", "unet_resampled_aug")],
        variants(ACDC, network=["unet_mm_after"], seed=SEEDS, match=["time"], steps=[ACDC_AS_LONG]),
        variants(ACDC, network=["seunet_one_scale_mm_aug"], seed=SEEDS, match=["time"],
                 steps=[ONE_SCALE_AS_LONG["acdc"]]),
        variants(HIPPOCAMPUS, network=["seunet_aug"], seed=SEEDS),
        *[variants(HIPPOCAMPUS, network=[name], seed=SEEDS)
          for name in ("seunet_octaves_aug", "pyramid_attentive", "canon_unet", "pyramid_wide", "segresnet_aug",
                       "published_aug")],
        *[variants(BRATS, volumes=[n], steps=[int(600 * AS_LONG["seunet"])], match=["time"], fold=range(6))
          for n in (25, 10, 15)],
    ]  # fmt: skip
    return [[with_rate(run, rates) for run in group] for group in groups]


def kind_of(run: Run) -> str:
    """Networks of one kind have one learning rate."""
    return run.network.split("_")[0]


def with_rate(run: Run, rates: dict[str, float]) -> Run:
    """With the rate of its kind; the usual one where none was chosen."""
    return variants(run, learning_rate=[rates.get(kind_of(run), USUAL_RATE)])[0]


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
    kept = [with_rate(run, rates).name for run in KEPT]
    do(_split(protocol(rates), beside), cases, output, workers, limit - (time.time() - start), kept)


def _split(groups: Sequence[list[Run]], beside: int) -> list[list[Run]]:
    return [group[i : i + beside] for group in groups for i in range(0, len(group), beside)]
