"""Checks of volumes and label maps, label maps without all class maps at once, and the other side as channels."""

from monai_scaleequiv.transforms._argmax_invert import ArgmaxInvertd
from monai_scaleequiv.transforms._brats import BratsRegionsInvertd
from monai_scaleequiv.transforms._checks import CheckLabeld, CheckVolumed
from monai_scaleequiv.transforms._mirror import MirrorChannelsd, foreground
from monai_scaleequiv.transforms._spacing import OwnKeysSpacingd

__all__ = [
    "ArgmaxInvertd",
    "BratsRegionsInvertd",
    "CheckLabeld",
    "CheckVolumed",
    "MirrorChannelsd",
    "OwnKeysSpacingd",
    "foreground",
]
