"""Error, time and memory of ``ScalePyramid`` around MONAI's networks, with random weights.

python benchmarks/equivariance_pyramid.py --output=benchmarks/results

Cost: four scales 2^(i/3) over one pass of the network. ``inference`` and ``training`` (forward and backward) are ratios
of median times, interleaved; ``kept`` is the ratio of the bytes that autograd keeps for the backward pass;
``ns_per_voxel`` is the network alone on images of the copies' sizes. All depend on how torch and the system's allocator
treat sizes: ``cost_batch_2`` is the same with two images, and its command makes the allocator keep freed memory.

MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 \\
    python benchmarks/equivariance_pyramid.py --output=benchmarks/results --parts=cost_batch_2
"""

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
import nibabel
import numpy as np
import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, UNet
from scipy.ndimage import affine_transform, gaussian_filter
from torch import nn

from monai_scaleequiv import RepUXNet, ScaleProjection, ScalePyramid, SEUNet, equivariance_error

CLASSES = 3
THREADS = 2
# builder, and what sizes must be multiples of
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "UNet": (lambda: UNet(3, 1, CLASSES, (8, 16, 32), (2, 2), num_res_units=1), 4),
    "DynUNet": (lambda: DynUNet(3, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32]), 4),
    "SegResNet": (lambda: SegResNet(3, 8, 1, CLASSES, blocks_down=(1, 1, 1), blocks_up=(1, 1)), 4),
    "SwinUNETR": (lambda: SwinUNETR(1, CLASSES, depths=(1,) * 4, num_heads=(1,) * 4, feature_size=12), 32),
    "SEUNet": (lambda: SEUNet(3, 1, CLASSES, (8, 16, 32), (2, 2)), 4),
    "RepUXNet": (lambda: RepUXNet(3, 1, CLASSES, (1, 1), (8, 16), 13, 16), 4),
}
PROJECTIONS = ("mean", "max", "logsumexp", "attentive")


