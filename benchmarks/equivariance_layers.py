"""Scale-equivariance of layers and whole untrained networks, in voxels and in millimetres, and what it costs.

    python benchmarks/equivariance_layers.py --output=benchmarks/results/equivariance_layers.json

Errors are ||T f(x) - f(T x)||^2 / ||f(T x)||^2 with the scale index shifted to match, as mean and maximum over seeds
and images. x: hippocampus volumes, mirrored to 72^3, zero mean, unit variance; T: ideal rescaling to 80^3; a quarter is
left out at either end of an axis. Where the published network takes part, T goes from 73^3 to 81^3, because it needs
sizes of 1 modulo 4, and the ratio of the scales is 73/81. Batch norm takes its statistics from one forward pass in
training mode. In the tables in millimetres T shrinks the last axis from 1 mm to r mm, and "blind" is the error of the
same network at spacing 1; the layers there see periodic noise of power f^-3.5.
"""

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fire
import torch
import torch.nn.functional as F
from millimetres import millimetre_layers, millimetre_networks
from probes import NETWORKS, SCALES, SEEDS, Row, published, seeded, settled, summary, volume
from torch import nn

from monai_scaleequiv import (
    ScaleFilters,
    ScaleGroupConv,
    ScaleLiftingConv,
    SEUNet,
    equivariance_error,
    rescale,
)
from monai_scaleequiv.maths import hermite_gaussian_basis
from monai_scaleequiv.metrics import relative_error
from monai_scaleequiv.published import published_basis

MARGIN = 0.25
ODD_SCALES = tuple((73 / 81) ** i for i in range(4))
FILTERS = (
    (5, 0.8),
    (5, 0.95),
    (5, 1.0),
    (7, 1.0),
    (7, 1.15),
    (7, 1.25),
    (7, 1.5),
    (9, 1.25),
    (9, 1.4),
    (9, 1.5),
    (11, 1.5),
)


def convolutions(count: int, basis: torch.Tensor | None = None, **filters) -> nn.Sequential:
    args = {"filters": ScaleFilters(SCALES, **filters), "basis": basis}
    layers: list[nn.Module] = [ScaleLiftingConv(3, 1, 4, **args)]
    for _ in range(count - 1):
        layers += [nn.SiLU(), ScaleGroupConv(3, 4, 4, **args)]
    return nn.Sequential(*layers)


