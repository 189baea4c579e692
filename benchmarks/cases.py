"""What is measured beside what, on the CPU (speed.py) and on a GPU (gpu.py)."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import nn

from benchmarks.measuring import FORWARD, MEMORY, STEP, Side
from benchmarks.published_path import PublishedPath
from monai_scaleequiv import LargeKernelConv, RepUXNet, ScaleFilters, ScalePyramid, SEUNet
from monai_scaleequiv.published import build_seunet

SCALES = tuple(0.9**i for i in range(4))
OCTAVE = tuple(2 ** (i / 3) for i in range(4))
Pair = tuple[nn.Module, nn.Module]  # ours and the baseline
Goals = Mapping[str, float]  # how many times ours the baseline's time is to be, by mode


@dataclass(frozen=True)
class Case:
    """A network or layer of ours, what it is compared with, and the shape of the input."""

    name: str
    build: Callable[[], Pair]
    shape: tuple[int, ...]
    is_same: bool = False  # whether both compute the same function
    is_layer: bool = False  # whether a step takes the gradient of the input too
    goals: Mapping[str, Goals] = field(default_factory=dict)  # on "cpu" and "cuda"

    def sides(self, device: torch.device | str = "cpu") -> dict[str, Side]:
        """Both sides with the same input, and with the same parameters where they compute the same."""
        torch.manual_seed(0)
        ours, baseline = (net.to(device) for net in self.build())
        x = torch.randn(self.shape).to(device).requires_grad_(self.is_layer)
        return {"ours": Side(ours, x), "baseline": Side(baseline, x)}


def published_config(channels: tuple[int, ...], scale_size: int) -> dict:
    """Arguments of the published network as it was trained."""
    return {
        "in_channels": 4, "out_channels": 1, "channels": channels, "strides": (2,) * (len(channels) - 1),
        "kernel_size": 5, "effective_size": 3, "basis_type": "multi", "scales": SCALES, "num_res_units": 2,
        "act": "silu", "reduction": "avg", "scale_size": scale_size,
    }  # fmt: skip


def steerable_unet(channels: tuple[int, ...], scale_size: int = 1, **options: object) -> SEUNet:
    """SEUNet in the published configuration, with the filters that are its default."""
    strides = (2,) * (len(channels) - 1)
    return SEUNet(3, 4, 1, channels, strides, num_res_units=2, scale_size=scale_size, **options)


def _beside_published(channels: tuple[int, ...], scale_size: int) -> Pair:
    published = build_seunet(published_config(channels, scale_size))
    return steerable_unet(channels, scale_size), PublishedPath(published)


def _published(channels: tuple[int, ...], scale_size: int) -> Pair:
    net = build_seunet(published_config(channels, scale_size))
    return net, PublishedPath(net)


def _beside_unet(channels: tuple[int, ...], kernel_size: int, max_order: int, train_scales: int | None = None) -> Pair:
    strides = (2,) * (len(channels) - 1)
    options = {"kernel_size": kernel_size, "up_kernel_size": kernel_size, "num_res_units": 2}
    ours = steerable_unet(channels, filters=ScaleFilters(SCALES, max_order=max_order), train_scales=train_scales)
    return ours, UNet(3, 4, 1, channels, strides, **options)


def _pyramid(channels: tuple[int, ...]) -> Pair:
    network = UNet(3, 1, 3, channels, (2,) * (len(channels) - 1), num_res_units=2)
    return ScalePyramid(network, OCTAVE), network


def by_conv3d(net: nn.Module) -> nn.Module:
    """The same with torch's own conv3d in place of every large depthwise convolution."""
    net = copy.deepcopy(net)
    for conv in net.modules():
        if isinstance(conv, LargeKernelConv):
            conv.forward = partial(_conv3d, conv)
    return net


