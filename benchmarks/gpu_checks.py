"""Networks and layers on a GPU against the same on the CPU in float64."""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from benchmarks.cases import published_config, steerable_unet
from benchmarks.measuring import FORWARD, Side, difference, gradients
from monai_scaleequiv import LargeKernelConv, RepUXNet, ScaleGroupConv, ScaleLiftingConv, ScalePyramid, SEUNet
from monai_scaleequiv.published import build_seunet

# Of outputs and gradients, relative to their largest entry. Batch statistics of few voxels magnify what is rounded.
TOLERANCES = {"float64": (1e-9, 1e-8), "float32": (1e-4, 5e-3), "bfloat16": (0.1, 0.5)}
Builder = Callable[[], nn.Module]


def modules(small: bool = False) -> Iterator[tuple[str, Builder, tuple[int, ...]]]:
    """Name, how to build it, and the shape of an input."""
    image, cube, volume = ((9, 8, 7), 13, 13) if small else ((19, 17, 18), 37, 53)
    for dims in (3, 2):
        for size in (1, 2, 3):
            net = partial(SEUNet, dims, 2, 2, (4, 8), (2,), num_res_units=2, scale_size=size)
            yield f"SEUNet {dims}D, scale_size {size}", net, (2, 2, *image[:dims])
    yield "SEUNet, published widths", partial(steerable_unet, (4, 8, 16, 32)), (1, 4, *[volume] * 3)
    for size in (1, 3):
        net = partial(build_seunet, published_config((4, 8, 8), size))
        yield f"build_seunet, scale_size {size}", net, (1, 4, *[cube] * 3)
    yield "ScalePyramid", lambda: ScalePyramid(UNet(3, 1, 2, (4, 8), (2,), num_res_units=1)), (2, 1, *image)
    for mode in ("fixed", "learned", "gradient"):
        options = {"depths": (1, 1), "feature_size": (8, 16), "kernel_size": 13, "hidden_size": 16}
        build = partial(RepUXNet, 3, 1, 2, prior_mode=mode, **options)
        # Coarsest features of 3 voxels: of a kernel larger than the image, torch's own bfloat16 gradient is noise on
        # CPUs with avx512_bf16
        yield f"RepUXNet, prior {mode}", build, (2, 1, *[cube - 1] * 3)
    yield "RepUXNet, a large volume", partial(RepUXNet, 3, 1, 2, **options), (1, 1, *[volume] * 3)
    for edge in (6, 12) if small else (6, 12, 24):
        yield f"LargeKernelConv 21^3 @ {edge}", partial(LargeKernelConv, 3, 4, 21, bias=True), (2, 4, *[edge] * 3)
    yield "ScaleLiftingConv", partial(ScaleLiftingConv, 3, 3, 4), (2, 3, *image)
    for options in ({}, {"scale_size": 3}, {"stride": 2, "padding": 0}, {"stride": 2, "is_transposed": True}):
        named = ", ".join(f"{key}={value}" for key, value in options.items())
        yield f"ScaleGroupConv({named})", partial(ScaleGroupConv, 3, 4, 8, **options), (2, 4, 4, *image)


@lru_cache(maxsize=1)
def reference(build: Builder, shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor, list[torch.Tensor]]:
    """A module and its input, and what it gives on the CPU in float64: output, gradients, output in evaluation."""
    torch.manual_seed(0)
    net = build().double()
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    side = Side(copy.deepcopy(net), x)
    return net, x, [*gradients(side), side.run(FORWARD)]


def checked(build: Builder, shape: tuple[int, ...], dtype: str, device: str) -> dict[str, Any]:
    """Differences in training (output, gradients) and in evaluation, and whether they are small enough."""
    net, x, expected = reference(build, shape)
    precision = torch.float64 if dtype == "float64" else torch.float32
    there = copy.deepcopy(net).to(device, precision)
    side = Side(there, x.detach().to(device, precision).requires_grad_(), half=dtype == "bfloat16")
    found = [*gradients(side), side.run(FORWARD)]
    names = ("outputs", "gradients", "evaluation")
    row: dict[str, Any] = {name: difference(a, b) for name, a, b in zip(names, found, expected, strict=True)}
    most, most_of_gradients = TOLERANCES[dtype]
    passed = max(row["outputs"], row["evaluation"]) <= most and row["gradients"] <= most_of_gradients
    return {**row, "passed": passed}
