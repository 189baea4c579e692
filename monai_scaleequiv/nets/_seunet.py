"""Scale-equivariant U-Net."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers import ScaleDownsample, ScalePointwiseConv, ScaleProjection, ScaleUpsample
from monai_scaleequiv.layers._steerable import DEFAULT_SCALES
from monai_scaleequiv.nets._blocks import ScaleConvUnit, ScaleResidualUnit

__all__ = ["SEUNet"]


class _UpLevel(nn.Module):
    """Convolutions on the joined features, then up-sampling to the size before the level's down-sampling.

    In this order the convolutions run on the small grid; at the top the head comes first too, being pointwise.
    """

    def __init__(self, unit: nn.Module, upsample: ScaleUpsample) -> None:
        super().__init__()
        self.unit = unit
        self.upsample = upsample

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        return self.upsample(self.unit(x), size)


class SEUNet(nn.Module):
    """U-Net whose features carry a scale axis, a drop-in for :py:class:`monai.networks.nets.UNet`.

    The image is lifted to S scales, all levels act on every scale with the same steerable filters, and the scale axis
    is projected away at the end. Against the published network: down-sampling is antialiased in proportion to each
    scale, up-sampling is linear, filters are fitted to the kernel's extent and complete in degree, and evaluation uses
    running statistics, so that a prediction depends neither on its batch nor on far corners of the volume. Any input
    size is allowed. For the network exactly as published see :py:func:`monai_scaleequiv.published.build_seunet`.

    Arguments up to ``adn_ordering`` mean what they mean in ``UNet``, but that ``dropout`` drops whole channels. Three
    defaults differ: ``kernel_size`` 5 (a Gaussian derivative does not fit into 3), ``act`` SiLU (a kink creates
    frequencies that the grid cannot hold) and ``norm`` batch (running statistics).

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        channels: channels (per scale) of the levels, top first; at least two levels.
        strides: down-sampling of the levels but the last, one number or one per axis; ``len(channels) - 1`` of them.
        kernel_size: edge of the kernels in voxels, odd, one for all axes or one per axis.
        up_kernel_size: the same for the first convolution of each level on the way up.
        num_res_units: number of convolutions in each residual unit; 0 for plain convolutions.
        act: activation type and arguments.
        norm: normalisation type and arguments.
        dropout: probability of a channel to be dropped, at all scales at once.
        bias: whether the convolutions have a bias.
        adn_ordering: order of activation (A), normalisation (N) and dropout (D).
        scales: relative sizes at which each filter is evaluated, S of them.
        sigma: standard deviation of the filters' Gaussian at scale 1, in voxels.
        max_order: highest total order of the Hermite polynomials; 2 gives 10 functions in 3D and 6 in 2D.
        scale_size: number of neighbouring scales that interact in a convolution.
        projection: ``"mean"`` or ``"max"`` over scales at the end.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Shape:
        input (B, in_channels, D, H, W), output (B, out_channels, D, H, W), any size from 1 voxel per axis.

    Example::

        >>> net = SEUNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
        >>> net(torch.rand(1, 1, 35, 51, 36)).shape
        torch.Size([1, 2, 35, 51, 36])

    Source: Wimmer et al. 2023 (arXiv 2304.05864).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int] | int],
        kernel_size: Sequence[int] | int = 5,
        up_kernel_size: Sequence[int] | int = 5,
        num_res_units: int = 0,
        act: tuple | str = "SILU",
        norm: tuple | str = "BATCH",
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
        scales: Sequence[float] = DEFAULT_SCALES,
        sigma: float = 1.0,
        max_order: int = 2,
        scale_size: int = 1,
        projection: str = "mean",
    ) -> None:
        super().__init__()
        _check_arguments(spatial_dims, in_channels, out_channels, channels, strides, num_res_units)
        factors = [list(ensure_tuple_rep(s, spatial_dims)) for s in strides[: len(channels) - 1]]
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.scales = [float(s) for s in scales]
        self.total_stride = [int(torch.tensor(axis).prod()) for axis in zip(*factors, strict=True)]
        filters = {"scales": scales, "sigma": sigma, "max_order": max_order, "scale_size": scale_size}
        adn = {"act": act, "norm": norm, "dropout": dropout, "bias": bias, "adn_ordering": adn_ordering}

        def unit(inc: int, outc: int, kernel: Sequence[int] | int, subunits: int, lifting: bool = False) -> nn.Module:
            args = {"lifting": lifting, "kernel_size": kernel, **filters, **adn}
            if subunits > 0:
                return ScaleResidualUnit(spatial_dims, inc, outc, subunits=subunits, **args)
            return ScaleConvUnit(spatial_dims, inc, outc, **args)

        def down(inc: int, outc: int, factor: list[int], is_top: bool) -> nn.Module:
            strided = max(factor) > 1
            layers: list[nn.Module] = [nn.Unflatten(1, (1, inc))] if is_top and strided else []
            layers += [ScaleDownsample(spatial_dims, scales, factor)] if strided else []
            lifting = is_top and not strided
            return nn.Sequential(*layers, unit(inc, outc, kernel_size, num_res_units, lifting))

        def up(inc: int, outc: int, factor: list[int], is_top: bool) -> nn.Module:
            layers = [unit(inc, outc, up_kernel_size, 0)]
            layers += [unit(outc, outc, kernel_size, 1)] if num_res_units > 0 else []
            layers += [ScalePointwiseConv(spatial_dims, outc, out_channels, bias)] if is_top else []
            return _UpLevel(nn.Sequential(*layers), ScaleUpsample(spatial_dims, factor))

        ins = [in_channels, *channels[:-2]]  # channels that enter each level from above
        self.downs = nn.ModuleList(down(ins[i], channels[i], factor, is_top=i == 0) for i, factor in enumerate(factors))
        self.bottom = unit(channels[-2], channels[-1], kernel_size, num_res_units)
        below = [*channels[:-2], channels[-1]]  # channels that come back to each level from below
        outs = [channels[0], *channels[:-2]]
        self.ups = nn.ModuleList(
            up(channels[i] + below[i], outs[i], factors[i], is_top=i == 0) for i in reversed(range(len(factors)))
        )
        self.projection = ScaleProjection(projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"SEUNet expects input of shape (batch, {self.in_channels}, *{self.spatial_dims} spatial axes), "
                f"got {list(x.shape)}."
            )
        width = x.shape[-1]
        x = self._pad_lone_voxel(x)
        skips: list[torch.Tensor] = []
        sizes = [x.shape[2:]]
        for down in self.downs:
            x = down(x)  # (B, S, C, ...)
            skips.append(x)
            sizes.append(x.shape[3:])
        x = self.bottom(x)
        for i, up in enumerate(self.ups):
            level = len(skips) - 1 - i
            x = up(torch.cat([skips[level], x], dim=2), sizes[level])
        x = self.projection(x)
        return x if x.shape[-1] == width else x.narrow(-1, 0, width)

    def _pad_lone_voxel(self, x: torch.Tensor) -> torch.Tensor:
        # Statistics over space need two voxels at the bottom level.
        for axis, stride in enumerate(self.total_stride):
            if x.shape[2 + axis] > stride:
                return x
        pad = [0, self.total_stride[-1] + 1 - x.shape[-1]] + [0] * (2 * self.spatial_dims - 2)
        return F.pad(x, pad, mode="replicate")


def _check_arguments(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int] | int],
    num_res_units: int,
) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    if len(channels) < 2:
        raise ValueError(f"the length of `channels` should be no less than 2, got {tuple(channels)}.")
    if min(in_channels, out_channels, *channels) < 1:
        raise ValueError(
            "in_channels, out_channels and channels must be at least 1, "
            f"got in_channels={in_channels}, out_channels={out_channels}, channels={tuple(channels)}."
        )
    surplus = len(strides) - (len(channels) - 1)
    if surplus < 0:
        raise ValueError(
            f"the length of `strides` should equal `len(channels) - 1`, got {len(strides)} strides for "
            f"{len(channels)} channels."
        )
    if surplus > 0:
        warnings.warn(f"the last {surplus} values of `strides` are not used.", stacklevel=3)
    if any(factor < 1 for stride in strides for factor in ensure_tuple(stride)):
        raise ValueError(f"strides must be at least 1, got {tuple(strides)}.")
    if num_res_units < 0:
        raise ValueError(f"num_res_units must be at least 0, got {num_res_units}.")
