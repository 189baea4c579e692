"""The layers and networks of one set of weights on voxels of several sizes."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from probes import NETWORKS, SCALES, SEEDS, Row, periodic, periodic_noise, seeded, settled, shrunk, summary, volume

from monai_scaleequiv import ScaleFilters, ScaleLiftingConv, SEUNet, rescale
from monai_scaleequiv.metrics import relative_error


@torch.no_grad()
def millimetre_layers() -> Iterator[Row]:
    x = periodic_noise()
    for sigma, r in ((1.5, 2), (1.25, 3), (1.5, 3), (1.5, 5), (2.0, 5), (1.0, 2), (1.0, 3)):
        for method in ("least_squares", "sampled"):
            kernel = 5 if sigma == 1 else None
            filters = ScaleFilters(SCALES, sigma, kernel_size=kernel, method=method)
            make = partial(ScaleLiftingConv, 3, 1, 4, filters, padding=0)
            make_coarse = partial(ScaleLiftingConv, 3, 1, 4, replace(filters, spacing=(1.0, 1.0, r)), padding=0)
            errors, blind = [], []
            for seed in range(SEEDS):
                fine, coarse = seeded(make, seed), seeded(make_coarse, seed)
                found = shrunk(periodic(fine, x), r)
                errors.append(relative_error(found, periodic(coarse, shrunk(x, r))))
                blind.append(relative_error(found, periodic(fine, shrunk(x, r))))
            row = {"table": "millimetre_layers", "sigma": sigma, "r": r, "method": method}
            yield {**row, "taps": coarse.kernel_size, **summary(errors), "blind": statistics.mean(blind)}


@torch.no_grad()
def millimetre_networks(data: Path) -> Iterator[Row]:
    x = volume(data, 0, 72)
    for channels, strides in NETWORKS:
        for kernel, sigma in ((5, 1.0), (7, 1.25)):
            for target in (96, 48, 36, 24):
                size, errors, blind = [72, 72, target], [], []
                for seed in range(SEEDS):
                    filters = ScaleFilters(sigma=sigma, kernel_size=kernel)
                    net = settled(seeded(partial(SEUNet, 3, 1, 2, channels, strides, filters=filters), seed), x)
                    inner = (..., slice(18, 54), slice(18, 54), slice(target // 4, target - target // 4))
                    found, shrunken = rescale(net(x), size)[inner], rescale(x, size)
                    errors.append(relative_error(found, net(shrunken, spacing=[1.0, 1.0, 72 / target])[inner]))
                    blind.append(relative_error(found, net(shrunken)[inner]))
                row = {"table": "millimetre_networks", "channels": channels, "kernel": kernel, "sigma": sigma}
                yield {**row, "r": 72 / target, **summary(errors), "blind": statistics.mean(blind)}
