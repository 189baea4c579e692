"""Dice of networks trained at scale 1 alone on hippocampus volumes that were rescaled for the test.

    python benchmarks/scale_generalisation.py train --network=own_grid --output=benchmarks/results
    python benchmarks/scale_generalisation.py retest --network=own_grid --output=benchmarks/results
    python benchmarks/scale_generalisation.py table --output=benchmarks/results

``train`` writes a checkpoint every 50 steps and goes on from it when called again; ``retest`` gives these weights
another pyramid. The result is one JSON file per network and seed. All networks see the same volumes in the same order,
and have 34 to 38 thousand parameters.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fire
import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks import one_hot
from monai.networks.nets import UNet
from monai.utils import set_determinism
from scipy.ndimage import affine_transform, gaussian_filter
from torch import nn

from monai_scaleequiv import ScaleFilters, ScalePyramid, SEUNet, rescale
from monai_scaleequiv.published import PublishedSEUNet

CLASSES = 3
TRAINING, TEST = slice(0, 60), slice(60, 100)
SCALES = (0.5, 0.7, 1.0, 1.4, 1.6, 2.0)
BATCH = 2
SIZE = (40, 56, 40)  # what a batch is padded or cropped to
PYRAMIDS = {"own_grid": (-2, -1, 0, 1, 2), "own_grid_4_scales": (-2, -1, 0, 1)}  # in half octaves
RETEST = (-2, -1, 0, 1)


class PaddedToFit(nn.Module):
    """The published network maps an axis to its own size only if that is 1 modulo 4; others are mirrored."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = [p for n in reversed(x.shape[2:]) for p in (0, (1 - n) % 4 if n > 17 else 17 - n)]
        y = self.network(F.pad(x, pad, mode="replicate"))
        return y[(..., *(slice(0, n) for n in x.shape[2:]))]


def unet() -> nn.Module:
    return UNet(3, 1, CLASSES, (8, 16, 32), (2, 2), num_res_units=1)


def build(name: str) -> nn.Module:
    if name in ("unet", "unet_augmented"):
        return ScalePyramid(unet(), (1.0,), "mean")  # one copy, at scale 1: for sizes that do not fit
    if name == "published":
        net = PublishedSEUNet(
            1, CLASSES, (6, 11, 21), (2, 2), kernel_size=5, effective_size=3, scales=[0.9**i for i in range(4)],
            basis_type="multi", num_res_units=2, act="silu", reduction="max",
        )  # fmt: skip
        return PaddedToFit(net)
    if name == "fixed_grid":
        filters = ScaleFilters([2 ** (-i / 3) for i in range(4)], sigma=1.25, max_order=3, kernel_size=7)
        return SEUNet(3, 1, CLASSES, (8, 24, 40), (2, 2), filters=filters)
    return pyramid(PYRAMIDS[name], "logsumexp")


def pyramid(half_octaves: Sequence[int], projection: str) -> ScalePyramid:
    return ScalePyramid(unet(), [2 ** (i / 2) for i in half_octaves], projection)


def load(folder: str | Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images (1, D, H, W) of zero mean and unit deviation, and labels of the same shape."""
    cases = []
    for path in sorted((Path(folder) / "imagesTr").glob("hippocampus_*.nii.gz"))[: TEST.stop]:
        image = torch.from_numpy(nibabel.load(path).get_fdata(dtype=np.float32))
        label = torch.from_numpy(np.asarray(nibabel.load(path.parents[1] / "labelsTr" / path.name).dataobj).copy())
        cases.append((((image - image.mean()) / image.std())[None], label.long()[None]))
    return cases


def fit(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Centred crop and replicated border."""
    pad = []
    for n, m in zip(reversed(x.shape[-3:]), reversed(size), strict=True):
        pad += [(m - n) // 2, (m - n) - (m - n) // 2]
    x = F.pad(x[None].float(), [max(p, 0) for p in pad], mode="replicate")[0]
    for axis, (low, high) in enumerate(zip(pad[-2::-2], pad[::-2], strict=True), start=1):
        x = x.narrow(axis, max(-low, 0), x.shape[axis] - max(-low, 0) - max(-high, 0))
    return x


def zoom(image: torch.Tensor, scale: float) -> torch.Tensor:
    """Cubic spline interpolation after a Gaussian against aliasing: not the resampling that our networks use."""
    size = [max(round(n * scale), 1) for n in image.shape[1:]]
    step = [n / m for n, m in zip(image.shape[1:], size, strict=True)]
    smooth = gaussian_filter(image[0].numpy(), [0.5 * max(s * s - 1, 0) ** 0.5 for s in step])
    offset = [(s - 1) / 2 for s in step]
    zoomed = affine_transform(smooth, step, offset, output_shape=tuple(size), order=3, mode="reflect")
    return torch.from_numpy(zoomed)[None]


def batch_of(cases: list, indices: np.ndarray, rng: np.random.Generator, augmented: bool) -> tuple:
    images = torch.stack([fit(cases[i][0], SIZE) for i in indices])  # (B, 1, D, H, W)
    labels = torch.stack([fit(cases[i][1], SIZE) for i in indices])
    if augmented:
        factor = 2 ** rng.uniform(-1, 1)
        size = [4 * max(round(n * factor / 4), 1) for n in SIZE]
        images = rescale(images, size)
        labels = F.interpolate(one_hot(labels, CLASSES), size=size, mode="trilinear").argmax(1, keepdim=True)
    return images, labels


def train(
    network: str, output: str, data: str = "../shared/data/Task04_Hippocampus", steps: int = 500, seed: int = 0
) -> None:
    """Trains one network and measures it.

    Args:
        network: unet, unet_augmented, published, fixed_grid, own_grid or own_grid_4_scales.
        output: folder for the result, and for the checkpoint until it is there.
        data: folder of the data set.
        steps: optimizer steps, of two volumes each.
        seed: of weights, order and augmentation.
    """
    result = Path(output) / f"scale_generalisation_{network}_{seed}.json"
    if result.exists():
        raise FileExistsError(f"{result} is there already; remove it to measure again.")
    cases = load(data)
    set_determinism(seed)
    net = build(network)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    checkpoint = result.with_suffix(".pt")
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, seconds = state["step"], state["seconds"]
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))  # each step draws for itself, so that a resumed run sees the same
        images, labels = batch_of(cases[TRAINING], rng.choice(60, BATCH, False), rng, network == "unet_augmented")
        start = time.perf_counter()
        loss = loss_function(net.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        if (step + 1) % 50 == 0:
            sys.stdout.write(f"{network} step {step + 1}: loss {loss.item():.4f}, {seconds:.0f} s\n")
            sys.stdout.flush()
            parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "step": step + 1, "seconds": seconds}, checkpoint)
    write(result, network, net, cases, {"steps": steps, "seed": seed, "seconds_of_training": round(seconds, 1)})


