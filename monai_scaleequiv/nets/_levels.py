"""What a scale-equivariant U-Net is put together with, and copies of it that share its weights."""

from typing import Any, TypeVar

import torch
from torch import nn

from monai_scaleequiv.layers import ScaleUpsample, SpacedResample, SteerableConv
from monai_scaleequiv.nets._blocks import ScaleConvUnit, ScaleResidualUnit
from monai_scaleequiv.nets._checkpoint import Checkpointed


class CheckpointedConvUnit(Checkpointed, ScaleConvUnit):
    """Convolution of a level, its activations kept or computed twice."""


class CheckpointedResidualUnit(Checkpointed, ScaleResidualUnit):
    """Residual unit of a level, its activations kept or computed twice."""


class UpLevel(nn.Module):
    """Convolutions on the joined features, then up-sampling to the size before the level's down-sampling.

    In this order the convolutions run on the small grid; at the top the head comes first too, being pointwise. Under
    deep supervision another level has a ``head`` as well, whose answers on the level's own grid are added to a list.
    """

    def __init__(self, unit: nn.Module, upsample: ScaleUpsample) -> None:
        super().__init__()
        self.unit = unit
        self.upsample = upsample
        self.head: nn.Module = nn.Identity()  # until a network sets one

    def forward(
        self, x: torch.Tensor, size: list[int], takes_mean: bool = False, answers: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        x = self.unit(x)
        if answers is not None:
            answers.append(self.head(x))
        if takes_mean:  # over the scales, which commutes with up-sampling and before it costs a fraction
            x = x.mean(dim=1, keepdim=True)
        return self.upsample(x, size)


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


def set_spacing(
    trees: list[nn.Module], kind: type[SpacedResample] | type[SteerableConv], spacing: list[float]
) -> list[list[int]]:
    """Chooses filters, or factors, of all modules of a kind for a voxel size; gives the factors."""
    found = [module for tree in trees for module in tree.modules() if isinstance(module, kind)]
    for module in found:
        module.set_spacing(spacing)
    return [module.factor for module in found if isinstance(module, SpacedResample)]
