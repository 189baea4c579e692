"""Segmentation network with large depthwise kernels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.blocks import UnetOutBlock
from monai.networks.layers import Dropout
from torch import nn

from monai_scaleequiv.layers import LargeKernelConv, check_arguments, check_image, with_split_sums
from monai_scaleequiv.nets._checkpoint import set_checkpointing
from monai_scaleequiv.nets._metadata import with_metadata
from monai_scaleequiv.nets._repux_blocks import (
    CheckpointedBasicBlock,
    CheckpointedUpBlock,
    LargeKernelBlock,
    PriorKernelConv,
    RepUXStage,
    ScaledGradientConv,
)


class RepUXNet(nn.Module):
    r"""Encoder of large depthwise convolutions under a spatial prior, with UNETR's blocks as decoder.

    Against the published network, whose large kernels never train (each forward replaces the parameter by a new one,
    scaled by the prior once more), the prior is part of the computation. Drop path and layer scale have an effect, any
    input size and channels are allowed, and large convolutions run by FFT where that is faster. Published checkpoints:
    :py:func:`monai_scaleequiv.published.build_repuxnet`.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels.
        depths: number of large-kernel blocks in each stage; each stage halves the size.
        feature_size: channels of the stages, as many as ``depths`` has entries; the first also at full size.
        kernel_size: edge of the large kernels in voxels, odd, one for all axes or one per axis.
        hidden_size: channels of the lowest features on their way to the decoder.
        norm_name: type and arguments of the normalisation in the decoder, None for none.
        res_block: whether the decoder's blocks are residual.
        encoder_norm, encoder_act: type and arguments of what follows the large convolutions, None for none.
        drop_path_rate: probability to leave out a block's update of a sample, growing linearly from 0 in the first
            block to this in the last. Needs the shortcut that ``layer_scale_init_value`` brings.
        layer_scale_init_value: None for blocks without a shortcut, as published; a number for blocks
            :math:`x + \gamma \odot f(x)`, the learned :math:`\gamma` starting there.
        frequency_prior: alpha of the prior alpha / (distance + alpha) in voxels; None for none.
        prior_mode: ``"fixed"`` scales each kernel by the prior, ``"gradient"`` its gradient by the prior's square, the
            same under SGD but not under Adam; ``"learned"`` adds a learned map to the prior.
        deploy: whether to build the network that :py:meth:`switch_to_deploy` leaves: plain kernels without a prior.
        full_size_channels: channels of the decoder at the image's own size, where about half of a training step's time
            goes with the published ``feature_size[0]``, the default.
        use_checkpoint: whether training keeps only what enters each stage and each block of the decoder and computes
            the rest twice: less than half the activations, for a forward pass more per step.
        dropout: probability of a channel of the lowest features, and of those before the head, to be dropped.
        dsdepth: number of levels for deep supervision, as in MONAI's ``SegResNetDS``: above 1, training gives the list
            of :py:meth:`outputs`, as ``DeepSupervisionLoss`` takes it; at most ``len(depths)``.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Shape:
        input (B, in_channels, D, H, W), output (B, out_channels, D, H, W), any size: it is padded with zeros to a
        multiple of ``2 ** len(depths)`` inside.

    Example::

        >>> net = RepUXNet(3, 1, 2, depths=(1, 1), feature_size=(4, 8), kernel_size=7, hidden_size=8)
        >>> net(torch.rand(2, 1, 13, 16, 9)).shape
        torch.Size([2, 2, 13, 16, 9])

    Source: Lee et al. 2023 (RepUX-Net, arXiv 2303.05785); learned prior: Lee et al. 2025 (Rep3D, arXiv 2505.19603).
    """

    spatial_dims: int
    in_channels: int
    dsdepth: int

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, depths: Sequence[int] = (2, 2, 2, 2),
        feature_size: Sequence[int] = (48, 96, 192, 384), kernel_size: Sequence[int] | int = 21, hidden_size: int = 768,
        norm_name: tuple | str | None = "instance", res_block: bool = True, encoder_norm: tuple | str | None = "batch",
        encoder_act: tuple | str | None = "gelu", drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None, frequency_prior: float | None = 1.0, prior_mode: str = "fixed",
        deploy: bool = False, full_size_channels: int | None = None, use_checkpoint: bool = False,
        dropout: float = 0.0, dsdepth: int = 1,
    ) -> None:  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        vars(self).update(arguments)  # so that the network's definition can be read back
        if len(depths) < 1 or len(depths) != len(feature_size):
            got = f"got depths={tuple(depths)}, feature_size={tuple(feature_size)}"
            raise ValueError(f"depths and feature_size must have the same length of at least 1, {got}.")
        top = feature_size[0] if full_size_channels is None else full_size_channels
        names = ("in_channels", "out_channels", "depths", "feature_size", "hidden_size", "dsdepth")
        check_arguments(spatial_dims, full_size_channels=top, **{name: arguments[name] for name in names})
        if dsdepth > len(depths):
            raise ValueError(f"dsdepth must be at most len(depths) = {len(depths)}, got {dsdepth}.")
        if not 0 <= drop_path_rate < 1 or (drop_path_rate > 0 and layer_scale_init_value is None):
            got = f"got {drop_path_rate} with layer_scale_init_value={layer_scale_init_value}"
            raise ValueError(
                f"drop_path_rate must be below 1, and 0 without the shortcut of layer_scale_init_value, {got}."
            )
        if prior_mode not in ("fixed", "gradient", "learned"):
            raise ValueError(f"prior_mode must be one of 'fixed', 'gradient' and 'learned', got {prior_mode!r}.")
        if frequency_prior is None and prior_mode != "fixed":
            raise ValueError(f"prior_mode {prior_mode!r} needs a frequency_prior, got None; leave prior_mode out.")
        self.divisor = 2 ** len(depths)
        alpha = None if deploy else frequency_prior
        drop_paths = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        norm = with_split_sums(norm_name) or ""
        decoder: dict[str, Any] = {"kernel_size": 3, "norm_name": norm, "res_block": res_block}
        up = partial(CheckpointedUpBlock, spatial_dims, upsample_kernel_size=2, **decoder)
        full_size = partial(CheckpointedBasicBlock, spatial_dims, out_channels=top, stride=1, **decoder)

        def block(channels: int) -> LargeKernelBlock:
            if alpha is None:
                conv = LargeKernelConv(spatial_dims, channels, kernel_size, bias=True)
            elif prior_mode == "gradient":
                conv = ScaledGradientConv(spatial_dims, channels, kernel_size, alpha)
            else:
                conv = PriorKernelConv(spatial_dims, channels, kernel_size, alpha, prior_mode == "learned")
            return LargeKernelBlock(conv, encoder_norm, encoder_act, next(drop_paths), layer_scale_init_value)

        ins, skips = [in_channels, *feature_size[:-1]], [*feature_size[1:], hidden_size]
        self.stages = nn.ModuleList(
            RepUXStage(spatial_dims, ins[i], skips[i], [block(feature_size[i]) for _ in range(depth)], i == 0, decoder)
            for i, depth in enumerate(depths)
        )
        self.first = full_size(in_channels=in_channels)
        ups = zip(skips, [top, *feature_size[1:]], strict=True)
        self.ups = nn.ModuleList(up(in_channels=below, out_channels=above) for below, above in reversed(list(ups)))
        self.last = full_size(in_channels=top)
        self.drop = Dropout["dropout", spatial_dims](dropout)
        self.head = UnetOutBlock(spatial_dims, top, out_channels)
        self.coarse_heads = nn.ModuleList(UnetOutBlock(spatial_dims, n, out_channels) for n in feature_size[1:dsdepth])
        set_checkpointing(self, use_checkpoint)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.in_channels)
        if not torch.jit.is_scripting():
            if self.training and self.dsdepth > 1:
                return self.outputs(x)
            if isinstance(x, MetaTensor):
                return self._with_metadata(x)
        pad = self._surplus(list(x.shape[2:]))
        y = self.head(self.drop(self.last(self._decoded(F.pad(x, pad), 1)[0])))
        if not torch.jit.is_scripting() and self._is_whole(pad):
            return y
        # Not a view: an exported graph would hold on to whether the example's is contiguous.
        return F.pad(y, [-p for p in pad])

    @torch.jit.unused
    def outputs(self, x: torch.Tensor) -> Any:
        """Logits of all ``dsdepth`` heads in a list, in training or not: on the image's grid, then on coarser ones.

        Output i has the image's size by ``2 ** i``, rounded up.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        x = x.as_tensor() if isinstance(x, MetaTensor) else x
        pad = self._surplus(list(x.shape[2:]))
        *coarse, finest = self._decoded(F.pad(x, pad), self.dsdepth)
        answers = [self.head(self.drop(self.last(finest)))]
        answers += [head(y) for head, y in zip(self.coarse_heads, reversed(coarse), strict=True)]
        if self._is_whole(pad):
            return answers
        return [F.pad(y, [-(p // 2**i) for p in pad]) for i, y in enumerate(answers)]

    def _decoded(self, x: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """Features of the decoder's last ``depth`` levels, of which the last is the image's own."""
        skips = [self.first(x)]
        for stage in self.stages:
            x, skip = stage(x)
            skips.append(skip)
        features = [self.drop(skips.pop())]
        for up in self.ups:
            features.append(up(features[-1], skips.pop()))
            features = features[-depth:]  # without holding the memory of the others
        return features

    @torch.jit.unused
    def _with_metadata(self, x: MetaTensor) -> MetaTensor:
        return with_metadata(RepUXNet.forward, self, x)

    @torch.jit.unused
    def _is_whole(self, pad: list[int]) -> bool:
        is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return not is_graph and not any(pad)  # a graph must not depend on the example's size

    def _surplus(self, size: list[int]) -> list[int]:
        """What to add at the end of each axis, as ``F.pad`` takes it."""
        pad: list[int] = []
        is_lone = True  # voxel at the bottom, where statistics over space need two
        for n in size[::-1]:
            pad += [0, (n + self.divisor - 1) // self.divisor * self.divisor - n]
            is_lone = is_lone and n <= self.divisor
        if is_lone:
            pad[1] += self.divisor
        return pad

    @torch.jit.unused
    def switch_to_deploy(self) -> None:
        """Folds the prior into the kernels, in place: the same outputs from plain convolutions."""
        for block in self.modules():
            if isinstance(block, LargeKernelBlock) and isinstance(block.conv, PriorKernelConv):
                block.conv = block.conv.folded()
        self.deploy = True