def _conv3d(conv: LargeKernelConv, x: torch.Tensor) -> torch.Tensor:
    padding = [k // 2 for k in conv.kernel_size]
    return F.conv3d(x, conv.effective_kernel(), conv.bias, padding=padding, groups=conv.channels)


def _checkpointed(build: Callable[..., nn.Module]) -> Pair:
    plain = build()
    net = build(use_checkpoint=True)
    net.load_state_dict(plain.state_dict())
    return net, plain


def _large_kernels(build: Callable[[], nn.Module]) -> Pair:
    net = build()
    return net, by_conv3d(net)


def networks(small: bool = False) -> dict[str, Case]:
    """The networks of the table by name; ``small`` ones show that everything runs."""
    narrow, wide, plain = ((4, 8, 16, 32), (16, 32, 64), (16, 32, 64, 128))
    edge, unet_edge, crop = 93, 96, 48
    if small:
        narrow, wide, plain, edge, unet_edge, crop = (2, 2, 2), (2, 2, 2), (2, 2, 2), 13, 16, 8
    cases = []
    for size in (1, 3):
        goals = {"cpu": {FORWARD: 2.0, STEP: 3.5, MEMORY: 2.0}, "cuda": {FORWARD: 3.0, STEP: 3.0, MEMORY: 2.0}}
        name = f"SEUNet published / scale_size {size} / {edge}^3"
        cases.append(Case(name, partial(_beside_published, narrow, size), (1, 4, *[edge] * 3), goals=goals))
    for size in (1, 3):
        goals = {"cpu": {FORWARD: 1.2}, "cuda": {FORWARD: 1.2}} if size == 3 else {}
        name = f"build_seunet / scale_size {size} / {edge}^3"
        cases.append(Case(name, partial(_published, narrow, size), (1, 4, *[edge] * 3), True, goals=goals))
    goals = {"cpu": {STEP: 1.0}, "cuda": {STEP: 1 / 1.2}}
    beside = partial(_beside_unet, narrow, 5, 2)
    cases.append(
        Case(f"SEUNet 4-32 beside UNet kernel 5 / {unet_edge}^3", beside, (1, 4, *[unet_edge] * 3), goals=goals)
    )
    goals = {"cpu": {STEP: 1 / 2.5}, "cuda": {STEP: 1 / 1.5}}
    beside = partial(_beside_unet, wide, 3, 3)
    cases.append(Case(f"SEUNet 16-64 beside UNet kernel 3 / {crop}^3 x 2", beside, (2, 4, *[crop] * 3), goals=goals))
    for batch in (1, 2):
        goals = {"cpu": {FORWARD: 0.5, STEP: 0.5}, "cuda": {FORWARD: 1 / 2.1, STEP: 1 / 2.1}}
        name = f"pyramid of 4 around UNet 16-128 / {unet_edge}^3 x {batch}"
        cases.append(Case(name, partial(_pyramid, plain), (batch, 1, *[unet_edge] * 3), goals=goals))
    return {case.name: case for case in cases}


def drawn(small: bool = False) -> dict[str, Case]:
    """The network that draws its scale in training, by name; a CUDA graph would keep the first."""
    channels, edge = ((2, 2, 2), 8) if small else ((16, 32, 64), 48)
    beside = partial(_beside_unet, channels, 3, 3, train_scales=1)
    name = f"SEUNet 16-64, one scale a step, beside UNet kernel 3 / {edge}^3 x 2"
    return {name: Case(name, beside, (2, 4, *[edge] * 3), goals={"cpu": {STEP: 1 / 2.5}})}


def large_kernels(small: bool = False) -> dict[str, Case]:
    """Large depthwise convolutions and RepUXNet, by name."""
    cases = []
    for channels, edge, batch in ((192, 12, 1), (384, 6, 1), (192, 12, 2), (384, 6, 2)):
        channels = 4 if small else channels
        layer = partial(_large_kernels, partial(LargeKernelConv, 3, channels, 7 if small else 21))
        name = f"depthwise 21^3 / {channels} @ {edge} x {batch}"
        goals = {"cpu": {FORWARD: 1.0}, "cuda": {FORWARD: 3.0 if edge == 12 else 1.0}}
        cases.append(Case(name, layer, (batch, channels, *[edge] * 3), True, True, goals=goals))
    build, shape = _repuxnet(small)
    cases.append(Case(f"RepUXNet / {shape[-1]}^3", partial(_large_kernels, build), shape, True))
    return {case.name: case for case in cases}


def _repuxnet(small: bool) -> tuple[Callable[..., nn.Module], tuple[int, ...]]:
    options = {"depths": (1, 1), "feature_size": (2, 4), "kernel_size": 7, "hidden_size": 4} if small else {}
    return partial(RepUXNet, 3, 1, 14, **options), (1, 1, *[8 if small else 96] * 3)


def checkpointed(small: bool = False) -> dict[str, Case]:
    """Networks that compute activations twice to save memory, beside the same that keep them, by name."""
    if "use_checkpoint" not in inspect.signature(SEUNet).parameters:
        return {}
    goals = {"cpu": {MEMORY: 2.0}, "cuda": {MEMORY: 2.0}}
    channels, edge = ((2, 2, 2), 13) if small else ((4, 8, 16, 32), 93)
    cases = [
        Case(
            f"SEUNet published / scale_size {size} / {edge}^3 / use_checkpoint",
            partial(_checkpointed, partial(steerable_unet, channels, size)), (1, 4, *[edge] * 3), True, goals=goals,
        )
        for size in (1, 3)
    ]  # fmt: skip
    build, shape = _repuxnet(small)
    name = f"RepUXNet / {shape[-1]}^3 / use_checkpoint"
    cases.append(Case(name, partial(_checkpointed, build), shape, True, goals=goals))
    return {case.name: case for case in cases}


def every(small: bool = False) -> dict[str, Case]:
    """All of them by name."""
    return networks(small) | drawn(small) | large_kernels(small) | checkpointed(small)
