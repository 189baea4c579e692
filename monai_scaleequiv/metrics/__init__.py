"""Measuring scale-equivariance, of any layer or network."""

from monai_scaleequiv.metrics._dice import AbsentClassDiceMetric
from monai_scaleequiv.metrics._error import (
    EquivarianceReading,
    assert_scale_equivariant,
    equivariance_error,
    inner_part,
    relative_error,
    scale_shift,
)
from monai_scaleequiv.metrics._hausdorff import SpacingHausdorffDistanceMetric
from monai_scaleequiv.metrics._metric import EquivarianceError, check_ratios, consistency_dice

__all__ = [
    "AbsentClassDiceMetric", "EquivarianceError", "EquivarianceReading", "SpacingHausdorffDistanceMetric",
    "assert_scale_equivariant", "check_ratios", "consistency_dice", "equivariance_error", "inner_part",
    "relative_error", "scale_shift",
]  # fmt: skip
