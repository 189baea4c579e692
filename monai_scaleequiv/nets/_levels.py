"""What a scale-equivariant U-Net is put together with, and copies of it that share its weights."""

import warnings
from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from monai_scaleequiv.layers import ScaleUpsample, SpacedResample, SteerableConv, check_counts, keep_scales
from monai_scaleequiv.maths import voxel_sizes
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
    """A tree of modules of its own that shares parameters, buffers, hooks and all else with the first.

    Raises:
        ValueError: the ``forward`` of a layer was replaced by a function that may run the first layer.
    """
    is_layer, copies = copies is not None, {} if copies is None else copies
    if module not in copies:  # a module that stands at two places does so in the copy
        copy = copies[module] = object.__new__(type(module))  # the class may have one of its own, as FSDP's
        copy.__dict__.update(module.__dict__)
        copy.__dict__.pop("_compiled_call_impl", None)  # left by `module.compile()`, it runs the first module
        if "forward" in module.__dict__:
            _bind_methods(copy, module, is_layer)
        children = {k: None if m is None else shallow_copy(m, copies) for k, m in module._modules.items()}
        copy.__dict__["_modules"] = children
    return copies[module]


def _bind_methods(copy: nn.Module, first: nn.Module, is_layer: bool) -> None:
    """Binds a replaced ``forward`` (by accelerate, say), and what it calls, to the copy; it would run the first module.

    One that no copy can follow, a compiled one say, is left out of a whole network, whose own is meant.
    """
    for name, value in first.__dict__.items():
        can_follow = not _keeps(value, first)
        if can_follow and isinstance(value, MethodType) and value.__self__ is first:
            copy.__dict__[name] = MethodType(value.__func__, copy)
        elif can_follow and isinstance(value, partial) and any(x is first for x in value.args):
            arguments = [copy if x is first else x for x in value.args]
            copy.__dict__[name] = partial(value.func, *arguments, **value.keywords)
        elif name == "forward" and not is_layer:
            del copy.__dict__["forward"]
        elif name == "forward" and any(isinstance(m, SpacedResample | SteerableConv) for m in first.modules()):
            raise ValueError(  # of other layers the first does the same
                f"forward of a {type(first).__name__}: expected the class's own or a method bound to it, got "
                f"{value!r}, which a copy at other scales or spacings cannot follow; use a forward hook."
            )


def _keeps(value: Any, first: nn.Module) -> bool:
    # Whether a function runs the first module whatever it is bound to: by its closure, or by an object there
    if isinstance(value, partial):
        others = [x for x in value.args if x is not first]
        return _keeps(value.func, first) or any(_is_of(x, first) for x in (*others, *value.keywords.values()))
    kept = [cell.cell_contents for cell in getattr(getattr(value, "__func__", value), "__closure__", None) or ()]
    kept += [x for k in kept if not isinstance(k, nn.Module) for x in getattr(k, "__dict__", {}).values()]
    return any(_is_of(x, first) for x in kept)


def _is_of(value: Any, module: nn.Module) -> bool:
    return value is module or getattr(value, "__self__", None) is module


def set_spacing(
    trees: list[nn.Module], kind: type[SpacedResample] | type[SteerableConv], spacing: list[float]
) -> list[list[int]]:
    """Chooses filters, or factors, of all modules of a kind for a voxel size; gives the factors."""
    found = [module for tree in trees for module in tree.modules() if isinstance(module, kind)]
    with torch._C._DisableFuncTorch():  # filters are constants, which `torch.func` would wrap
        for module in found:
            module.set_spacing(spacing)
    return [module.factor for module in found if isinstance(module, SpacedResample)]


def as_many(strides: Sequence[Sequence[int] | int], levels: int) -> tuple[Sequence[int] | int, ...]:
    """The strides of these levels: more are not used, which is a warning, as in MONAI's networks."""
    if levels < 1:
        raise ValueError(f"the length of `channels` should be no less than 2, got {levels + 1}.")
    if len(strides) < levels:
        raise ValueError(f"the length of `strides` should equal `len(channels) - 1`, got {tuple(strides)}.")
    if len(strides) > levels:
        warnings.warn(f"the last {len(strides) - levels} values of `strides` are not used.", stacklevel=3)
    return tuple(strides[:levels])


def rounded(spacing: Sequence[float] | float, spatial_dims: int) -> list[float]:
    """Voxel sizes along the axes: what an affine matrix gives for 1 mm is 0.9999999 or 1.0000002."""
    return [float(f"{r:.5g}") for r in voxel_sizes(spacing, spatial_dims)]


def check_apart(scale_size: int) -> None:
    """Raises an error where scales interact."""
    if scale_size > 1:
        raise ValueError(f"expected scales that do not interact, scale_size 1, got {scale_size}; take all of them.")


def checked_train_scales(train_scales: int | None, scales: int, scale_size: int, projection: nn.Module) -> int | None:
    """The number itself; an error where so many of the scales cannot be trained apart from the others."""
    if train_scales is None:
        return None
    check_counts(train_scales=train_scales)
    if train_scales > scales:
        raise ValueError(f"train_scales must be at most the {scales} scales there are, got {train_scales}.")
    check_apart(scale_size)
    if any(True for _ in projection.parameters()):
        kind = getattr(projection, "mode", type(projection).__name__)
        raise ValueError(
            f"train_scales: expected a projection without weights, got {kind}; take mean, max or logsumexp."
        )
    return train_scales


def drawn(scales: int, count: int) -> list[int]:
    """Numbers of so many of the scales, in their order, by torch's own random numbers."""
    return torch.randperm(scales)[:count].sort().values.tolist()


def with_scales(network: _Network, which: Sequence[int], scales: int) -> _Network:
    """A shallow copy whose layers have these of the scales alone."""
    if not which or len(set(which)) < len(which) or not set(which) <= set(range(scales)):
        raise ValueError(f"which must hold different numbers from 0 to {scales - 1}, got {list(which)}.")
    copy = shallow_copy(network)
    for module in copy.modules():
        keep_scales(module, which)
    return copy
