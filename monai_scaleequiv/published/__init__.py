"""The network of Wimmer et al. 2023 exactly as their code computes it, for published checkpoints and comparisons.

Nothing here is meant for new models: the design's defects are part of what is reproduced.
"""

from monai_scaleequiv.published._basis import published_basis
from monai_scaleequiv.published._seunet import PublishedSEUNet, build_seunet

__all__ = ["PublishedSEUNet", "build_seunet", "published_basis"]
