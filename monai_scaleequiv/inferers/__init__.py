"""Inferers that MONAI does not have."""

from monai_scaleequiv.inferers._millimetre import MillimetreSlidingWindowInferer

__all__ = ["MillimetreSlidingWindowInferer"]
