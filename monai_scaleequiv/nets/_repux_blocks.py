"""Building blocks of RepUXNet: large depthwise kernels under a spatial prior."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn

from monai_scaleequiv.layers import DerivedBuffers, LargeKernelConv, with_split_sums
from monai_scaleequiv.maths import frequency_prior
from monai_scaleequiv.nets._checkpoint import Checkpointed


class PriorKernelConv(LargeKernelConv, DerivedBuffers):
    r"""Convolution with :math:`w = p \odot v`: the prior p scales the parameter v, and with it each tap's learning.

    The parameter is not called ``weight``, so that it cannot be taken for the kernel of a deployed network.
    """

    prior: torch.Tensor

    def __init__(
        self, spatial_dims: int, channels: int, kernel_size: Sequence[int] | int, alpha: float = 1.0,
        is_learned: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(spatial_dims, channels, kernel_size, bias=True)
        self.derive_buffer("prior", frequency_prior, self.kernel_size, alpha, spatial_dims)
        self.unscaled_weight = self.weight
        del self.weight
        self.receptive_bias = ReceptiveBias(spatial_dims, self.kernel_size) if is_learned else None

    def scaling(self) -> torch.Tensor:
        """Factor of each tap, of shape (*kernel_size)."""
        return self.prior if self.receptive_bias is None else self.prior + self.receptive_bias(self.prior)

    def effective_kernel(self) -> torch.Tensor:
        return self.unscaled_weight * self.scaling()

    @torch.jit.unused
    def folded(self) -> LargeKernelConv:
        """The plain convolution that computes the same."""
        with torch.device("meta"):  # no values are drawn for a kernel that is replaced
            conv = LargeKernelConv(self.spatial_dims, self.channels, self.kernel_size, bias=False)
        is_trained = any(p.requires_grad for p in self.parameters() if p is not self.bias)
        conv.weight = nn.Parameter(self.effective_kernel().detach().clone(), requires_grad=is_trained)
        conv.bias = self.bias
        return conv.train(self.training)


class ScaledGradientConv(PriorKernelConv):
    r"""Convolution whose weight is the kernel itself, and whose gradient is scaled by the square of the prior.

    Under SGD, with momentum and weight decay too, that is training v in :math:`w = p \odot v`; Adam undoes the scaling.
    """

    def __init__(self, spatial_dims: int, channels: int, kernel_size: Sequence[int] | int, alpha: float = 1.0) -> None:
        super().__init__(spatial_dims, channels, kernel_size, alpha)
        self.weight = self.unscaled_weight
        del self.unscaled_weight
        self.weight.data.mul_(self.prior)

    def effective_kernel(self) -> torch.Tensor:
        # Exactly the weight, for the difference is zero. Part of the graph rather than a hook on the parameter, which
        # copies of the module would lose.
        value = self.weight.detach()
        return value + self.prior.square() * (self.weight - value)


class ReceptiveBias(nn.Module):
    r"""What is learned on top of the prior: :math:`N(c_2 * \sigma(N(c_1 * p)))`, one map for all channels.

    N normalises over the positions of the map, for the published normalisation runs over its single channel and gives
    zero; the second convolution keeps the size, which the published one does not. It starts at zero: the prior alone.

    Source: Lee et al. 2025 (Rep3D, arXiv 2505.19603), low-rank receptive-bias modulation.
    """

    def __init__(self, spatial_dims: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size = list(kernel_size)
        self.conv1 = LargeKernelConv(spatial_dims, 1, 7)
        self.conv2 = LargeKernelConv(spatial_dims, 1, 7)
        self.gain = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, prior: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(self._normalised(self.conv1(prior[None, None]), 0))
        return self._normalised(self.conv2(hidden), 1)[0, 0]

    def _normalised(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.layer_norm(x, self.kernel_size) * self.gain[i] + self.shift[i]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels at each position, channels first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1).to(x.dtype)  # which autocast may have made single precision


class LargeKernelBlock(nn.Module):
    """Large depthwise convolution, norm, activation; with a layer scale, the update of a shortcut."""

    def __init__(
        self, conv: LargeKernelConv, norm: tuple | str | None, act: tuple | str | None, drop_path: float,
        layer_scale_init_value: float | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = conv
        self.norm = get_norm_layer(with_split_sums(norm) or "", conv.spatial_dims, conv.channels)
        self.act = get_act_layer(act or "")
        self.drop_path = drop_path
        self.layer_scale: nn.Parameter | None = None
        if layer_scale_init_value is not None:
            # One axis: converting a network to channels_last_3d takes parameters of four for images.
            self.layer_scale = nn.Parameter(torch.full([conv.channels], float(layer_scale_init_value)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}layer_scale"
        if name in state_dict and state_dict[name].dim() > 1:  # (C, 1, 1, 1), as saved before version 0.2
            state_dict[name] = state_dict[name].flatten()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.conv(x)))
        if self.layer_scale is None:
            return y
        # Drop path: each sample's update is left out at times, and made up for in the others.
        kept = F.dropout(y.new_ones([x.shape[0], 1]), self.drop_path, self.training)
        factor = self.layer_scale * kept  # (B, C)
        return torch.addcmul(x, y, factor.reshape(factor.shape + (1,) * (x.dim() - 2)))


class RepUXStage(Checkpointed):
    """Half the size, large-kernel blocks, and the features for the decoder beside those for the next stage."""

    def __init__(
        self, spatial_dims: int, in_channels: int, skip_channels: int, blocks: Sequence[LargeKernelBlock],
        is_stem: bool, decoder: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        channels = blocks[0].conv.channels
        conv = Conv[Conv.CONV, spatial_dims]
        if is_stem:
            self.down = nn.Sequential(conv(in_channels, channels, 7, stride=2, padding=3), ChannelNorm(channels))
        else:
            self.down = nn.Sequential(ChannelNorm(in_channels), conv(in_channels, channels, 2, stride=2))
        self.blocks = nn.Sequential(*blocks)
        self.norm = ChannelNorm(channels)
        self.skip = UnetrBasicBlock(spatial_dims, channels, skip_channels, stride=1, **decoder)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.blocks(self.down(x))
        return x, self.skip(self.norm(x))


class CheckpointedBasicBlock(Checkpointed, UnetrBasicBlock):
    """MONAI's block of the decoder, its activations kept or computed twice."""


class CheckpointedUpBlock(Checkpointed, UnetrUpBlock):
    """MONAI's up-sampling block of the decoder, its activations kept or computed twice."""
