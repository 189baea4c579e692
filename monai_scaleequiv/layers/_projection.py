"""From features with a scale axis back to an image."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from monai_scaleequiv.layers._input_checks import check_counts, check_features

_MODES = ("attentive", "logsumexp", "max", "mean")
_HIDDEN = 8


class ScaleProjection(nn.Module):
    """Removes the scale axis: features (B, S, C, ...) in, an image (B, C, ...) out.

    All modes treat the scales alike: a shift along their axis changes the output only by what enters and leaves at its
    ends. How much that is, see docs/equivariance.md.

    Args:
        mode: ``"mean"`` and ``"max"`` act on each channel alone. ``"logsumexp"`` takes channels for logits of classes
            (a single one for a class against the background) and gives the logarithm of the mean probability over
            scales, so that sure scales outweigh others. ``"attentive"`` is a mean with weights that a small network
            learns from each scale's channels; it starts as the plain mean.
        channels: number of channels, for ``"attentive"`` alone.

    Raises:
        ValueError: when an argument is out of range, or the input has no scales or another number of channels.

    Example::

        >>> ScaleProjection("max")(torch.rand(2, 4, 8, 6, 6, 6)).shape
        torch.Size([2, 8, 6, 6, 6])

    Source: mean and max Wimmer et al. 2023 (arXiv 2304.05864), section 3; logsumexp after Jansson and Lindeberg 2020
    (arXiv 2004.01536), there on whole images.
    """

    def __init__(self, mode: str = "mean", channels: int | None = None) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}.")
        if mode == "attentive" and channels is None:
            raise ValueError("channels must be given for mode 'attentive', got None.")
        if channels is not None:
            check_counts(channels=channels)
        self.mode, self.channels = mode, channels
        self._channels_in = 0  # any number
        self.attention: nn.Module = nn.Identity()
        if mode == "attentive" and channels is not None:
            self._channels_in = channels
            last = nn.Conv1d(_HIDDEN, 1, 1)
            self.attention = nn.Sequential(nn.Conv1d(channels, _HIDDEN, 1), nn.SiLU(), last)
            nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, 0, [0], self._channels_in)
        if self.mode == "max":
            return torch.amax(x, dim=1)
        if self.mode == "logsumexp":
            return _log_mean_probability(x)
        if self.mode == "attentive":
            scores = self.attention(x.flatten(0, 1).flatten(2))  # (B * S, 1, voxels)
            shape = [x.shape[0], x.shape[1], 1] + list(x.shape[3:])  # noqa: RUF005 - TorchScript has no unpacking
            weights = torch.softmax(scores.reshape(shape), dim=1)
            return (weights * x).sum(dim=1)
        return x.mean(dim=1)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


def _log_mean_probability(x: torch.Tensor) -> torch.Tensor:
    if x.shape[2] > 1:
        # One scale after the other: logsumexp over an axis with so large a stride takes longer, and so do gradients of
        # a log_softmax of all of them, which are added up from as many maps that are zero elsewhere.
        scales = x.unbind(1)
        total = F.log_softmax(scales[0], dim=1)
        for y in scales[1:]:
            total = torch.logaddexp(total, F.log_softmax(y, dim=1))
        return total - math.log(x.shape[1])
    return torch.logsumexp(F.logsigmoid(x), dim=1) - torch.logsumexp(F.logsigmoid(-x), dim=1)
