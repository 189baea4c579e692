"""Dice that tells an absent class from a missed one."""

from __future__ import annotations

import math

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

__all__ = ["AbsentClassDiceMetric"]


class AbsentClassDiceMetric(CumulativeIterationMetric):
    """Mean Dice in which a class that is neither in the label nor in the prediction does not count.

    Such a value is NaN and left out of the mean: of the classes of a case, then of the cases. A class that is predicted
    where the label has none gets 0; MONAI's ``MeanDice`` leaves it out. If nothing counts the mean is NaN, not 0.
    For MONAI's ``IgniteMetricHandler(metric_fn=...)``; the summary of MONAI's ``MetricsSaver(summary_ops="*")`` then
    shows in ``notnans`` how many values counted.

    Args:
        include_background: whether channel 0 counts.

    Shape:
        one-hot (B, C, ...) predictions and labels, or lists of (C, ...).

    Raises:
        ValueError: when prediction and label differ in shape.

    Example::

        >>> empty, full = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> metric = AbsentClassDiceMetric()
        >>> metric([empty, full, full], [empty, empty, full])
        tensor([[nan],
                [0.],
                [1.]])
        >>> metric.aggregate()
        tensor([0.5000])
    """

    def __init__(self, include_background: bool = False) -> None:
        super().__init__()
        self.include_background = include_background

    def aggregate(self) -> torch.Tensor:
        """The mean over cases of the mean over classes."""
        mean, count = do_metric_reduction(self.get_buffer().clone(), MetricReduction.MEAN)
        return torch.where(count > 0, mean, torch.full_like(mean, math.nan))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y_pred.shape != y.shape:
            raise ValueError(
                f"expected prediction and label of one shape, got {tuple(y_pred.shape)} and {tuple(y.shape)}; "
                "make both one-hot, on one grid."
            )
        first = 0 if self.include_background else 1
        found, true = (torch.as_tensor(x)[:, first:].flatten(2) > 0.5 for x in (y_pred, y))
        return 2.0 * (found & true).sum(-1) / (found.sum(-1) + true.sum(-1))
