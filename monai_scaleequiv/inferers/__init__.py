"""Inferers that MONAI does not have."""

from monai_scaleequiv.inferers._millimetre import MillimetreSlidingWindowInferer
from monai_scaleequiv.inferers._rescaled import RescaledInferer

__all__ = ["MillimetreSlidingWindowInferer", "RescaledInferer"]
