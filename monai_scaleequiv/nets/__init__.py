"""Scale-equivariant and large-kernel networks, and the blocks that they are made of."""

from monai_scaleequiv.nets._blocks import ScaleConvUnit, ScaleResidualUnit
from monai_scaleequiv.nets._canonical import ScaleCanonicalizer
from monai_scaleequiv.nets._pyramid import ScalePyramid
from monai_scaleequiv.nets._repuxnet import RepUXNet
from monai_scaleequiv.nets._seunet import SEUNet

__all__ = ["RepUXNet", "SEUNet", "ScaleCanonicalizer", "ScaleConvUnit", "ScalePyramid", "ScaleResidualUnit"]
