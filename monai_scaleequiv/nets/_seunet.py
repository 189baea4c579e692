"""Scale-equivariant U-Net."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch import nn

from monai_scaleequiv.layers import (
    ScaleDownsample,
    ScalePointwiseConv,
    ScaleProjection,
    ScaleUpsample,
    SpacedResample,
    SteerableConv,
    check_arguments,
    check_image,
)
from monai_scaleequiv.maths import ScaleFilters, voxel_sizes
from monai_scaleequiv.nets._checkpoint import set_checkpointing
from monai_scaleequiv.nets._levels import (
    CheckpointedConvUnit,
    CheckpointedResidualUnit,
    UpLevel,
    as_many,
    check_apart,
    checked_train_scales,
    drawn,
    rounded,
    set_spacing,
    shallow_copy,
    with_scales,
)
from monai_scaleequiv.nets._metadata import with_metadata
from monai_scaleequiv.nets._watched import is_watched


class SEUNet(nn.Module):
    """Scale-equivariant U-Net: steerable filters at several scales, with the same weights, on the image's grid.

    The image is lifted to S scales, all levels act on them, and they are joined in the end, so that rescaled images
    have rescaled answers. Against the published network (:py:func:`monai_scaleequiv.published.build_seunet`),
    down-sampling is antialiased, up-sampling linear, filters are fitted and complete in degree, and evaluation uses
    running statistics: any input size is allowed, and a prediction does not depend on its batch. Over octaves, put it
    into a :py:class:`ScalePyramid`.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels.
        channels: channels (per scale) of the levels, top first; at least two levels.
        strides: down-sampling of the levels but the last, one number or one per axis; ``len(channels) - 1`` of them.
        num_res_units: number of convolutions in each residual unit; 0 for plain convolutions.
        act, norm: type and arguments of activation and normalisation, None for none. A kink, as ReLU has, creates
            frequencies that the grid cannot hold.
        dropout: probability of a channel to be dropped, at all scales at once.
        bias: whether the convolutions have a bias.
        adn_ordering: order of activation (A), normalisation (N) and dropout (D).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults. Blurs and
            down-sampling factors follow its ``spacing``, to the grids nearest to those at spacing 1.
        scale_size: number of neighbouring scales that interact in a convolution.
        projection: how scales are joined, a mode of :py:class:`ScaleProjection` or a module of its kind.
        use_checkpoint: whether training keeps only what enters each convolution or residual unit and computes the rest
            twice: less than half the activations, for a forward pass more per step.
        train_scales: number of scales that a step of the training computes, drawn anew each time, at about that share
            of the cost; None for all, which evaluation always takes, as TorchScript does. For ``scale_size`` 1 and
            projections without weights. Batch normalisation takes the statistics of what was drawn.
        dsdepth: number of levels for deep supervision, as in MONAI's ``SegResNetDS``: above 1, training gives the list
            of :py:meth:`outputs`, as ``DeepSupervisionLoss`` takes it; at most ``len(channels) - 1``.

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
        self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int],
        strides: Sequence[Sequence[int] | int], *, num_res_units: int = 0, act: tuple | str | None = "SILU",
        norm: tuple | str | None = "BATCH", dropout: float = 0.0, bias: bool = True, adn_ordering: str = "NDA",
        filters: ScaleFilters | Mapping[str, Any] | None = None, scale_size: int = 1,
        projection: str | nn.Module = "mean", use_checkpoint: bool = False, dsdepth: int = 1,
        train_scales: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels, "strides": strides}
        check_arguments(spatial_dims, **counts, num_res_units=num_res_units or 1, dsdepth=dsdepth)
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.strides = tuple(channels), as_many(strides, len(channels) - 1)
        if dsdepth > len(self.strides):
            raise ValueError(f"dsdepth must be at most len(channels) - 1 = {len(self.strides)}, got {dsdepth}.")
        self.num_res_units, self.scale_size, self.dsdepth = num_res_units, scale_size, dsdepth
        self.act, self.norm, self.dropout, self.bias, self.adn_ordering = act, norm, dropout, bias, adn_ordering
        self.filters = ScaleFilters.of(filters)
        self.scales = list(self.filters.scales)
        joined = ScaleProjection(projection, channels=out_channels) if isinstance(projection, str) else projection
        self.projection: nn.Module = joined
        self.train_scales = checked_train_scales(train_scales, len(self.scales), scale_size, joined)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self._factors = [list(ensure_tuple_rep(s, spatial_dims)) for s in self.strides]  # at spacing 1
        self._build_levels()
        self.use_checkpoint = use_checkpoint
        set_checkpointing(self, use_checkpoint)
        self._set_spacing(self.filters.spacing)

    def _build_levels(self) -> None:
        dims, channels = self.spatial_dims, self.channels
        unit_args = {name: getattr(self, name) for name in ("scale_size", "act", "norm", "dropout", "bias")}
        unit_args |= {"adn_ordering": self.adn_ordering, "filters": replace(self.filters, spacing=1.0)}
        conv: Callable[..., nn.Module] = partial(CheckpointedConvUnit, dims, **unit_args)
        residual: Callable[..., nn.Module] = partial(CheckpointedResidualUnit, dims, **unit_args)
        unit = partial(residual, subunits=self.num_res_units) if self.num_res_units else conv
        ins = [self.in_channels, *channels[:-2]]  # channels that enter each level from above
        for i, factor in enumerate(self._factors):
            down: list[nn.Module] = [unit(ins[i], channels[i], lifting=i == 0 and max(factor) == 1)]
            if max(factor) > 1:
                image = [nn.Unflatten(1, (1, ins[0]))] if i == 0 else []
                down = [*image, ScaleDownsample(dims, self.scales, factor), *down]
            self.downs.append(nn.Sequential(*down))
        self.bottom = unit(channels[-2], channels[-1])
        below = [*channels[:-2], channels[-1]]  # channels that come back to each level from below
        outs = [channels[0], *channels[:-2]]
        for i in reversed(range(len(self._factors))):
            up: list[nn.Module] = [conv(channels[i] + below[i], outs[i])]
            if self.num_res_units:
                up.append(residual(outs[i], outs[i], subunits=1))
            if i == 0:
                up.append(ScalePointwiseConv(dims, outs[i], self.out_channels, self.bias))
            self.ups.append(UpLevel(nn.Sequential(*up), ScaleUpsample(dims, self._factors[i])))
        for i in range(1, self.dsdepth):  # after all else, whose first weights they leave as they are without them
            self.ups[-1 - i].head = ScalePointwiseConv(dims, outs[i], self.out_channels, self.bias)

    def _set_spacing(self, spacing: Sequence[float] | float) -> None:
        # A level's spacing is that of its grid, relative to the grid that it has at spacing 1.
        self.filters = replace(self.filters, spacing=spacing)
        grid = voxel_sizes(spacing, self.spatial_dims)
        self.total_stride = [1] * self.spatial_dims
        for *level, factor in zip(self.downs, reversed(self.ups), self._factors, strict=True):
            taken = (set_spacing(level, SpacedResample, grid) or [factor])[-1]
            grid = [r * g / f for r, f, g in zip(grid, factor, taken, strict=True)]
            set_spacing(level, SteerableConv, grid)
            self.total_stride = [n * g for n, g in zip(self.total_stride, taken, strict=True)]
        set_spacing([self.bottom], SteerableConv, grid)

    def at_spacing(self, spacing: Sequence[float] | float) -> "SEUNet":
        """The same network for images of another voxel size, as it is at this moment.

        It holds the very same parameters, running statistics and hooks: training either trains both. Only filters and
        down-sampling factors are its own. Ask anew after the network was changed or moved. ``spacing`` is the edge of a
        voxel in the units of ``sigma``, one for all axes or one per axis.
        """
        sizes = rounded(spacing, self.spatial_dims)
        if sizes == rounded(self.filters.spacing, self.spatial_dims):
            return self
        if len(self.scales) < len(self.filters.scales):
            raise ValueError(f"spacing: expected all scales, got {self.scales}; take at_spacing(...).at_scales(...).")
        network = shallow_copy(self)
        network._set_spacing(sizes)
        return network

    def at_scales(self, which: Sequence[int]) -> "SEUNet":
        """The same network at some scales alone, by their indices, as it is at this moment; for ``scale_size`` 1.

        It shares what that of :py:meth:`at_spacing` does; a spacing is taken first. Move or convert the whole, not it.
        """
        check_apart(self.scale_size)
        network = with_scales(self, which, len(self.scales))
        network.scales, network.train_scales = [self.scales[i] for i in which], None
        return network

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        """Segments images (B, C, D, H, W), of voxel size ``spacing`` as in :py:meth:`at_spacing`."""
        if spacing is not None:
            if torch.jit.is_scripting():
                raise ValueError("spacing is not known to a scripted network; script network.at_spacing(spacing).")
            else:
                return SEUNet.forward(self.at_spacing(spacing), x)  # hooks have run
        check_image(x, self.spatial_dims, self.in_channels)
        if not torch.jit.is_scripting():
            if self.training and self.dsdepth > 1:
                return self.outputs(x)
            if isinstance(x, MetaTensor):
                return self._with_metadata(x)
        return self._answers(x, 1)[0]

    @torch.jit.unused
    def outputs(self, x: torch.Tensor) -> Any:
        """Logits of all ``dsdepth`` heads in a list, in training or not: on the image's grid, then on coarser ones.

        Output i > 0 has the grid of level i, whose size is the image's by ``strides[0] * ... * strides[i]``, rounded
        up; of an image that leaves the bottom a single voxel, one more at the end of the last axis.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self._answers(x.as_tensor() if isinstance(x, MetaTensor) else x, self.dsdepth)

    def _answers(self, x: torch.Tensor, depth: int) -> list[torch.Tensor]:
        if not torch.jit.is_scripting() and self.training and self.train_scales is not None:
            return self.at_scales(drawn(len(self.scales), self.train_scales))._answers(x, depth)
        width = x.shape[-1]
        x = self._pad_lone_voxel(x)
        skips: list[torch.Tensor] = []
        sizes = [x.shape[2:]]
        for down in self.downs:
            x = down(x)  # (B, S, C, ...)
            skips.append(x)
            sizes.append(x.shape[3:])
        x = self.bottom(x)
        takes_mean = False if torch.jit.is_scripting() else self._may_take_mean()
        coarse: list[torch.Tensor] = []
        for i, up in enumerate(self.ups):
            level = len(skips) - 1 - i
            answers = coarse if 0 < level < depth else None
            x = up(torch.cat([skips[level], x], dim=2), sizes[level], takes_mean and level == 0, answers)
        x = self.projection(x)
        x = x if x.shape[-1] == width else x.narrow(-1, 0, width)
        return [x] + [self.projection(y) for y in coarse[::-1]]

    @torch.jit.unused
    def _may_take_mean(self) -> bool:
        # Before the last up-sampling; whoever watches is to see all scales on the image's grid.
        projection = self.projection
        is_mean = type(projection) is ScaleProjection and projection.mode == "mean"
        return is_mean and not is_watched(projection, self.ups[-1], *self.ups[-1].children())

    @torch.jit.unused
    def _with_metadata(self, x: MetaTensor) -> MetaTensor:
        return with_metadata(SEUNet.forward, self, x)

    def _pad_lone_voxel(self, x: torch.Tensor) -> torch.Tensor:
        # Statistics over space need two voxels at the bottom level.
        for axis, stride in enumerate(self.total_stride):
            if x.shape[2 + axis] > stride:
                return x
        pad = [0, self.total_stride[-1] + 1 - x.shape[-1]] + [0] * (2 * self.spatial_dims - 2)
        return F.pad(x, pad, mode="replicate")