def image_of(data: str, edge: int) -> torch.Tensor:
    """A cube cut out of the mirrored volume, of zero mean and unit deviation."""
    path = sorted((Path(data) / "imagesTr").glob("hippocampus_*.nii.gz"))[0]
    x = torch.from_numpy(nibabel.load(path).get_fdata(dtype=np.float32))
    for axis in range(3):
        x = torch.cat([x, x.flip(axis)] * -(-edge // (2 * x.shape[axis])), axis).narrow(axis, 0, edge)
    return ((x - x.mean()) / x.std())[None, None]


def spline(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """What an image pipeline does: cubic spline after a Gaussian against aliasing."""
    step = [n / m for n, m in zip(x.shape[2:], size, strict=True)]
    smooth = gaussian_filter(x[0, 0].numpy(), [0.5 * max(s * s - 1, 0) ** 0.5 for s in step])
    offset = [(s - 1) / 2 for s in step]
    moved = affine_transform(smooth, step, offset, output_shape=tuple(size), order=3, mode="reflect")
    return torch.from_numpy(moved)[None, None].to(x)


def errors(data: str) -> list[dict]:
    """Interior error at ratio 1.5, under exact and practical rescaling, and the plain network's own error."""
    rows = []
    for name, (build, divisor) in NETWORKS.items():
        edge = 64 if divisor == 32 else 48
        dtype = torch.float32 if divisor == 32 else torch.float64  # SwinUNETR's decoder takes too much memory in double
        image = image_of(data, edge).to(dtype)
        torch.manual_seed(0)
        network = build().to(dtype)
        pyramid = ScalePyramid(network, (1.0, 1.5), "mean", size_divisor=divisor)
        size = [edge * 3 // 2] * 3
        exact = equivariance_error(pyramid, image, size, margin=0.0)
        practical = equivariance_error(pyramid, image, size, margin=0.1, rescaler=spline)
        smooth = ScalePyramid(network, (1.0, 1.5), "mean", size_divisor=divisor, smoothing=0.5)
        smoothed = equivariance_error(smooth, image, size, margin=0.1, rescaler=spline)
        plain = equivariance_error(ScalePyramid(network, (1.0,), "mean", size_divisor=divisor), image, size)
        rows.append(
            {"network": name, "dtype": str(dtype), "exact": exact.interior, "practical": practical.interior,
             "practical_smoothing_0.5": smoothed.interior, "floor_of_practical": practical.floor,
             "unshifted": exact.unshifted, "plain_network": plain.projected}
        )  # fmt: skip
        sys.stdout.write(f"{rows[-1]}\n")
    return rows


@torch.no_grad()
def projected(data: str, seeds: int = 3) -> list[dict]:
    """Error after the projection, of the output and of the class probabilities, mean over seeds."""
    image = image_of(data, 72).double()
    rows = []
    for ratio, scales, size in (
        (1.5, (1.0, 1.5, 2.25, 3.375), 108),
        (1.25, tuple(1.25**i for i in range(4)), 90),
        (1.25, tuple(1.25**i for i in range(8)), 90),
    ):
        for mode in PROJECTIONS:
            outputs, probabilities = [], []
            for seed in range(seeds):
                torch.manual_seed(seed)
                network = NETWORKS["UNet"][0]().double()
                projection = ScaleProjection(mode, channels=CLASSES)
                if mode == "attentive":
                    nn.init.normal_(projection.attention[2].weight)  # as if trained; at its start it is the mean
                pyramid = ScalePyramid(network, scales, projection, size_divisor=4).double()
                outputs.append(equivariance_error(pyramid, image, [size] * 3).projected)
                soft = nn.Sequential(pyramid, nn.Softmax(dim=1))
                probabilities.append(equivariance_error(soft, image, [size] * 3).projected)
            row = {"ratio": ratio, "scales": len(scales), "projection": mode}
            row |= {"output": statistics.mean(outputs), "probabilities": statistics.mean(probabilities)}
            rows.append(row)
            sys.stdout.write(f"{row}\n")
    return rows


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def costs(batch: int = 1, repeats: int = 9) -> list[dict]:
    torch.set_num_threads(THREADS)
    rows = []
    networks = {
        "UNet 16-32-64": lambda: UNet(3, 1, CLASSES, (16, 32, 64), (2, 2), num_res_units=2),
        "DynUNet 16-32-64": lambda: DynUNet(3, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[16, 32, 64]),
        "SegResNet 8": NETWORKS["SegResNet"][0],
    }
    for (name, build), edge in itertools.product(networks.items(), (48, 96)):
        x, network = torch.rand(batch, 1, edge, edge, edge), build()
        pyramid = ScalePyramid(network, size_divisor=4)
        row = {"network": name, "edge": edge, "batch": batch, "threads": THREADS}
        row["freed_memory_kept"] = "MALLOC_TRIM_THRESHOLD_" in os.environ
        for what, step in (("inference", infer), ("training", train)):
            pairs = [(seconds(lambda: step(network, x)), seconds(lambda: step(pyramid, x))) for _ in range(repeats)]  # noqa: B023
            row[what] = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
        shapes: list[torch.Size] = []
        hook = network.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))  # noqa: B023
        infer(pyramid, x)
        hook.remove()
        copies = [torch.rand(shape) for shape in shapes]
        for copy in copies:
            times = [seconds(lambda: infer(network, copy)) for _ in range(repeats)]  # noqa: B023
            row[f"ns_per_voxel_at_{copy.shape[-1]}"] = statistics.median(times) / copy.numel() * 1e9
        plain = kept(network, x)
        row["kept"] = kept(pyramid, x) / plain
        row["kept_with_checkpoint"] = kept(ScalePyramid(network, size_divisor=4, use_checkpoint=True), x) / plain
        rows.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    return rows


def kept(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps between the forward and the backward pass."""
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = network.train()(x)
    del y
    return sum(storages.values())


@torch.no_grad()
def infer(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network.eval()(x)


def train(network: nn.Module, x: torch.Tensor) -> None:
    network.train()(x).square().mean().backward()


def main(output: str, data: str = "../shared/data/Task04_Hippocampus", parts: str = "cost,interior,projected") -> None:
    """Measures and writes equivariance_pyramid.json; parts that are not asked for keep their figures.

    Args:
        output: folder for the result.
        data: folder of the data set that the image comes from.
        parts: which measurements to take, with commas between.
    """
    measurements = {
        "cost": costs,
        "cost_batch_2": lambda: costs(2),
        "interior": lambda: errors(data),
        "projected": lambda: projected(data),
    }
    file = Path(output) / "equivariance_pyramid.json"
    for part in parts if isinstance(parts, tuple) else parts.split(","):
        result = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**result, part: measurements[part]()}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
