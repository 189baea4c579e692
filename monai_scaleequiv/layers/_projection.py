"""From features with a scale axis back to an image."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ScaleProjection"]

_MODES = ("max", "mean")


class ScaleProjection(nn.Module):
    """Removes the scale axis, by the maximum or the mean over scales.

    Args:
        mode: ``"max"`` or ``"mean"``.

    Raises:
        ValueError: when ``mode`` is neither.

    Shape:
        input (B, S, C, D, H, W), output (B, C, D, H, W).

    Example::

        >>> ScaleProjection("max")(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 8, 6, 6, 6])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}.")
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode == "max":
            return torch.amax(x, dim=1)
        return x.mean(dim=1)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"
