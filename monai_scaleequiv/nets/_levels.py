"""The levels of a scale-equivariant U-Net: what they are made of, and the voxels that each of them sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_scaleequiv.layers import ScaleDownsample, ScalePointwiseConv, ScaleUpsample
from monai_scaleequiv.nets._blocks import ScaleConvUnit, ScaleResidualUnit

__all__: list[str] = []


class UpLevel(nn.Module):
    """Convolutions on the joined features, then up-sampling to the size before the level's down-sampling.

    In this order the convolutions run on the small grid; at the top the head comes first too, being pointwise.
    """

    def __init__(self, unit: nn.Module, upsample: ScaleUpsample) -> None:
        super().__init__()
        self.unit = unit
        self.upsample = upsample

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        return self.upsample(self.unit(x), size)


class LevelBuilder:
    """Builds the parts of a network whose levels differ in channels and voxels only.

    Spacings are those of the grid that a part gets, relative to the grid it would get at spacing 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        kernel_size: Sequence[int] | int | None,
        up_kernel_size: Sequence[int] | int | None,
        num_res_units: int,
        unit_args: dict[str, Any],
    ) -> None:
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.up_kernel_size = up_kernel_size
        self.num_res_units = num_res_units
        self.unit_args = unit_args

    def unit(self, inc: int, outc: int, spacing: Sequence[float], lifting: bool = False) -> nn.Module:
        args = {"lifting": lifting, "kernel_size": self.kernel_size, "spacing": spacing, **self.unit_args}
        if self.num_res_units > 0:
            return ScaleResidualUnit(self.spatial_dims, inc, outc, subunits=self.num_res_units, **args)
        return ScaleConvUnit(self.spatial_dims, inc, outc, **args)

    def downsample(self, factor: Sequence[int], spacing: Sequence[float]) -> ScaleDownsample:
        return ScaleDownsample(self.spatial_dims, self.unit_args["scales"], factor, spacing=spacing)

    def upsample(self, factor: Sequence[int], spacing: Sequence[float]) -> ScaleUpsample:
        return ScaleUpsample(self.spatial_dims, factor, spacing)

    def down(
        self, inc: int, outc: int, downsample: ScaleDownsample | None, spacing: Sequence[float], is_top: bool
    ) -> nn.Module:
        if downsample is None:
            return nn.Sequential(self.unit(inc, outc, spacing, lifting=is_top))
        layers: list[nn.Module] = [nn.Unflatten(1, (1, inc))] if is_top else []
        return nn.Sequential(*layers, downsample, self.unit(inc, outc, spacing))

    def up(
        self, inc: int, outc: int, upsample: ScaleUpsample, spacing: Sequence[float], head_channels: int | None
    ) -> nn.Module:
        args = {"kernel_size": self.up_kernel_size, "spacing": spacing, **self.unit_args}
        layers: list[nn.Module] = [ScaleConvUnit(self.spatial_dims, inc, outc, **args)]
        if self.num_res_units > 0:
            args = {**args, "kernel_size": self.kernel_size}
            layers.append(ScaleResidualUnit(self.spatial_dims, outc, outc, subunits=1, **args))
        if head_channels is not None:
            layers.append(ScalePointwiseConv(self.spatial_dims, outc, head_channels, self.unit_args["bias"]))
        return UpLevel(nn.Sequential(*layers), upsample)


def next_spacing(spacing: Sequence[float], factor: Sequence[int], taken: Sequence[int]) -> list[float]:
    """Spacing below a down-sampling by ``taken`` where spacing 1 has one by ``factor``.

    Example::

        >>> next_spacing([1.0, 1.0, 3.0], factor=[2, 2, 2], taken=[2, 2, 1])
        [1.0, 1.0, 1.5]
    """
    return [r * g / f for r, f, g in zip(spacing, factor, taken, strict=True)]
