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
        axes, scales = module.spatial_dims, module.num_scales
        places = {"basis": list(which), "lines": [axis * scales + i for axis in range(axes) for i in which]}
        for name, rows in places.items():  # (S, F, K) and (axes * S, N + 1, taps), normalised over all scales
            if name in module._exact:  # a basis of one's own has no lines
                buffer = module.get_buffer(name)  # taken by slices, which no GPU has to wait for
                module._buffers = {**module._buffers, name: torch.cat([buffer[i : i + 1] for i in rows])}
                module._exact = {**module._exact, name: module._exact[name][rows]}
        module.num_scales = len(which)
        module.scales = None if module.scales is None else [module.scales[i] for i in which]
