"""Dice of RepUXNet on the hippocampus beside MONAI's networks, with and without the prior, at two kernel sizes.

    python benchmarks/repuxnet_hippocampus.py train --network=repux_fixed_21 --output=benchmarks/results
    python benchmarks/repuxnet_hippocampus.py table --output=benchmarks/results

Split, preprocessing, augmentation, loss and inference are those of the bundle ``repuxnet_hippocampus_segmentation``,
read from its config. All networks see the same crops in the same order for a seed, under the same optimizer and
schedule. ``train`` writes a checkpoint every 50 steps and goes on from it when called again. The result is one JSON
file per network and seed. Times are those of the optimizer steps, without data and validation.
"""

import copy
import json
import sys
import time
from pathlib import Path

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.metrics import compute_dice
from monai.networks import one_hot
from monai.networks.nets import SegResNet, UNet
from monai.transforms import Compose
from monai.utils import set_determinism
from torch import nn

from monai_scaleequiv import RepUXNet

CONFIG = Path(__file__).parents[1] / "bundles" / "repuxnet_hippocampus_segmentation" / "configs" / "train.json"
CLASSES = 3
PRIORS = {"fixed": (1.0, "fixed"), "learned": (1.0, "learned"), "off": (None, "fixed")}
KERNELS = (7, 21)
LEAN = "repux_fixed_21_lean"  # half the channels at full size
NETWORKS = ("unet", "segresnet", *(f"repux_{prior}_{k}" for prior in PRIORS for k in KERNELS), LEAN)
Case = dict[str, torch.Tensor]


def build(name: str) -> nn.Module:
    """Networks that keep features at full size and go down to an eighth of it."""
    if name == "unet":
        return UNet(3, 1, CLASSES, (10, 20, 40, 80, 128), (1, 2, 2, 2), num_res_units=1)
    if name == "segresnet":
        return SegResNet(3, 8, 1, CLASSES, blocks_down=(1, 2, 2, 3), blocks_up=(1, 1, 1))
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}.")
    _, prior, kernel_size, *_ = name.split("_")
    alpha, mode = PRIORS[prior]
    options = {"frequency_prior": alpha, "prior_mode": mode, "full_size_channels": 4 if name == LEAN else None}
    return RepUXNet(3, 1, CLASSES, (1, 1, 1), (8, 16, 32), int(kernel_size), 64, **options)


def protocol(data: str) -> ConfigParser:
    """The bundle's training config for this folder of data."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser["dataset_dir"] = str(data)
    parser["device"] = "$torch.device('cpu')"
    return parser


def draw(cases: list[Case], augment: Compose, batch_size: int, seed: int, step: int) -> Case:
    """The batch of a step. Each step draws for itself, so that a resumed run sees the same."""
    rng = np.random.default_rng((seed, step))
    indices = rng.choice(len(cases), batch_size, replace=False)
    augment.set_random_state(int(rng.integers(2**31)))
    return list_data_collate([augment(copy.deepcopy(cases[i])) for i in indices])


def train(
    network: str,
    output: str,
    data: str = "../shared/data/Task04_Hippocampus",
    steps: int = 600,
    seed: int = 0,
    threads: int = 1,
    learning_rate: float = 0.004,
) -> None:
    """Trains one network and measures it on the validation volumes.

    Args:
        network: unet, segresnet or repux_{fixed,learned,off}_{7,21}: the prior and the edge of the large kernels; or
            repux_fixed_21_lean, with half the channels at full size.
        output: folder for the result, and for the checkpoint until it is there.
        data: folder of the data set.
        steps: optimizer steps, of as many crops each as the bundle's batches have.
        seed: of weights, order and augmentation.
        threads: CPU threads.
        learning_rate: at the start; it falls to zero as in the bundle, in each step rather than each epoch.
    """
    result = Path(output) / f"repuxnet_hippocampus_{network}_{seed}.json"
    if result.exists():
        raise FileExistsError(f"{result} is there already; remove it to measure again.")
    result.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    set_determinism(seed)
    net = build(network)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** 0.9)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    wanted = {"steps": steps, "learning_rate": learning_rate}
    first, seconds, cpu_seconds = 0, 0.0, 0.0
    checkpoint = result.with_suffix(".pt")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["wanted"] != wanted:
            raise ValueError(f"{checkpoint} is of a run with {state['wanted']}, not {wanted}; remove it to start anew.")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first, seconds, cpu_seconds = state["step"], state["seconds"], state["cpu_seconds"]
    parser = protocol(data)
    prepare = Compose(parser.get_parsed_content("to_working_grid"))
    training, validation = ([prepare(case) for case in part] for part in parser.get_parsed_content("split"))
    augment = Compose(parser.get_parsed_content("train#random_transforms"))
    loss_function = parser.get_parsed_content("loss")
    for step in range(first, steps):
        batch = draw(training, augment, parser.get_parsed_content("batch_size"), seed, step)
        start, cpu_start = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = loss_function(net.train()(batch["image"].as_tensor()), batch["label"].as_tensor())
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        if (step + 1) % 50 == 0 or step + 1 == steps:
            sys.stdout.write(f"{network} {seed} step {step + 1}: loss {loss.item():.4f}, {seconds:.0f} s\n")
            sys.stdout.flush()
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"wanted": wanted, "step": step + 1, "seconds": seconds, "cpu_seconds": cpu_seconds}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)  # whole or not at all, should the run be stopped here
    report = {
        "network": network,
        "parameters": sum(p.numel() for p in net.parameters()),
        "seed": seed,
        **wanted,
        "threads": threads,
        "seconds_of_training": round(seconds, 1),
        "cpu_seconds_of_training": round(cpu_seconds, 1),
        "dice": measure(net, parser.get_parsed_content("validate#inferer"), validation),
    }
    result.write_text(json.dumps(report, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    sys.stdout.write(f"{network} {seed}: {report['dice']}\n")


@torch.no_grad()
def measure(net: nn.Module, inferer: object, cases: list[Case]) -> list[float]:
    """Mean Dice of each class but the background."""
    net.eval()
    rows = []
    for case in cases:
        logits = inferer(case["image"].as_tensor()[None], net)
        pair = [one_hot(x, CLASSES) for x in (logits.argmax(1, keepdim=True), case["label"].as_tensor()[None])]
        rows.append(compute_dice(*pair, include_background=False)[0].numpy())
    return [round(float(mean), 4) for mean in np.nanmean(rows, axis=0)]


def table(output: str) -> None:
    """Writes the table of all results in a folder: mean and standard deviation over the seeds.

    Args:
        output: folder with the results of ``train``.
    """
    found = [json.loads(path.read_text()) for path in Path(output).glob("repuxnet_hippocampus_*.json")]
    sys.stdout.write(
        "| network | parameters | seeds | Dice, anterior | Dice, posterior | Dice, mean | CPU s, training |\n"
    )
    sys.stdout.write("|---" * 7 + "|\n")
    for network in NETWORKS:
        rows = [row for row in found if row["network"] == network]
        if not rows:
            continue
        dice = np.array([[*row["dice"], np.mean(row["dice"])] for row in rows])
        cells = [f"{mean:.3f}" for mean in dice.mean(axis=0)]
        if len(rows) > 1:
            cells = [f"{mean} ± {s:.3f}" for mean, s in zip(cells, dice.std(axis=0, ddof=1), strict=True)]
        cost = f"{np.mean([row['cpu_seconds_of_training'] for row in rows]):.0f}"
        cells = [network, f"{rows[0]['parameters']:,}", str(len(rows)), *cells, cost]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    fire.Fire({"train": train, "table": table})
