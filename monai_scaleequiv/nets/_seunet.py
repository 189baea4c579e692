"""Scale-equivariant U-Net."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers import ScaleProjection
from monai_scaleequiv.layers._input_checks import check_image, check_spatial_dims, is_count
from monai_scaleequiv.layers._steerable import DEFAULT_SCALES, DEFAULT_SIGMA
from monai_scaleequiv.nets._levels import LevelBuilder, next_spacing
from monai_scaleequiv.nets._pyramid import DEFAULT_PYRAMID, ScalePyramid
from monai_scaleequiv.nets._spacing import SpacingNetwork

__all__ = ["SEUNet"]

# What None stands for.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "own": {
        "kernel_size": 3,
        "up_kernel_size": 3,
        "act": "PRELU",
        "norm": "INSTANCE",
        "scales": DEFAULT_PYRAMID,
        "projection": "logsumexp",
    },
    "fixed": {
        "kernel_size": 5,
        "up_kernel_size": 5,
        "act": "SILU",
        "norm": "BATCH",
        "scales": DEFAULT_SCALES,
        "projection": "mean",
    },
}


class SEUNet(SpacingNetwork):
    """Scale-equivariant U-Net, a drop-in for :py:class:`monai.networks.nets.UNet`.

    Rescaled images have rescaled answers, because each feature is computed at several sizes with the same weights.
    Where these sizes live is ``grid``:

    - ``"own"``: each scale on its own grid. An ordinary ``UNet`` sees copies of the image at several sizes, and its
      answers are joined on the image's grid (:py:class:`ScalePyramid`). Exact under ideal rescaling, and best on real
      volumes of another size than those trained on.
    - ``"fixed"``: all scales on the image's grid, as published. The image is lifted to S scales and all levels act on
      them with steerable filters. Against the published network, down-sampling is antialiased in proportion to each
      scale, up-sampling is linear, filters are fitted to the kernel's extent and complete in degree, and evaluation
      uses running statistics. For the network exactly as published see
      :py:func:`monai_scaleequiv.published.build_seunet`.

    Either way any input size is allowed, and a prediction does not depend on its batch. Arguments up to
    ``adn_ordering`` mean what they mean in ``UNet``; on the fixed grid ``dropout`` drops whole channels. None stands
    for the grid's own default: on own grids ``UNet``'s; on the fixed grid ``kernel_size`` 5 (a Gaussian derivative does
    not fit into 3), ``act`` SiLU (a kink creates frequencies that the grid cannot hold) and ``norm`` batch.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        channels: channels (per scale) of the levels, top first; at least two levels.
        strides: down-sampling of the levels but the last, one number or one per axis; ``len(channels) - 1`` of them.
        kernel_size: edge of the kernels in voxels (at spacing 1), odd, one for all axes or one per axis; None for 3 on
            own grids and 5 on the fixed grid.
        up_kernel_size: the same for the first convolution of each level on the way up.
        num_res_units: number of convolutions in each residual unit; 0 for plain convolutions.
        act: activation type and arguments; None for ``"PRELU"`` on own grids and ``"SILU"`` on the fixed grid.
        norm: normalisation type and arguments; None for ``"INSTANCE"`` on own grids and ``"BATCH"`` on the fixed grid.
        dropout: dropout ratio, on the fixed grid of whole channels at all scales at once.
        bias: whether the convolutions have a bias.
        adn_ordering: order of activation (A), normalisation (N) and dropout (D).
        grid: ``"own"`` or ``"fixed"``.
        scales: relative sizes, S of them; None for 1, 1.26, 1.59, 2 on own grids and 1, 0.9, 0.81, 0.729 on the fixed
            grid. The own grid of a scale below 1 is finer than the image's, and costs accordingly.
        projection: how scales are joined, a mode of :py:class:`ScaleProjection`; None for ``"logsumexp"`` on own grids
            and ``"mean"`` on the fixed grid.
        spacing: edge of a voxel, one for all axes or one per axis. With it scales are physical sizes, and the same
            weights give the same network in millimetres; see :py:meth:`at_spacing`. On the fixed grid filters, blurs
            and down-sampling factors follow: each level has the grid nearest to the one it has at spacing 1.
        sigma: fixed grid: standard deviation of the filters' Gaussian at scale 1, in units of ``spacing``.
        max_order: fixed grid: highest total order of the Hermite polynomials; 2 gives 10 functions in 3D and 6 in 2D.
        scale_size: fixed grid: number of neighbouring scales that interact in a convolution.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Shape:
        input (B, in_channels, D, H, W), output (B, out_channels, D, H, W), any size from 1 voxel per axis.

    Example::

        >>> net = SEUNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
        >>> net(torch.rand(1, 1, 35, 51, 36)).shape
        torch.Size([1, 2, 35, 51, 36])
        >>> net.at_spacing((1.0, 1.0, 3.0))(torch.rand(1, 1, 35, 51, 12)).shape
        torch.Size([1, 2, 35, 51, 12])

    Source: Wimmer et al. 2023 (arXiv 2304.05864).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int] | int],
        kernel_size: Sequence[int] | int | None = None,
        up_kernel_size: Sequence[int] | int | None = None,
        num_res_units: int = 0,
        act: tuple | str | None = None,
        norm: tuple | str | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
        grid: str = "own",
        scales: Sequence[float] | None = None,
        projection: str | None = None,
        spacing: Sequence[float] | float = 1.0,
        sigma: float = DEFAULT_SIGMA,
        max_order: int = 2,
        scale_size: int = 1,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check_arguments(spatial_dims, in_channels, out_channels, channels, strides, num_res_units)
        if grid not in _DEFAULTS:
            raise ValueError(f"grid must be one of {tuple(_DEFAULTS)}, got {grid!r}.")
        strides = strides[: len(channels) - 1]
        super().__init__({**arguments, "strides": strides})
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        chosen = {k: _DEFAULTS[grid][k] if arguments[k] is None else arguments[k] for k in _DEFAULTS[grid]}
        self.scales = [float(s) for s in chosen["scales"]]
        units = {"dropout": dropout, "bias": bias, "adn_ordering": adn_ordering}
        # One of the two halves is empty: attributes that TorchScript can see through
        self.pyramid: nn.Module | None = None
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.bottom: nn.Module = nn.Identity()
        self.projection: nn.Module = nn.Identity()
        self.total_stride = [1] * spatial_dims
        self.voxel = list(self.spacing)
        if grid == "fixed":
            units |= {"sigma": sigma, "max_order": max_order, "scale_size": scale_size}
            self._build_fixed_grid(out_channels, channels, strides, num_res_units, {**units, **chosen})
        else:
            if (sigma, max_order, scale_size) != (DEFAULT_SIGMA, 2, 1):
                raise ValueError("sigma, max_order and scale_size belong to grid='fixed', got them with grid='own'.")
            self._build_own_grids(out_channels, channels, strides, num_res_units, {**units, **chosen})

    def _build_own_grids(
        self,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int] | int],
        num_res_units: int,
        options: dict[str, Any],
    ) -> None:
        scales, projection = options.pop("scales"), options.pop("projection")
        unet = UNet(
            self.spatial_dims, self.in_channels, out_channels, channels, strides, num_res_units=num_res_units, **options
        )
        factors = [ensure_tuple_rep(s, self.spatial_dims) for s in strides]
        divisor = [math.prod(axis) for axis in zip(*factors, strict=True)]
        joined = ScaleProjection(projection, channels=out_channels)
        self.pyramid = ScalePyramid(unet, scales, joined, self.spatial_dims, voxel_size=1.0, size_divisor=divisor)

    def _build_fixed_grid(
        self,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int] | int],
        num_res_units: int,
        options: dict[str, Any],
    ) -> None:
        self.projection = ScaleProjection(options.pop("projection"), channels=out_channels)
        kernel_size, up_kernel_size = options.pop("kernel_size"), options.pop("up_kernel_size")
        build = LevelBuilder(self.spatial_dims, kernel_size, up_kernel_size, num_res_units, options)
        factors = [list(ensure_tuple_rep(s, self.spatial_dims)) for s in strides]
        ins = [self.in_channels, *channels[:-2]]  # channels that enter each level from above
        spacings = [list(self.spacing)]  # below each down-sampling
        taken: list[list[int]] = []  # down-sampling at this spacing
        downs: list[nn.Module] = []
        for i, factor in enumerate(factors):
            downsample = build.downsample(factor, spacings[-1]) if max(factor) > 1 else None
            taken.append(factor if downsample is None else downsample.factor)
            spacings.append(next_spacing(spacings[-1], factor, taken[-1]))
            downs.append(build.down(ins[i], channels[i], downsample, spacings[-1], is_top=i == 0))
        self.downs.extend(downs)
        self.bottom = build.unit(channels[-2], channels[-1], spacings[-1])
        below = [*channels[:-2], channels[-1]]  # channels that come back to each level from below
        outs = [channels[0], *channels[:-2]]
        for i in reversed(range(len(factors))):
            upsample = build.upsample(factors[i], spacings[i])
            head_channels = out_channels if i == 0 else None
            self.ups.append(build.up(channels[i] + below[i], outs[i], upsample, spacings[i + 1], head_channels))
        self.total_stride = [math.prod(axis) for axis in zip(*taken, strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.in_channels)
        if self.pyramid is not None:
            return self.pyramid(x, self.voxel)
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
    check_spatial_dims(spatial_dims)
    if len(channels) < 2:
        raise ValueError(f"the length of `channels` should be no less than 2, got {tuple(channels)}.")
    if not all(is_count(n) for n in (in_channels, out_channels, *channels)):
        raise ValueError(
            "in_channels, out_channels and channels must be whole numbers of at least 1, "
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
    if not all(is_count(factor) for stride in strides for factor in ensure_tuple(stride)):
        raise ValueError(f"strides must be whole numbers of at least 1, got {tuple(strides)}.")
    if num_res_units != 0 and not is_count(num_res_units):
        raise ValueError(f"num_res_units must be a whole number of at least 0, got {num_res_units}.")
