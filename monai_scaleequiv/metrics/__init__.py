"""Measuring scale-equivariance, of any layer or network."""

from monai_scaleequiv.metrics._error import (
    EquivarianceReading,
    assert_scale_equivariant,
    equivariance_error,
    relative_error,
    scale_shift,
)

__all__ = [
    "EquivarianceReading",
    "assert_scale_equivariant",
    "equivariance_error",
    "relative_error",
    "scale_shift",
]
