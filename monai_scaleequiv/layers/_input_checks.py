"""What layers ask of their arguments and of their input, so that a mistake is named where it is made."""

from numbers import Integral
from typing import Any

import torch


def check_spatial_dims(spatial_dims: int) -> None:
    """Raises a ValueError unless there are 2 or 3."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")


def is_count(value: Any) -> bool:
    """Whether something is a whole number of at least 1, of whatever integer type."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_channels(name: str, channels: int) -> None:
    """Raises a ValueError unless this is a number of channels."""
    if not is_count(channels):
        raise ValueError(f"{name} must be a whole number of at least 1, got {channels!r}.")


def _check(x: torch.Tensor, is_right: bool, wanted: str) -> None:
    if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        is_empty = False  # asked of a symbolic size, it would turn into a condition
    else:
        is_empty = 0 in x.shape[1:]
    if not is_right or is_empty:
        raise ValueError(
            f"expected input of shape (batch, {wanted}spatial axes) without an empty axis, got {list(x.shape)}."
        )
    if not x.is_floating_point():
        raise ValueError(f"expected input of a floating point type, got {x.dtype}; convert it with x.float().")


def check_image(x: torch.Tensor, spatial_dims: int, channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, channels, ...) with so many spatial axes; channels 0 stands for any."""
    is_right = x.dim() == spatial_dims + 2 and (channels == 0 or x.shape[1] == channels)
    _check(x, is_right, (str(channels) if channels > 0 else "channels") + f", *{spatial_dims} ")


def check_features(x: torch.Tensor, spatial_dims: int, scales: list[int], channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, S, C, ...) with so many spatial axes.

    Args:
        x: the input.
        spatial_dims: 0 for any number.
        scales: numbers of scales that are right; none for any but 0.
        channels: 0 for any number.
    """
    is_right = x.dim() == spatial_dims + 3 if spatial_dims > 0 else x.dim() >= 3
    is_right = is_right and (x.shape[1] in scales if len(scales) > 0 else x.shape[1] > 0)
    is_right = is_right and (channels == 0 or x.shape[2] == channels)
    wanted = " or ".join([str(s) for s in scales]) if len(scales) > 0 else "scales"
    wanted += ", " + (str(channels) if channels > 0 else "channels")
    _check(x, is_right, wanted + ", *" + (str(spatial_dims) + " " if spatial_dims > 0 else ""))
