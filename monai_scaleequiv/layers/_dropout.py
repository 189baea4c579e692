"""Dropout of whole channels on features with a scale axis."""

import torch
import torch.nn.functional as F
from torch import nn


class ScaleDropout(nn.Dropout):
    """Drops whole channels, each at all scales at once, so that the scales stay shifted copies of one another.

    Args:
        p: probability of a channel to be dropped.

    Raises:
        ValueError: when ``p`` is not in [0, 1].

    Example::

        >>> ScaleDropout(0.5)(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 4, 8, 6, 6, 6])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        shape = [x.shape[0], 1, x.shape[2]] + [1] * (x.dim() - 3)  # (B, 1, C, 1, ...)
        return x * F.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), self.p, True)
