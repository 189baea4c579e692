"""Equivariance as a MONAI metric, and what it means for label maps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from monai.networks.utils import one_hot

from monai_scaleequiv.maths import rescale
from monai_scaleequiv.metrics._dice import AbsentClassDiceMetric
from monai_scaleequiv.metrics._error import case_errors


class EquivarianceError(RegressionMetric):
    r"""Relative error of a rescaled prediction y = T f(x) against the prediction y_pred = f(T x) on the rescaled image.

    Per case :math:`\|y - y_{pred}\|^2 / \|y_{pred}\|^2`, of shape (B, 1); both may be (B, C, ...) or lists of (C, ...).
    A case without energy is NaN, which MONAI's reduction leaves out (it gives 0 where all are; see ``get_not_nans``).

    Args:
        reduction: one of MONAI's ``MetricReduction``.
        get_not_nans: whether ``aggregate()`` returns the number of cases that count, too.

    Raises:
        ValueError: when the two have different shapes.

    Example::

        >>> metric = EquivarianceError()
        >>> metric(y_pred=torch.ones(2, 1, 4, 4), y=torch.tensor([1.0, 1.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4))
        tensor([[0.0000],
                [0.2500]], dtype=torch.float64)
        >>> metric.aggregate()
        tensor([0.1250])

    Source: definition as in Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return case_errors(found=y, expected=y_pred)[:, None]


def consistency_dice(
    y_pred: torch.Tensor, y: torch.Tensor, include_background: bool = False, overlapping: bool = False
) -> torch.Tensor:
    """Dice between the label map of a rescaled image and the rescaled prediction's label map, per case and class.

    Probabilities of ``y`` are rescaled to the size of ``y_pred``; then the likeliest class counts. A single channel is
    the logit of one class against the background. The result is (B, C), or (B, C - 1) without background, NaN for a
    class in neither label map.

    Args:
        y_pred: logits f(T x) for the rescaled image, (B, C, D', H', W') or (B, C, H', W').
        y: logits f(x) for the image, (B, C, D, H, W) or (B, C, H, W).
        include_background: whether class 0 counts as well, where there is more than one channel.
        overlapping: whether each channel is the logit of a region of its own, none of them the background.

    Raises:
        ValueError: when the two differ in more than their spatial sizes.

    Example::

        >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).expand(1, 1, 4, 4)
        >>> consistency_dice(rescale(logits, (8, 8)), logits)
        tensor([[1.]])
    """
    if y_pred.shape[:2] != y.shape[:2] or y_pred.dim() != y.dim():
        got = f"got {list(y_pred.shape)} and {list(y.shape)}"
        raise ValueError(f"y_pred and y must have as many cases, channels and axes as one another, {got}.")
    size, channels = y_pred.shape[2:], y.shape[1]
    if channels == 1 or overlapping:
        found, expected = rescale(torch.sigmoid(y.float()), size) > 0.5, torch.sigmoid(y_pred.float()) > 0.5
    else:
        rescaled = rescale(torch.softmax(y.float(), dim=1), size)
        # One-hot by MONAI, so that classes that are nowhere have their channel, too.
        found, expected = (one_hot(x.argmax(1, keepdim=True), channels) > 0 for x in (rescaled, y_pred))
    metric: Any = AbsentClassDiceMetric(include_background or channels == 1 or overlapping)
    return metric(found, expected)


def check_ratios(ratios: Sequence[float], argument: str = "ratios") -> None:
    """Raises ValueError, which names ``argument``, where one of ``ratios`` is no magnification to measure at."""
    are_numbers = all(isinstance(r, int | float) and not isinstance(r, bool) for r in ratios)
    if not ratios or not are_numbers or not all(0 < r < math.inf and r != 1 for r in ratios):
        got = f"got {tuple(ratios)}; give ratios such as 0.8,1.25"
        raise ValueError(f"{argument} must be numbers above 0 other than 1, {got}.")
