"""Scale-equivariant U-Net."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers import ScaleProjection, check_image, check_spatial_dims, is_count
from monai_scaleequiv.maths import ScaleFilters, voxel_sizes
from monai_scaleequiv.nets._levels import LevelBuilder, set_spacings, shallow_copy


class SEUNet(nn.Module):
    """Scale-equivariant U-Net: steerable filters at several scales, with the same weights, on the image's grid.

    The image is lifted to S scales, all levels act on them, and they are joined in the end, so that rescaled images
    have rescaled answers. Against the published network (:py:func:`monai_scaleequiv.published.build_seunet`),
    down-sampling is antialiased in proportion to each scale, up-sampling is linear, filters are fitted to the kernel's
    extent and complete in degree, and evaluation uses running statistics: any input size is allowed, and a prediction
    does not depend on its batch. Over octaves, put it into a :py:class:`ScalePyramid`.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels, out_channels: numbers of channels.
        channels: channels (per scale) of the levels, top first; at least two levels.
        strides: down-sampling of the levels but the last, one number or one per axis; ``len(channels) - 1`` of them.
        num_res_units: number of convolutions in each residual unit; 0 for plain convolutions.
        act, norm: type and arguments of activation and normalisation, None for none. A kink, as ReLU has, creates
            frequencies that the grid cannot hold.
        dropout: probability of a channel to be dropped, at all scales at once.
        bias: whether the convolutions have a bias.
        adn_ordering: order of activation (A), normalisation (N) and dropout (D).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults. With its
            ``spacing``, scales are physical sizes: filters, blurs and down-sampling factors follow, so that each level
            has the grid nearest to the one it has at spacing 1.
        scale_size: number of neighbouring scales that interact in a convolution.
        projection: how scales are joined, a mode of :py:class:`ScaleProjection` or a module of its kind.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Shape:
        input (B, in_channels, D, H, W), output (B, out_channels, D, H, W), any size from 1 voxel per axis.

    Example::

        >>> net = SEUNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
        >>> net(torch.rand(1, 1, 35, 51, 36)).shape
        torch.Size([1, 2, 35, 51, 36])
        >>> net(torch.rand(1, 1, 35, 51, 12), spacing=[1.0, 1.0, 3.0]).shape
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
        num_res_units: int = 0,
        act: tuple | str | None = "SILU",
        norm: tuple | str | None = "BATCH",
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
        filters: ScaleFilters | Mapping[str, Any] | None = None,
        scale_size: int = 1,
        projection: str | nn.Module = "mean",
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.num_res_units, self.scale_size = num_res_units, scale_size
        self._check_arguments()
        self.act, self.norm, self.adn_ordering = act, norm, adn_ordering
        self.dropout, self.bias = dropout, bias
        self.filters = ScaleFilters.of(filters)
        self.scales = list(self.filters.scales)
        joined = ScaleProjection(projection, channels=out_channels) if isinstance(projection, str) else projection
        self.projection: nn.Module = joined
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self._factors = [list(ensure_tuple_rep(s, spatial_dims)) for s in self.strides]  # at spacing 1
        self._build_levels()
        self._set_spacing(self.filters.spacing)

    def _check_arguments(self) -> None:
        check_spatial_dims(self.spatial_dims)
        levels = len(self.channels)
        if levels < 2:
            raise ValueError(f"the length of `channels` should be no less than 2, got {self.channels}.")
        if not all(is_count(n) for n in (self.in_channels, self.out_channels, *self.channels)):
            raise ValueError(
                "in_channels, out_channels and channels must be whole numbers of at least 1, "
                f"got in_channels={self.in_channels}, out_channels={self.out_channels}, channels={self.channels}."
            )
        if len(self.strides) < levels - 1:
            raise ValueError(f"the length of `strides` should equal `len(channels) - 1`, got {self.strides}.")
        if len(self.strides) > levels - 1:
            warnings.warn(f"the last {len(self.strides) - levels + 1} values of `strides` are not used.", stacklevel=3)
            self.strides = self.strides[: levels - 1]
        if not all(is_count(factor) for stride in self.strides for factor in ensure_tuple(stride)):
            raise ValueError(f"strides must be whole numbers of at least 1, got {self.strides}.")
        if self.num_res_units != 0 and not is_count(self.num_res_units):
            raise ValueError(f"num_res_units must be a whole number of at least 0, got {self.num_res_units}.")

    def _build_levels(self) -> None:
        unit_args = {name: getattr(self, name) for name in ("scale_size", "act", "norm", "dropout", "bias")}
        unit_args |= {"adn_ordering": self.adn_ordering, "filters": replace(self.filters, spacing=1.0)}
        build = LevelBuilder(self.spatial_dims, self.num_res_units, unit_args)
        channels = self.channels
        ins = [self.in_channels, *channels[:-2]]  # channels that enter each level from above
        for i, factor in enumerate(self._factors):
            self.downs.append(build.down(ins[i], channels[i], factor, is_top=i == 0))
        self.bottom = build.unit(channels[-2], channels[-1])
        below = [*channels[:-2], channels[-1]]  # channels that come back to each level from below
        outs = [channels[0], *channels[:-2]]
        for i in reversed(range(len(channels) - 1)):
            head_channels = self.out_channels if i == 0 else None
            self.ups.append(build.up(channels[i] + below[i], outs[i], self._factors[i], head_channels))

    def _set_spacing(self, spacing: Sequence[float] | float) -> None:
        self.filters = replace(self.filters, spacing=spacing)
        spacings = voxel_sizes(spacing, self.spatial_dims)
        taken = set_spacings(self.downs, self.bottom, self.ups, self._factors, spacings)
        self.total_stride = [math.prod(axis) for axis in zip(*taken, strict=True)]

    def at_spacing(self, spacing: Sequence[float] | float) -> "SEUNet":
        """The same network for images of another voxel size, as it is at this moment.

        Its modules are copies that hold this network's parameters, running statistics and hooks, the very same:
        training either trains both. Only filters and down-sampling factors are its own. Ask anew after the network was
        changed, or moved to another device or dtype.

        Args:
            spacing: edge of a voxel in the units of ``sigma``, one for all axes or one per axis.
        """
        rounded = _rounded(spacing, self.spatial_dims)
        if rounded == _rounded(self.filters.spacing, self.spatial_dims):
            return self
        network = shallow_copy(self)
        network._set_spacing(rounded)
        return network

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        """Segments images.

        Args:
            x: images of shape (B, C, D, H, W).
            spacing: voxel size per axis, as in :py:meth:`at_spacing`; None for that of ``filters``.
        """
        if spacing is not None:
            if torch.jit.is_scripting():
                raise ValueError("spacing is not known to a scripted network; script network.at_spacing(spacing).")
            else:
                return self.at_spacing(spacing)(x)
        check_image(x, self.spatial_dims, self.in_channels)
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


def _rounded(spacing: Sequence[float] | float, spatial_dims: int) -> list[float]:
    # What an affine matrix gives for 1 mm is 0.9999999 or 1.0000002.
    return [float(f"{r:.5g}") for r in voxel_sizes(spacing, spatial_dims)]
