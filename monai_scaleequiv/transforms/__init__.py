"""Checks of volumes and label maps, in files and in memory, and label maps without all class maps at once."""

from monai_scaleequiv.transforms._argmax_invert import ArgmaxInvertd
from monai_scaleequiv.transforms._brats import BratsRegionsInvertd
from monai_scaleequiv.transforms._checks import CheckLabeld, CheckVolumed
from monai_scaleequiv.transforms._spacing import OwnKeysSpacingd

__all__ = ["ArgmaxInvertd", "BratsRegionsInvertd", "CheckLabeld", "CheckVolumed", "OwnKeysSpacingd"]
