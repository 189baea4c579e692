"""Ordinary torch layers applied to every scale with shared weights: norm, pooling, pointwise convolution."""

import torch
from monai.networks.layers import get_norm_layer, get_pool_layer
from monai.networks.layers.factories import Conv
from torch import nn

from monai_scaleequiv.layers._input_checks import check_arguments, check_features


class PerScale(nn.Module):
    """Applies a channels-first layer to every scale, with the same weights: it commutes with a shift of the scales.

    Args:
        layer: any module that maps (N, C, D, H, W) to (N, C', D', H', W'), or its 2D counterpart.

    Raises:
        ValueError: when the input has no scale axis.

    Example::

        >>> PerScale(torch.nn.MaxPool3d(2))(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 4, 8, 3, 3, 3])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.spatial_dims, self.channels = 0, 0  # any number; subclasses know better

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, self.spatial_dims, [0], self.channels)
        batch, scales = x.shape[0], x.shape[1]
        y = self.layer(x.flatten(0, 1))  # (B * S, C, ...)
        return y.unflatten(0, (batch, scales))


class ScaleNorm(PerScale):
    """Any MONAI normalisation on features with a scale axis, with weights that are shared by all scales.

    Batch normalisation shares its statistics over batch, scales and space; the others take theirs for each scale.

    Args:
        spatial_dims: 2 or 3.
        channels: number of channels, C.
        norm: as in MONAI's networks, for example ``"batch"`` or ``("group", {"num_groups": 4})``.

    Raises:
        ValueError: when an argument is out of range, ``norm`` does not fit ``channels``, or the input another shape.

    Example::

        >>> ScaleNorm(3, channels=8, norm="instance")(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 4, 8, 6, 6, 6])
    """

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str = "batch") -> None:
        check_arguments(spatial_dims, channels=channels)
        try:
            layer = get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)
        except ValueError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"norm must fit {channels} channels, got {norm!r}; {why}") from None
        super().__init__(layer)
        self.spatial_dims, self.channels = spatial_dims, channels

    @torch.jit.unused
    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factor and summand of each channel, where these are constants: batch normalisation by running statistics."""
        norm = self.layer
        if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) or type(norm).__module__ != nn.BatchNorm3d.__module__:
            return None
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return None
        exact = torch.promote_types(norm.running_var.dtype, torch.float32)
        scale = torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean.to(exact) * scale
        return scale, shift if norm.bias is None else shift + norm.bias


class ScalePool(PerScale):
    """Any MONAI pooling over space on features with a scale axis.

    Args:
        spatial_dims: 2 or 3.
        pool: as in MONAI, name and arguments, for example ``("max", {"kernel_size": 2})``.

    Example::

        >>> ScalePool(2, ("avg", {"kernel_size": 2}))(torch.rand(2, 4, 8, 6, 6)).shape
        torch.Size([2, 4, 8, 3, 3])
    """

    def __init__(self, spatial_dims: int, pool: tuple | str) -> None:
        check_arguments(spatial_dims)
        super().__init__(get_pool_layer(pool, spatial_dims=spatial_dims))
        self.spatial_dims = spatial_dims


class ScalePointwiseConv(PerScale):
    """Convolution of kernel size 1, the same at every scale.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels.
        bias: whether to add a bias.

    Raises:
        ValueError: when an argument is out of range, or the input another shape.

    Example::

        >>> ScalePointwiseConv(3, 8, 2)(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 4, 2, 6, 6, 6])
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, bias: bool = True) -> None:
        check_arguments(spatial_dims, in_channels=in_channels, out_channels=out_channels)
        super().__init__(Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1, bias=bias))
        self.spatial_dims, self.channels = spatial_dims, in_channels
