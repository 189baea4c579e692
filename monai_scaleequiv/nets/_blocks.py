"""Convolution with norm, dropout and activation, and the residual unit, on features with a scale axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import get_act_layer
from torch import nn

from monai_scaleequiv.layers import (
    PerScale,
    ScaleDropout,
    ScaleGroupConv,
    ScaleLiftingConv,
    ScaleNorm,
    ScalePointwiseConv,
)
from monai_scaleequiv.layers._steerable import DEFAULT_SCALES, DEFAULT_SIGMA

__all__ = ["ScaleConvUnit", "ScaleResidualUnit"]


class ScaleConvUnit(nn.Sequential):
    """Scale-equivariant convolution, then normalisation, dropout and activation, as MONAI's ``Convolution`` block.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        lifting: whether the input is an image (B, C, ...) and not yet features (B, S, C, ...).
        scales: relative sizes at which each filter is evaluated, S of them.
        kernel_size: edge of the kernel in voxels at spacing 1, odd; None lets it follow from sigma.
        sigma: standard deviation of the filters' Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres.
        max_order: highest total order of the Hermite polynomials.
        scale_size: number of neighbouring scales that interact (not in a lifting convolution).
        act: activation type and arguments, None for none.
        norm: normalisation type and arguments, None for none.
        dropout: probability of a channel to be dropped.
        bias: whether the convolution has a bias.
        adn_ordering: order of activation (A), dropout (D) and normalisation (N).
        spacing: edge of a voxel, one for all axes or one per axis.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> ScaleConvUnit(3, 8, 16)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 16, 9, 9, 9])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        lifting: bool = False,
        scales: Sequence[float] = DEFAULT_SCALES,
        kernel_size: Sequence[int] | int | None = 5,
        sigma: float = DEFAULT_SIGMA,
        max_order: int = 2,
        scale_size: int = 1,
        act: tuple | str | None = "SILU",
        norm: tuple | str | None = "BATCH",
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
        spacing: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__()
        if sorted(set(adn_ordering)) != sorted(adn_ordering) or not set(adn_ordering) <= set("NDA"):
            raise ValueError(f"adn_ordering must hold each of the letters N, D, A at most once, got {adn_ordering!r}.")
        filters = {
            "scales": scales, "kernel_size": kernel_size, "sigma": sigma, "max_order": max_order, "bias": bias,
            "spacing": spacing,
        }  # fmt: skip
        if lifting:
            self.add_module("conv", ScaleLiftingConv(spatial_dims, in_channels, out_channels, **filters))
        else:
            self.add_module(
                "conv", ScaleGroupConv(spatial_dims, in_channels, out_channels, scale_size=scale_size, **filters)
            )
        for letter in adn_ordering:
            if letter == "N" and norm is not None:
                self.add_module("norm", ScaleNorm(spatial_dims, out_channels, norm))
            elif letter == "D" and dropout:
                self.add_module("dropout", ScaleDropout(dropout))
            elif letter == "A" and act is not None:
                self.add_module("act", PerScale(get_act_layer(act)))


class ScaleResidualUnit(nn.Module):
    """Several :py:class:`ScaleConvUnit` in a row beside a shortcut.

    The shortcut is the identity, or a pointwise convolution where the number of channels changes or an image is
    lifted; both are the same at every scale.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        lifting: whether the input is an image (B, C, ...) and not yet features (B, S, C, ...).
        subunits: number of convolutions.
        scales: relative sizes at which each filter is evaluated, S of them.
        kernel_size: edge of the kernel in voxels at spacing 1, odd; None lets it follow from sigma.
        sigma: standard deviation of the filters' Gaussian at scale 1, in units of ``spacing``: voxels, or millimetres.
        max_order: highest total order of the Hermite polynomials.
        scale_size: number of neighbouring scales that interact (not in a lifting convolution).
        act: activation type and arguments.
        norm: normalisation type and arguments.
        dropout: probability of a channel to be dropped.
        bias: whether the convolutions have a bias.
        adn_ordering: order of activation (A), dropout (D) and normalisation (N).
        spacing: edge of a voxel, one for all axes or one per axis.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> ScaleResidualUnit(3, 1, 8, lifting=True)(torch.rand(2, 1, 9, 9, 9)).shape
        torch.Size([2, 4, 8, 9, 9, 9])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        lifting: bool = False,
        subunits: int = 2,
        scales: Sequence[float] = DEFAULT_SCALES,
        kernel_size: Sequence[int] | int | None = 5,
        sigma: float = DEFAULT_SIGMA,
        max_order: int = 2,
        scale_size: int = 1,
        act: tuple | str | None = "SILU",
        norm: tuple | str | None = "BATCH",
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
        spacing: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__()
        if subunits < 1:
            raise ValueError(f"subunits must be at least 1, got {subunits}.")
        self.lifting = lifting
        common = (scales, kernel_size, sigma, max_order, scale_size, act, norm, dropout, bias, adn_ordering, spacing)
        units = [ScaleConvUnit(spatial_dims, in_channels, out_channels, lifting, *common)]
        units += [ScaleConvUnit(spatial_dims, out_channels, out_channels, False, *common) for _ in range(subunits - 1)]
        self.conv = nn.Sequential(*units)
        self.residual: nn.Module = nn.Identity()
        if lifting or in_channels != out_channels:
            self.residual = ScalePointwiseConv(spatial_dims, in_channels, out_channels, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.residual(x.unsqueeze(1) if self.lifting else x)  # (B, 1 or S, C', ...)
        return self.conv(x) + shortcut
