"""The published networks exactly as their code computes them, for published checkpoints and comparisons.

Nothing here is meant for new models: the design's defects are part of what is reproduced.
"""

from monai_scaleequiv.published._basis import published_basis
from monai_scaleequiv.published._repuxnet import build_repuxnet
from monai_scaleequiv.published._seunet import PublishedSEUNet, build_seunet

__all__ = ["PublishedSEUNet", "build_repuxnet", "build_seunet", "published_basis"]
