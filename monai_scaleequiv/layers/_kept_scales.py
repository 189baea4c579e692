"""Some of the scales of a network's layers."""

from collections.abc import Sequence

import torch
from torch import nn

from monai_scaleequiv.layers._conv import SteerableConv
from monai_scaleequiv.layers._resampling import ScaleDownsample


def keep_scales(module: nn.Module, which: Sequence[int]) -> None:
    """Leaves a layer the scales of these numbers alone, for layers whose scales do not interact.

    The constants that it keeps are taken of those that it has: what shares these with it goes on with all of them.
    """
    if isinstance(module, ScaleDownsample):
        module.widths = [[w[i] for i in which] if len(w) == len(module.scales) else w for w in module.widths]
        module.scales = [module.scales[i] for i in which]
    elif isinstance(module, SteerableConv):
        buffers = {"basis": _taken(module.basis, which)}  # (S, F, K), normalised over all scales
        if module.lines is not None:
            of_axes = module.lines.chunk(module.spatial_dims)  # each (S, N + 1, taps)
            buffers["lines"] = torch.cat([_taken(lines, which) for lines in of_axes])
        module._buffers = {**module._buffers, **buffers}
        module._exact = {}  # which has all scales
        module.num_scales = len(which)
        module.scales = None if module.scales is None else [module.scales[i] for i in which]


def _taken(x: torch.Tensor, which: Sequence[int]) -> torch.Tensor:
    # By slices, which no GPU has to wait for
    return torch.cat([x[i : i + 1] for i in which])
