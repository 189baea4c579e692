"""What layers ask of their arguments and of their input, so that a mistake is named where it is made."""

from numbers import Integral
from typing import Any

import torch
from monai.utils import ensure_tuple


def check_counts(**counts: Any) -> None:
    """Raises a ValueError unless each of these, or each entry, is a whole number of at least 1 of whatever type."""
    for name, value in counts.items():
        numbers = [n for entry in ensure_tuple(value) for n in ensure_tuple(entry)]
        if not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1 for n in numbers):
            wanted = "whole numbers" if len(numbers) > 1 else "a whole number"
            raise ValueError(f"{name} must be {wanted} of at least 1, got {value!r}.")


def check_arguments(spatial_dims: int, **counts: Any) -> None:
    """Raises a ValueError unless there are 2 or 3 axes, and the others pass :py:func:`check_counts`."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    check_counts(**counts)


def _check(x: torch.Tensor, axes: list[tuple[list[int], str]], spatial_dims: int) -> None:
    # axes: between batch and space, each with the sizes that are right (0 for any) and what it is called
    dims = 1 + len(axes) + spatial_dims
    is_right = x.dim() == dims if spatial_dims > 0 else x.dim() >= dims
    wanted = ""
    for i, (sizes, name) in enumerate(axes):
        is_right = is_right and (0 in sizes or x.shape[1 + i] in sizes)
        wanted += (name if 0 in sizes else " or ".join([str(n) for n in sizes])) + ", "
    if not (torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()):
        is_right = is_right and 0 not in x.shape[1:]  # asked of a symbolic size, it would turn into a condition
    if not is_right:
        wanted += f"*{spatial_dims} spatial axes" if spatial_dims > 0 else "*spatial axes"
        raise ValueError(f"expected input of shape (batch, {wanted}) without an empty axis, got {list(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"expected input of a floating point type, got {x.dtype}; convert it with x.float().")


def check_image(x: torch.Tensor, spatial_dims: int, channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, channels, ...) with so many spatial axes; channels 0 stands for any."""
    _check(x, [([channels], "channels")], spatial_dims)


def check_features(x: torch.Tensor, spatial_dims: int, scales: list[int], channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, S, C, ...), S one of ``scales``; 0 stands for any number."""
    _check(x, [(scales, "scales"), ([channels], "channels")], spatial_dims)
