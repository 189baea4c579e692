"""A SEUNet that is trained at one of its scales at a time."""

import dataclasses

import torch
from torch import nn

from monai_scaleequiv import SEUNet
from monai_scaleequiv.layers import SteerableConv


class OneScaleAtATime(nn.Module):
    """Takes one of the scales in a step of the training, drawn anew, at a quarter of the price; in the test all.

    Scales do not interact in this SEUNet, whose answer is the mean of what each of them gives, but for batch
    normalisation: a step takes the statistics of its one scale, the test the running ones of all. ``draw`` is for the
    training's loop to call before each step, for a CUDA graph computes one scale for ever.
    """

    def __init__(self, whole: SEUNet) -> None:
        super().__init__()
        self.whole, self.spatial_dims = whole, whole.spatial_dims
        self.single = nn.ModuleList([at_one_scale(whole, i) for i in range(len(whole.scales))])
        self.drawn = 0

    def draw(self) -> None:
        """The scale of the next step."""
        self.drawn = int(torch.randint(len(self.single), ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.single[self.drawn](x) if self.training else self.whole(x)


def at_one_scale(whole: SEUNet, i: int) -> SEUNet:
    """The network at one of its scales: the same parameters, running statistics and filters."""
    filters = dataclasses.replace(whole.filters, scales=whole.scales[i : i + 1])
    single = SEUNet(
        whole.spatial_dims, whole.in_channels, whole.out_channels, whole.channels, whole.strides, whole.num_res_units,
        whole.act, whole.norm, whole.dropout, whole.bias, whole.adn_ordering, filters, whole.scale_size,
    )  # fmt: skip
    for old, new in zip(whole.modules(), single.modules(), strict=True):
        new._parameters = old._parameters
        if isinstance(old, SteerableConv):  # whose filters are normalised over all scales
            new.derive_buffer("basis", old.basis[i : i + 1].clone)
            new.derive_buffer("lines", old.lines.unflatten(0, (whole.spatial_dims, -1))[:, i].clone)
            new.derive_buffer("gains", old.gains.clone)
        else:
            new._buffers = old._buffers
    return single