def retest(
    network: str,
    output: str,
    data: str = "../shared/data/Task04_Hippocampus",
    half_octaves: Sequence[int] = RETEST,
    projection: str = "logsumexp",
    seed: int = 0,
) -> None:
    """Measures what ``train`` left with other scales, or another projection, and without more training.

    Args:
        network: unet, unet_augmented or one of the pyramids.
        output: folder with the checkpoint, and for the result.
        data: folder of the data set.
        half_octaves: the scales, in powers of the square root of 2.
        projection: how they are joined.
        seed: of the training.
    """
    name = f"{network}_tested_{'_'.join(map(str, half_octaves))}_{projection}"
    weights = torch.load(Path(output) / f"scale_generalisation_{network}_{seed}.pt", weights_only=True)["net"]
    net = pyramid(half_octaves, projection)
    net.load_state_dict(weights)
    write(Path(output) / f"scale_generalisation_{name}_{seed}.json", name, net, load(data), {"seed": seed})


def write(result: Path, network: str, net: nn.Module, cases: list, facts: dict) -> None:
    parameters = sum(p.numel() for p in net.parameters())
    report = {"network": network, "parameters": parameters, **facts, "scales": SCALES, **measure(net, cases[TEST])}
    result.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(f"{network}: {report['dice']}\n")


@torch.no_grad()
def measure(net: nn.Module, cases: list) -> dict:
    """Mean Dice of both classes on the label's own grid, and how far the probabilities move with the scale."""
    net.eval()
    dice, moved, floor = [], [], []
    for scale in SCALES:
        rows, errors, floors = [], [], []
        for image, label in cases:
            own = torch.softmax(net(image[None]), dim=1)
            zoomed = torch.softmax(net(zoom(image, scale)[None]), dim=1)
            back = F.interpolate(zoomed, size=label.shape[1:], mode="trilinear")
            truth = one_hot(label[None], CLASSES)
            rows.append(hard_dice(back, truth))
            errors.append(float((own - back)[:, 1:].square().sum() / own[:, 1:].square().sum()))
            there = F.interpolate(truth, size=zoomed.shape[2:], mode="trilinear")
            floors.append(hard_dice(F.interpolate(there, size=label.shape[1:], mode="trilinear"), truth))
        dice.append(round(float(np.mean(rows)), 4))
        moved.append(round(float(np.mean(errors)), 4))
        floor.append(round(float(np.mean(floors)), 4))
    return {"dice": dice, "error_of_probabilities": moved, "dice_of_the_resampled_label": floor}


def hard_dice(probabilities: torch.Tensor, truth: torch.Tensor) -> float:
    predicted = one_hot(probabilities.argmax(1, keepdim=True), CLASSES)
    return float(compute_dice(predicted, truth, include_background=False).nanmean())


def table(output: str) -> None:
    """Writes the table of all results in a folder.

    Args:
        output: folder with the results of ``train``.
    """
    rows = [json.loads(path.read_text()) for path in sorted(Path(output).glob("scale_generalisation_*.json"))]
    sys.stdout.write("| network | parameters | seed | " + " | ".join(map(str, SCALES)) + " |\n")
    sys.stdout.write("|---" * (3 + len(SCALES)) + "|\n")
    for row in rows:
        cells = [f"{d:.3f} / {e:.2f}" for d, e in zip(row["dice"], row["error_of_probabilities"], strict=True)]
        sys.stdout.write(f"| {row['network']} | {row['parameters']} | {row['seed']} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    fire.Fire({"train": train, "retest": retest, "table": table})
