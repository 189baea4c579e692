"""Building blocks of the published network, with its module names so that its state dicts fit."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn

from monai_scaleequiv.layers import (
    PerScale,
    ScaleDropout,
    ScaleGroupConv,
    ScaleLiftingConv,
    ScalePointwiseConv,
    ScaleProjection,
)  # fmt: skip

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": nn.LeakyReLU, "elu": nn.ELU}
MakeUnit = Callable[..., nn.Sequential]  # `conv_unit` with what all units of one network share
Stride = Sequence[int] | int


class BatchStatisticsNorm(nn.BatchNorm3d):
    """Normalisation by the statistics of the batch at hand, also in evaluation, where the variance is unbiased."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        if not self.training:
            # (x - m) / sqrt(c v + e), c = n / (n - 1), is batch normalisation of sqrt(c) x, divided by sqrt(c). As
            # tensors, for an exported graph would take numbers from the shape for constants.
            count = torch.ones_like(x[:, 0]).sum()
            root = (count / (count - 1)).sqrt()
            x, weight = x * root, weight / root
        return F.batch_norm(x, None, None, weight, self.bias, training=True, eps=self.eps)


def conv_unit(
    in_channels: int, out_channels: int, lifting: bool = False, stride: Stride = 1, is_transposed: bool = False,
    conv_only: bool = False, *, basis: torch.Tensor, scale_size: int, bias: bool, act: str, norm: str | None,
    dropout: float,
) -> nn.Sequential:  # fmt: skip
    """Convolution, norm, dropout, activation. Strided convolutions are not padded."""
    conv_type = ScaleLiftingConv if lifting else partial(ScaleGroupConv, scale_size=scale_size)
    options: dict[str, Any] = {"stride": stride, "bias": bias, "is_transposed": is_transposed, "basis": basis}
    conv = conv_type(3, in_channels, out_channels, padding=None if stride == 1 else 0, **options)
    unit = nn.Sequential(OrderedDict({"conv_z_h" if lifting else "conv_h_h": conv}))
    if conv_only:
        return unit
    if norm is not None:
        unit.add_module("batch_norm", PerScale(BatchStatisticsNorm(out_channels)))
    if dropout > 0:
        unit.add_module("dropout", ScaleDropout(dropout))
    unit.add_module(act, ACTIVATIONS[act]())
    return unit


class PublishedResidualUnit(nn.Module):
    """Convolution units beside a shortcut that changes channels and size as they do."""

    def __init__(
        self, make_unit: MakeUnit, in_channels: int, out_channels: int, lifting: bool = False, stride: Stride = 1,
        subunits: int = 2, conv_only: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        units = [make_unit(in_channels, out_channels, lifting, stride, conv_only=conv_only)]
        units += [make_unit(out_channels, out_channels) for _ in range(1, subunits)]
        self.conv = nn.Sequential(OrderedDict((f"unit{i}", unit) for i, unit in enumerate(units)))
        self.residual: nn.Module = nn.Identity()
        if not lifting and stride == 1 and in_channels != out_channels:
            # The published bias of this layer is never added.
            self.residual = ScalePointwiseConv(3, in_channels, out_channels, bias=False)
        elif stride != 1 or in_channels != out_channels:
            self.residual = make_unit(in_channels, out_channels, lifting, stride, conv_only=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.residual(x)


def unet_level(
    make_unit: MakeUnit, in_channels: int, out_channels: int, channels: Sequence[int], strides: Sequence[Stride],
    subunits: int, projection: str | None = None,
) -> nn.Sequential:  # fmt: skip
    """One level of the U-Net around the next; ``projection`` marks the top one."""
    is_top, width, stride = projection is not None, channels[0], strides[0]
    if len(channels) > 2:
        below: nn.Module = unet_level(make_unit, width, width, channels[1:], strides[1:], subunits)
    else:
        below = PublishedResidualUnit(make_unit, width, channels[1], subunits=subunits)
    joined = 2 * width if len(channels) > 2 else width + channels[1]
    down = PublishedResidualUnit(make_unit, in_channels, width, is_top, stride, subunits)
    up = nn.Sequential(
        make_unit(joined, out_channels, stride=stride, is_transposed=True),
        PublishedResidualUnit(make_unit, out_channels, out_channels, subunits=1, conv_only=is_top),
    )
    if projection is not None:
        up = nn.Sequential(up, ScaleProjection(projection))
    return nn.Sequential(down, SkipConnection(below, dim=2), up)
