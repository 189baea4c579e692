"""Dice in which an absent class is not a missed one."""

import math
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, compute_dice
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction


class AbsentClassDiceMetric(CumulativeIterationMetric):
    """Mean Dice that leaves out a class that is neither in the label nor in the prediction of a case.

    A class that is predicted where the label has none gets 0; MONAI's ``DiceMetric`` leaves it out. If nothing counts
    the mean is NaN. The summary of ``MetricsSaver(summary_ops="*")`` shows in ``notnans`` how many values counted.

    Args:
        include_background: whether channel 0 counts.

    Shape:
        one-hot (B, C, ...) predictions and labels, or lists of (C, ...).

    Raises:
        ValueError: when prediction and label differ in shape.

    Example::

        >>> empty, full = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> metric = AbsentClassDiceMetric()
        >>> metric([empty, full, full], [empty, empty, full]).flatten()
        tensor([nan, 0., 1.])
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

    def _compute_tensor(self, y_pred: torch.Tensor, y: Any = None, **kwargs: Any) -> torch.Tensor:
        if y_pred.shape != y.shape:
            shapes = f"{tuple(y_pred.shape)} and {tuple(y.shape)}"
            raise ValueError(f"expected prediction and label of one shape, got {shapes}; make both one-hot.")
        dice = compute_dice(y_pred, y, include_background=self.include_background, ignore_empty=False)
        absent = ~((y_pred > 0.5) | (y > 0.5)).flatten(2).any(dim=2)
        return dice.masked_fill(absent[:, -dice.shape[1] :], math.nan)
