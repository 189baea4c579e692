"""The levels of a scale-equivariant U-Net, and the same levels for voxels of another size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from monai_scaleequiv.layers import ScaleDownsample, ScalePointwiseConv, ScaleUpsample, SteerableConv
from monai_scaleequiv.nets._blocks import ScaleConvUnit, ScaleResidualUnit


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


@dataclass(frozen=True)
class LevelBuilder:
    """Builds the parts of a network whose levels differ in channels and factors only."""

    spatial_dims: int
    num_res_units: int
    unit_args: dict[str, Any]

    def unit(self, inc: int, outc: int, lifting: bool = False) -> nn.Module:
        if self.num_res_units > 0:
            return ScaleResidualUnit(self.spatial_dims, inc, outc, lifting, self.num_res_units, **self.unit_args)
        return ScaleConvUnit(self.spatial_dims, inc, outc, lifting, **self.unit_args)

    def down(self, inc: int, outc: int, factor: Sequence[int], is_top: bool) -> nn.Module:
        if max(factor) == 1:
            return nn.Sequential(self.unit(inc, outc, lifting=is_top))
        layers: list[nn.Module] = [nn.Unflatten(1, (1, inc))] if is_top else []
        downsample = ScaleDownsample(self.spatial_dims, self.unit_args["filters"].scales, factor)
        return nn.Sequential(*layers, downsample, self.unit(inc, outc))

    def up(self, inc: int, outc: int, factor: Sequence[int], head_channels: int | None) -> nn.Module:
        layers: list[nn.Module] = [ScaleConvUnit(self.spatial_dims, inc, outc, **self.unit_args)]
        if self.num_res_units > 0:
            layers.append(ScaleResidualUnit(self.spatial_dims, outc, outc, False, 1, **self.unit_args))
        if head_channels is not None:
            layers.append(ScalePointwiseConv(self.spatial_dims, outc, head_channels, self.unit_args["bias"]))
        return UpLevel(nn.Sequential(*layers), ScaleUpsample(self.spatial_dims, factor))


_Network = TypeVar("_Network", bound=nn.Module)


def shallow_copy(module: _Network, copies: dict[nn.Module, Any] | None = None) -> _Network:
    """A tree of modules of its own that shares parameters, buffers, hooks and all else with the first."""
    copies = {} if copies is None else copies  # a module that stands at two places does so in the copy
    if module not in copies:
        copy = copies[module] = type(module).__new__(type(module))
        copy.__dict__.update(module.__dict__)
        copy.__dict__.pop("_compiled_call_impl", None)  # left by `module.compile()`, it runs the first module
        children = {k: None if m is None else shallow_copy(m, copies) for k, m in module._modules.items()}
        copy.__dict__["_modules"] = children
    return copies[module]


def set_spacings(
    downs: nn.ModuleList, bottom: nn.Module, ups: nn.ModuleList, factors: Sequence[list[int]], spacing: list[float]
) -> list[list[int]]:
    """Chooses every level's filters and factors for a voxel size; gives the factors taken in place of ``factors``.

    A level's spacing is that of its grid, relative to the grid that it has at spacing 1.
    """
    taken = []
    for down, up, factor in zip(downs, reversed(ups), factors, strict=True):
        _set_spacing(down, ScaleDownsample, spacing)
        _set_spacing(up, ScaleUpsample, spacing)
        taken.append(next((m.factor for m in up.modules() if isinstance(m, ScaleUpsample)), factor))
        spacing = [r * g / f for r, f, g in zip(spacing, factor, taken[-1], strict=True)]
        _set_spacing(down, SteerableConv, spacing)
        _set_spacing(up, SteerableConv, spacing)
    _set_spacing(bottom, SteerableConv, spacing)
    return taken


def _set_spacing(
    tree: nn.Module, kind: type[SteerableConv] | type[ScaleDownsample] | type[ScaleUpsample], spacing: list[float]
) -> None:
    for module in tree.modules():
        if isinstance(module, kind):
            module.set_spacing(spacing)
