"""Building blocks of the published network, with its module names so that its state dicts fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
)

__all__: list[str] = []

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": nn.LeakyReLU, "elu": nn.ELU}


@dataclass(frozen=True)
class PublishedConfig:
    """What all layers of one published network share."""

    basis: torch.Tensor
    scale_size: int
    bias: bool
    act: str
    norm: str | None
    dropout: float

    def __post_init__(self) -> None:
        if self.act not in _ACTIVATIONS:
            raise ValueError(f"act must be one of {sorted(_ACTIVATIONS)}, got {self.act!r}.")
        if self.norm not in ("batch", None):
            raise ValueError(
                f"norm must be 'batch' or None, got {self.norm!r}: the published instance normalisation cannot be "
                "trained, so no checkpoint has it."
            )


class BatchStatisticsNorm(nn.Module):
    """Normalisation by the statistics of the batch at hand, also in evaluation, where the variance is unbiased."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if not self.training:
            # (x - m) / sqrt(c v + e), c = n / (n - 1), is batch normalisation of sqrt(c) x, divided by sqrt(c). As
            # tensors, for an exported graph would take numbers from the shape for constants.
            count = torch.ones_like(x[:, 0]).sum()
            root = (count / (count - 1)).sqrt()
            x, weight = x * root, weight / root
        return F.batch_norm(x, None, None, weight, self.bias, training=True, eps=self.eps)


def conv_unit(
    config: PublishedConfig,
    in_channels: int,
    out_channels: int,
    lifting: bool = False,
    stride: Sequence[int] | int = 1,
    is_transposed: bool = False,
    conv_only: bool = False,
) -> nn.Sequential:
    """Convolution, norm, dropout, activation. Strided convolutions are not padded."""
    conv_args = {
        "basis": config.basis,
        "stride": stride,
        "padding": None if stride == 1 else 0,
        "bias": config.bias,
        "is_transposed": is_transposed,
    }
    unit = nn.Sequential()
    if lifting:
        unit.add_module("conv_z_h", ScaleLiftingConv(3, in_channels, out_channels, **conv_args))
    else:
        conv = ScaleGroupConv(3, in_channels, out_channels, scale_size=config.scale_size, **conv_args)
        unit.add_module("conv_h_h", conv)
    if conv_only:
        return unit
    if config.norm is not None:
        unit.add_module("batch_norm", PerScale(BatchStatisticsNorm(out_channels)))
    if config.dropout > 0:
        unit.add_module("dropout", ScaleDropout(config.dropout))
    unit.add_module(config.act, _ACTIVATIONS[config.act]())
    return unit


class PublishedResidualUnit(nn.Module):
    """Convolution units beside a shortcut that changes channels and size as they do."""

    def __init__(
        self,
        config: PublishedConfig,
        in_channels: int,
        out_channels: int,
        lifting: bool = False,
        stride: Sequence[int] | int = 1,
        subunits: int = 2,
        last_conv_only: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for i in range(subunits):
            first, last = i == 0, i == subunits - 1
            unit = conv_unit(
                config,
                in_channels if first else out_channels,
                out_channels,
                lifting=lifting and first,
                stride=stride if first else 1,
                conv_only=last_conv_only and last,
            )
            self.conv.add_module(f"unit{i}", unit)
        self.residual: nn.Module = nn.Identity()
        if not lifting and stride == 1 and in_channels != out_channels:
            # The published bias of this layer is never added.
            self.residual = ScalePointwiseConv(3, in_channels, out_channels, bias=False)
        elif stride != 1 or in_channels != out_channels:
            self.residual = conv_unit(config, in_channels, out_channels, lifting, stride, conv_only=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.residual(x)


def unet_level(
    config: PublishedConfig,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int] | int],
    num_res_units: int,
    projection: str | None = None,
) -> nn.Sequential:
    """One level of the U-Net around the next; ``projection`` marks the top one."""
    is_top, width, stride = projection is not None, channels[0], strides[0]
    if len(channels) > 2:
        below: nn.Module = unet_level(config, width, width, channels[1:], strides[1:], num_res_units)
        joined = 2 * width
    else:
        below = PublishedResidualUnit(config, width, channels[1], subunits=num_res_units)
        joined = width + channels[1]
    down = PublishedResidualUnit(config, in_channels, width, is_top, stride, num_res_units)
    up = nn.Sequential(
        conv_unit(config, joined, out_channels, stride=stride, is_transposed=True),
        PublishedResidualUnit(config, out_channels, out_channels, subunits=1, last_conv_only=is_top),
    )
    if projection is not None:
        up = nn.Sequential(up, ScaleProjection(projection))
    return nn.Sequential(down, SkipConnection(below, dim=2), up)
