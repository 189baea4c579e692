"""Convolution with norm, dropout and activation, and the residual unit, on features with a scale axis."""

from collections.abc import Mapping
from typing import Any

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
    SteerableConv,
    check_arguments,
)
from monai_scaleequiv.maths import ScaleFilters
from monai_scaleequiv.nets._watched import is_watched


class ScaleConvUnit(nn.Sequential):
    """Scale-equivariant convolution, then normalisation, dropout and activation, as MONAI's ``Convolution`` block.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels.
        lifting: whether the input is an image (B, C, ...) and not yet features (B, S, C, ...).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults.
        scale_size: number of neighbouring scales that interact (not in a lifting convolution).
        act, norm: type and arguments of activation and normalisation, None for none.
        dropout: probability of a channel to be dropped.
        bias: whether the convolution has a bias.
        adn_ordering: order of activation (A), dropout (D) and normalisation (N).

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> ScaleConvUnit(3, 8, 16)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 16, 9, 9, 9])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, lifting: bool = False,
        filters: ScaleFilters | Mapping[str, Any] | None = None, scale_size: int = 1,
        act: tuple | str | None = "SILU", norm: tuple | str | None = "BATCH", dropout: float = 0.0, bias: bool = True,
        adn_ordering: str = "NDA",
    ) -> None:  # fmt: skip
        super().__init__()
        if sorted(set(adn_ordering)) != sorted(adn_ordering) or not set(adn_ordering) <= set("NDA"):
            raise ValueError(f"adn_ordering must hold each of the letters N, D, A at most once, got {adn_ordering!r}.")
        if lifting:
            conv: nn.Module = ScaleLiftingConv(spatial_dims, in_channels, out_channels, filters, bias=bias)
        else:
            conv = ScaleGroupConv(spatial_dims, in_channels, out_channels, filters, scale_size, bias=bias)
        self.add_module("conv", conv)
        for letter in adn_ordering:
            if letter == "N" and norm is not None:
                self.add_module("norm", ScaleNorm(spatial_dims, out_channels, norm))
            elif letter == "D" and dropout:
                self.add_module("dropout", ScaleDropout(dropout))
            elif letter == "A" and act is not None:
                self.add_module("act", PerScale(get_act_layer(act)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            folded = self._folded(x)
            if folded is not None:
                return folded
        for module in self:
            x = module(x)
        return x

    @torch.jit.unused
    def _folded(self, x: torch.Tensor) -> torch.Tensor | None:
        """The unit with the norm's running statistics folded into the convolution, where nothing would notice."""
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()
        if self.training or torch.is_grad_enabled() or traced or len(self) < 2:
            return None
        conv, norm, *others = self
        if not isinstance(conv, SteerableConv) or not isinstance(norm, ScaleNorm) or x.dtype == torch.float16:
            return None
        as_written = (ScaleLiftingConv.forward, ScaleGroupConv.forward), (PerScale.forward,)
        if type(conv).forward not in as_written[0] or type(norm).forward not in as_written[1]:
            return None
        if is_watched(conv, norm, norm.layer):
            return None
        constants = norm.scale_and_shift()
        if constants is None:
            return None
        x = conv.scaled_and_shifted(x, *constants)
        for module in others:
            x = module(x)
        return x


class ScaleResidualUnit(nn.Module):
    """Several :py:class:`ScaleConvUnit` in a row beside a shortcut.

    The shortcut is the identity, or a pointwise convolution where channels change or an image is lifted.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels.
        lifting: whether the input is an image (B, C, ...) and not yet features (B, S, C, ...).
        subunits: number of convolutions.
        bias: whether the convolutions have a bias.
        unit_args: further arguments of :py:class:`ScaleConvUnit`.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> ScaleResidualUnit(3, 1, 8, lifting=True, norm="INSTANCE")(torch.rand(2, 1, 9, 9, 9)).shape
        torch.Size([2, 4, 8, 9, 9, 9])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, lifting: bool = False, subunits: int = 2,
        bias: bool = True, **unit_args: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        check_arguments(spatial_dims, subunits=subunits)
        self.lifting = lifting
        units = [ScaleConvUnit(spatial_dims, in_channels, out_channels, lifting, bias=bias, **unit_args)]
        for _ in range(subunits - 1):
            units.append(ScaleConvUnit(spatial_dims, out_channels, out_channels, bias=bias, **unit_args))
        self.conv = nn.Sequential(*units)
        self.residual: nn.Module = nn.Identity()
        if lifting or in_channels != out_channels:
            self.residual = ScalePointwiseConv(spatial_dims, in_channels, out_channels, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.residual(x.unsqueeze(1) if self.lifting else x)  # (B, 1 or S, C', ...)
        return self.conv(x) + shortcut
