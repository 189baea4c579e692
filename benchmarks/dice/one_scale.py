"""A SEUNet that is trained at one of its scales at a time."""

import torch
from torch import nn

from monai_scaleequiv import SEUNet


class OneScaleAtATime(nn.Module):
    """As ``SEUNet(..., train_scales=1)``, but that the training's loop draws the scale, by ``draw`` before each step.

    For a CUDA graph computes one scale for ever.
    """

    def __init__(self, whole: SEUNet) -> None:
        super().__init__()
        self.whole, self.spatial_dims = whole, whole.spatial_dims
        self.drawn = 0

    def draw(self) -> None:
        """The scale of the next step."""
        self.drawn = int(torch.randint(len(self.whole.scales), ()))

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        if not self.training:
            return self.whole(x, spacing)
        known = self.whole if spacing is None else self.whole.at_spacing(spacing)
        return known.at_scales([self.drawn])(x)
