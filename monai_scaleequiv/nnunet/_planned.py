"""Networks as nnU-Net builds them from a plans file."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from monai_scaleequiv.nets import RepUXNet, ScalePyramid, SEUNet

# What a plan says of the layers of nnU-Net's own networks, which these do not have.
_OTHERS = frozenset(
    "n_stages conv_op kernel_sizes n_conv_per_stage n_blocks_per_stage n_conv_per_stage_decoder conv_bias norm_op "
    "norm_op_kwargs dropout_op dropout_op_kwargs nonlin nonlin_kwargs".split()
)


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OTHERS}


class _DeepSupervision(torch.nn.Module):
    """The switch that nnU-Net turns, and logits of the sizes that it compares: those of the plan's strides."""

    deep_supervision: bool
    plan_strides: Sequence[Sequence[int]]

    @property
    def decoder(self) -> "_DeepSupervision":
        """Where nnU-Net looks for the switch, ``network.decoder.deep_supervision``."""
        return self

    def forward(self, x: torch.Tensor) -> Any:
        if not self.deep_supervision:
            y = super().forward(x)
            return y[0] if self.training else y
        strides, answers = [1] * (x.dim() - 2), []
        for y, step in zip(self.outputs(x), self.plan_strides, strict=False):
            strides = [s * n for s, n in zip(strides, step, strict=True)]
            size = [round(n / s) for n, s in zip(x.shape[2:], strides, strict=True)]
            answers.append(y if list(y.shape[2:]) == size else F.interpolate(y, size, mode=_LINEAR[x.dim()]))
        return answers


_LINEAR = {4: "bilinear", 5: "trilinear"}
