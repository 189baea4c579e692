"""The hippocampus bundle at voxel sizes that it was not trained on: resampled images, or the image's own grid.

    python benchmarks/native_spacing.py measure --output=benchmarks/results/native_spacing.json
    python benchmarks/native_spacing.py table --result=benchmarks/results/native_spacing.json

``dice``: the bundle's validation volumes (1 mm) on other grids, images by cubic splines after a Gaussian against
aliasing, labels as the class whose linearly interpolated share is largest. Each pipeline goes from the image on that
grid to the label map on that grid, in the bundle's own configs, and takes its turn on each volume.

``error``: ||T f(x) - f(T x)||^2 / ||f(T x)||^2 without an eighth at either end of each axis, where T magnifies the
image ideally and the voxels get smaller by as much, so that both images hold the same. x: a smooth image, noise
magnified fourfold, and a hippocampus volume, mirrored to a cube.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.networks.nets import UNet
from monai.transforms import LoadImage
from scipy.ndimage import affine_transform, gaussian_filter
from torch import nn

from monai_scaleequiv import ScalePyramid, SEUNet, equivariance_error, rescale
from monai_scaleequiv.published import PublishedSEUNet

BUNDLE = Path(__file__).parents[1] / "bundles" / "seunet_hippocampus_segmentation"
SPACINGS = ((1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (1.4, 1.4, 1.4), (1.0, 1.0, 2.5))
CLASSES = 3
PYRAMID = tuple(2 ** (i / 3) for i in range(4))
MARGIN, SEEDS, RATIOS = 0.125, 3, (1.5, 2.0)
PIPELINES = ("resampled", "pyramid_1", "pyramid_3", "filters_mm")
Row = dict[str, object]


def pipeline(name: str) -> Callable[[MetaTensor], np.ndarray]:
    """From an image in memory to its label map, as the bundle's config does it."""
    parser = ConfigParser()
    files = ["inference.json"] if name == "resampled" else ["inference.json", "inference_native.json"]
    parser.read_config([BUNDLE / "configs" / file for file in files])
    parser["device"] = "$torch.device('cpu')"
    for steps in ("preprocessing#transforms", "postprocessing#transforms"):  # the image is loaded already
        files_only = ("LoadImaged", "EnsureChannelFirstd", "SaveImaged")
        parser[steps] = [step for step in parser[steps] if step["_target_"] not in files_only]
    if name != "resampled":
        parser["scales"] = [0.8, 1.0, 1.25] if name == "pyramid_3" else [1.0]
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    if name.startswith("pyramid"):
        network = parser.get_parsed_content("pyramid")
    before, after = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")
    network.eval()

    @torch.no_grad()
    def segment(image: MetaTensor) -> np.ndarray:
        batch = list_data_collate([before({"image": image.clone()})])
        batch["pred"] = inferer(batch["image"], network)
        return after(decollate_batch(batch)[0])["pred"][0].numpy()

    return segment


def on_grid(image: MetaTensor, label: np.ndarray, spacing: tuple[float, ...]) -> tuple[MetaTensor, np.ndarray]:
    """Image and label map with another voxel size around the same centre."""
    old = np.array(label.shape)
    if set(spacing) == {1.0}:
        return image, label
    size = tuple(int(n) for n in np.maximum(np.round(old / spacing), 1))
    offset = (old - 1) / 2 - np.array(spacing) * (np.array(size) - 1) / 2
    smooth = gaussian_filter(image[0].numpy(), [0.5 * max(s * s - 1, 0) ** 0.5 for s in spacing])
    values = affine_transform(smooth, spacing, offset, output_shape=size, order=3, mode="nearest")
    parts = [
        affine_transform((label == c).astype(np.float32), spacing, offset, output_shape=size, order=1, mode="nearest")
        for c in range(CLASSES)
    ]
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = offset
    affine = image.affine @ torch.from_numpy(grid)
    meta = {"original_affine": affine.numpy(), "spatial_shape": np.array(size)}  # as if loaded from a file of this grid
    return MetaTensor(torch.from_numpy(values)[None], affine=affine, meta=meta), np.argmax(parts, axis=0)


def dices(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    pairs = [(prediction == c, truth == c) for c in range(1, CLASSES)]
    return [2 * float((p & t).sum()) / float(p.sum() + t.sum()) for p, t in pairs]


def dice_rows(data: str, cases: int) -> Iterator[Row]:
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "train.json")
    parser["dataset_dir"] = data
    files = parser.get_parsed_content("split")[1][:cases]
    load = LoadImage(reader="NibabelReader", ensure_channel_first=True)
    volumes = [(load(f["image"]), np.asarray(load(f["label"])[0]).astype(np.int64)) for f in files]
    pipelines = {name: pipeline(name) for name in PIPELINES}
    for spacing in SPACINGS:
        found: dict[str, list[list[float]]] = {name: [] for name in pipelines}
        seconds: dict[str, list[float]] = {name: [] for name in pipelines}
        for i, (image, label) in enumerate(volumes):
            x, truth = on_grid(image, label, spacing)
            names = list(pipelines)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = time.perf_counter()
                prediction = pipelines[name](x)
                seconds[name].append(time.perf_counter() - start)
                found[name].append(dices(prediction, truth))
        for name in pipelines:
            mean, spread = np.mean(found[name], axis=0), np.std(found[name], axis=0)
            against = np.mean(found[name], axis=1) - np.mean(found["resampled"], axis=1)
            yield {
                "table": "dice",
                "spacing": spacing,
                "pipeline": name,
                "cases": len(volumes),
                "anterior": float(mean[0]),
                "posterior": float(mean[1]),
                "std": [float(s) for s in spread],
                "against_resampled": float(against.mean()),
                "standard_error": float(against.std(ddof=1) / len(against) ** 0.5) if len(against) > 1 else None,
                "median_seconds": statistics.median(seconds[name]),
                "threads": torch.get_num_threads(),
            }