def narrowed(kernel: int, sigma: float) -> torch.Tensor:
    """Basis with an extent of 2.5 of its own sigma for each scale."""
    parts = []
    for scale in SCALES:
        extent = min(kernel, 2 * math.ceil(2.5 * sigma * scale - 0.5) + 1)
        own = hermite_gaussian_basis({"scales": (scale,), "sigma": sigma, "kernel_size": extent})
        parts.append(F.pad(own, [(kernel - extent) // 2] * 6))
    # Each was normalised on its own; the full basis has the norms that they should have.
    full = hermite_gaussian_basis(ScaleFilters(SCALES, sigma, kernel_size=kernel)).flatten(2).norm(dim=2)
    return torch.cat(parts, dim=1) * full[..., None, None, None]


def layers(data: Path) -> Iterator[Row]:
    images = [volume(data, i, 72) for i in (0, 100, 200)]
    choices = [("least_squares", {"kernel_size": k, "sigma": s}) for k, s in FILTERS]
    choices += [("sampled", {"kernel_size": 7, "sigma": 1.25, "method": "sampled"})]
    choices += [("narrowed", {"kernel_size": k, "sigma": s, "basis": narrowed(k, s)}) for k, s in ((7, 1.25), (9, 1.5))]
    published_filters = published_basis(5, SCALES, 3, "multi", kernel_padding=False)
    for name, args in [("published", {"basis": published_filters}), *choices]:
        for count in (1, 3):
            stacks = [seeded(lambda c=count, a=args: convolutions(c, **a), seed) for seed in range(SEEDS)]
            readings = [equivariance_error(net, x, [80] * 3, SCALES, MARGIN) for net in stacks for x in images]
            row = {"table": "layers", "filters": name, "kernel": args.get("kernel_size", 5)}
            row |= {"sigma": args.get("sigma", 1.0), "convolutions": count}
            row |= summary([r.interior for r in readings])
            yield {**row, "unshifted": statistics.mean(r.unshifted for r in readings)}


def scale_ends(data: Path) -> Iterator[Row]:
    """Interaction of two scales: error of the last matched pair, for two ways to continue the scale axis."""
    x, args = volume(data, 0, 72), {"filters": ScaleFilters(SCALES, 1.25, kernel_size=7), "bias": False}
    for name in ("replicate", "zero"):
        errors = []
        for seed in range(SEEDS):
            lift = seeded(lambda: ScaleLiftingConv(3, 1, 4, **args), seed)
            pair, single = (ScaleGroupConv(3, 4, 4, scale_size=j, **args) for j in (2, 1))
            single.weight = nn.Parameter(pair.weight.detach().unflatten(2, (2, -1))[:, :, 0])

            def run(image, lift=lift, pair=pair, single=single, name=name):
                z = lift(image)
                y = pair(z)
                return y if name == "replicate" else torch.cat([y[:, :-1], single(z)[:, -1:]], dim=1)

            with torch.no_grad():
                found, expected = rescale(run(x), [80] * 3), run(rescale(x, [80] * 3))
            inner = (..., *[slice(20, 60)] * 3)
            errors.append(relative_error(found[:, -1][inner], expected[:, -2][inner]))
        yield {"table": "scale_ends", "end": name, **summary(errors)}


def networks(data: Path) -> Iterator[Row]:
    for channels, strides in NETWORKS:
        for kernel, sigma in ((5, 1.0), (7, 1.25), (9, 1.5)):
            for sizes, scales in (((72, 80), SCALES), ((73, 81), ODD_SCALES)):
                filters = ScaleFilters(scales, sigma, kernel_size=kernel)
                make = partial(SEUNet, 3, 1, 2, channels, strides, filters=filters)
                row = {"network": "SEUNet", "kernel": kernel, "sigma": sigma, "channels": channels}
                yield {**row, **network_errors(data, sizes, scales, make)}
        row = {"network": "PublishedSEUNet", "kernel": 5, "sigma": 1.0, "channels": channels}
        yield {**row, **network_errors(data, (73, 81), ODD_SCALES, partial(published, channels, strides, ODD_SCALES))}


def network_errors(data: Path, sizes: tuple[int, int], scales: tuple[float, ...], make: Callable[[], nn.Module]) -> Row:
    x = volume(data, 0, sizes[0])
    nets = (settled(seeded(make, seed), x) for seed in range(SEEDS))
    readings = [equivariance_error(net, x, [sizes[1]] * 3, scales, MARGIN) for net in nets]
    row = {"table": "networks", "sizes": sizes, **summary([r.interior for r in readings])}
    means = {key: statistics.mean(getattr(r, key) for r in readings) for key in ("unshifted", "projected")}
    return {**row, **means}


def cost(repeats: int = 24) -> Iterator[Row]:
    """Medians and minima in seconds of runs in alternating order.

    The published layer is this package's convolution with the published basis.
    """
    features, image = torch.rand(1, 4, 8, 40, 40, 40), torch.rand(1, 1, 61, 61, 61)
    basis = published_basis(5, SCALES, 3, "multi", kernel_padding=False)
    pairs = {
        "layer": (ScaleGroupConv(3, 8, 8), ScaleGroupConv(3, 8, 8, basis=basis), features),
        "network": (
            SEUNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
            published((4, 8, 16), (2, 2), SCALES),
            image,
        ),
    }
    for what, (ours, theirs, x) in pairs.items():
        for mode in ("forward", "forward+backward"):
            times: dict[str, list[float]] = {"ours": [], "published": []}
            for i in range(repeats + 2):
                for name, net in (("ours", ours), ("published", theirs))[:: 1 if i % 2 else -1]:
                    start = time.perf_counter()
                    with torch.set_grad_enabled(mode != "forward"):
                        y = net.train(mode != "forward")(x) if i == 0 else net(x)
                    if mode != "forward":
                        y.square().mean().backward()
                    times[name] += [time.perf_counter() - start] if i >= 2 else []
            row = {"table": "cost", "what": what, "mode": mode, "threads": torch.get_num_threads()}
            for name, net in (("ours", ours), ("published", theirs)):
                row |= {name: statistics.median(times[name]), f"{name}_min": min(times[name])}
                row[f"{name}_parameters"] = sum(p.numel() for p in net.parameters())
            yield row


def main(
    output: str,
    data: str = "../shared/data/Task04_Hippocampus",
    parts: str = "layers,scale_ends,networks,millimetre_layers,millimetre_networks,cost",
) -> None:
    """Runs the parts, prints each row as it comes and writes all of them as JSON.

    Args:
        output: JSON file; parts that are not asked for keep their figures.
        data: folder of the data set that the images come from.
        parts: which tables to measure, with commas between.
    """
    torch.set_num_threads(2)
    folder, file = Path(data), Path(output)
    tables = {
        "layers": lambda: layers(folder),
        "scale_ends": lambda: scale_ends(folder),
        "networks": lambda: networks(folder),
        "millimetre_layers": millimetre_layers,
        "millimetre_networks": lambda: millimetre_networks(folder),
        "cost": cost,
    }
    for part in parts if isinstance(parts, tuple) else parts.split(","):
        rows = [row for row in json.loads(file.read_text())["rows"] if row["table"] != part] if file.exists() else []
        for row in tables[part]():
            rows.append(row)
            cells = (f"{k} {v:.2e}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            sys.stdout.write(", ".join(cells) + "\n")
            sys.stdout.flush()
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        file.write_text(json.dumps({"versions": versions, "seeds": SEEDS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
