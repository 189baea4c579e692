"""What layers ask of their arguments and of their input, so that a mistake is named where it is made."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch


def check_spatial_dims(spatial_dims: int) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")


def is_count(value: Any) -> bool:
    """Whether something is a whole number of at least 1, of whatever integer type."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def check_channels(name: str, channels: int) -> None:
    if not is_count(channels):
        raise ValueError(f"{name} must be a whole number of at least 1, got {channels!r}.")


def _is_empty(x: torch.Tensor) -> bool:
    """Whether an axis has no length; not asked of symbolic sizes, where it would turn into a condition."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return False
    return not torch.compiler.is_compiling() and 0 in x.shape[1:]


def _check_dtype(x: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"expected input of a floating point type, got {x.dtype}; convert it with x.float().")


def check_image(x: torch.Tensor, spatial_dims: int, channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, channels, ...) with so many spatial axes; channels 0 stands for any."""
    if x.dim() != spatial_dims + 2 or (channels > 0 and x.shape[1] != channels) or _is_empty(x):
        wanted = str(channels) if channels > 0 else "channels"
        raise ValueError(
            f"expected input of shape (batch, {wanted}, *{spatial_dims} spatial axes) without an empty axis, "
            f"got {list(x.shape)}."
        )
    _check_dtype(x)


def check_features(x: torch.Tensor, spatial_dims: int, scales: list[int], channels: int) -> None:
    """Raises a ValueError unless ``x`` is (B, S, C, ...) with so many spatial axes.

    Args:
        x: the input.
        spatial_dims: 0 for any number.
        scales: numbers of scales that are right; none for any but 0.
        channels: 0 for any number.
    """
    right_axes = x.dim() == spatial_dims + 3 if spatial_dims > 0 else x.dim() >= 3
    right_scales = right_axes and (x.shape[1] in scales if len(scales) > 0 else x.shape[1] > 0)
    if not right_scales or (channels > 0 and x.shape[2] != channels) or _is_empty(x):
        wanted_scales = " or ".join([str(s) for s in scales]) if len(scales) > 0 else "scales"
        wanted_channels = str(channels) if channels > 0 else "channels"
        axes = str(spatial_dims) + " " if spatial_dims > 0 else ""
        raise ValueError(
            f"expected input of shape (batch, {wanted_scales}, {wanted_channels}, *{axes}spatial axes) "
            f"without an empty axis, got {list(x.shape)}."
        )
    _check_dtype(x)


def check_output_size(size: Sequence[int], output: Sequence[int], kernel_size: Sequence[int]) -> None:
    """Raises a ValueError if a convolution would leave nothing of the image."""
    if min(size) < 1 or min(output) < 1:
        raise ValueError(
            f"expected an image that a kernel of {list(kernel_size)} with this stride and padding makes at least 1 "
            f"voxel of along each axis, got size {list(size)}."
        )