def with_spacing(network: nn.Module, extent: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network on cubes of that many mm."""
    return lambda x: network(x, spacing=[extent / n for n in x.shape[2:]])


def networks(extent: int) -> dict[str, Callable[[int], Callable]]:
    """By name, from a seed to a network in evaluation mode; None where the weights are the bundle's."""

    def warm(network: nn.Module) -> nn.Module:
        with torch.no_grad():  # batch norm's statistics
            network.train()(torch.randn(1, 1, extent + 1 - extent % 4, *[extent + 1 - extent % 4] * 2))
        return network.eval()

    def unet() -> nn.Module:
        return UNet(3, 1, CLASSES, (8, 16, 32), (2, 2), num_res_units=1).eval()

    def published() -> nn.Module:
        net = PublishedSEUNet(
            1, CLASSES, (6, 11, 21), (2, 2), kernel_size=5, effective_size=3, scales=[0.9**i for i in range(4)],
            basis_type="multi", num_res_units=2, act="silu", reduction="max",
        )  # fmt: skip
        return warm(net)

    def pyramid(network: nn.Module) -> Callable:
        return with_spacing(ScalePyramid(network, PYRAMID, "mean", voxel_size=1.0).eval(), extent)

    return {
        "ScalePyramid around UNet, random": lambda: pyramid(unet()),
        "ScalePyramid around the shipped SEUNet": lambda: pyramid(shipped()),
        "SEUNet with filters in mm, shipped": lambda: with_spacing(shipped(), extent),
        "SEUNet as it is, shipped": shipped,
        "UNet, random": unet,
        "PublishedSEUNet, random": published,
    }


def shipped() -> SEUNet:
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return network.eval()


def images(data: str, size: int) -> dict[str, torch.Tensor]:
    noise = torch.randn(1, 1, *[size // 4] * 3, generator=torch.Generator().manual_seed(0))
    file = sorted((Path(data) / "imagesTr").glob("hippocampus_*.nii.gz"))[0]
    values = LoadImage(reader="NibabelReader", image_only=True)(file).numpy()
    values = np.pad(values, [(0, max(0, size - n)) for n in values.shape], mode="symmetric")[:size, :size, :size]
    found = {"smooth": rescale(noise, [size] * 3), "real": torch.from_numpy(values.copy())[None, None]}
    return {name: ((x - x.mean()) / x.std()).float() for name, x in found.items()}


def error_rows(data: str) -> Iterator[Row]:
    for name in networks(40):
        size = 41 if "Published" in name else 40  # it keeps sizes that are 1 modulo 4, UNet those that are 0
        for kind, x in images(data, size).items():
            for ratio in RATIOS:
                target = 4 * round(size * ratio / 4) + size % 4
                errors = []
                for seed in range(1 if "shipped" in name else SEEDS):
                    torch.manual_seed(seed)
                    network = networks(size)[name]()
                    errors.append(equivariance_error(network, x, [target] * 3, margin=MARGIN).projected)
                yield {
                    "table": "error",
                    "network": name,
                    "image": kind,
                    "sizes": [size, target],
                    "ratio": target / size,
                    "mean": float(np.mean(errors)),
                    "maximum": float(np.max(errors)),
                    "seeds": len(errors),
                }


def measure(output: str, data: str = "../shared/data/Task04_Hippocampus", cases: int = 42, threads: int = 2) -> None:
    """Measures, prints each row as it comes and writes all of them as JSON.

    Args:
        output: JSON file.
        data: folder of the data set.
        cases: number of validation volumes at most.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    rows = []
    for part in (error_rows(data), dice_rows(data, cases)):
        for row in part:
            rows.append(row)
            write(f"{json.dumps(row)}\n")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    Path(output).write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def table(result: str) -> None:
    """Shows a result as Markdown.

    Args:
        result: what ``measure`` wrote.
    """
    rows = json.loads(Path(result).read_text(encoding="utf-8"))["rows"]
    write("| voxel (mm) | pipeline | anterior | posterior | against resampled | seconds |\n|---|---|---|---|---|---|\n")
    for r in (r for r in rows if r["table"] == "dice"):
        voxel = " x ".join(f"{s:g}" for s in r["spacing"])
        against = f"{r['against_resampled']:+.4f} +- {r['standard_error']:.4f}"
        write(
            f"| {voxel} | {r['pipeline']} | {r['anterior']:.3f} | {r['posterior']:.3f} | {against} "
            f"| {r['median_seconds']:.2f} |\n"
        )
    write("\n| network | image | ratio | error, mean | maximum |\n|---|---|---|---|---|\n")
    for r in (r for r in rows if r["table"] == "error"):
        write(f"| {r['network']} | {r['image']} | {r['ratio']:.3f} | {r['mean']:.1e} | {r['maximum']:.1e} |\n")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    fire.Fire({"measure": measure, "table": table})
