"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` resolve in bundle configs,
and the layers are entries of MONAI's layer factories.
"""

from monai_scaleequiv import data, handlers, inferers, published, transforms
from monai_scaleequiv.layers import (
    LargeKernelConv,
    PerScale,
    ScaleDownsample,
    ScaleDropout,
    ScaleGroupConv,
    ScaleLiftingConv,
    ScaleNorm,
    ScalePointwiseConv,
    ScalePool,
    ScaleProjection,
    ScaleUpsample,
)
from monai_scaleequiv.maths import ScaleFilters, rescale
from monai_scaleequiv.metrics import (
    EquivarianceError,
    EquivarianceReading,
    assert_scale_equivariant,
    consistency_dice,
    equivariance_error,
    relative_error,
    scale_shift,
)
from monai_scaleequiv.nets import RepUXNet, ScaleConvUnit, ScalePyramid, ScaleResidualUnit, SEUNet

__version__ = "0.2.0"

__all__ = [
    "EquivarianceError",
    "EquivarianceReading",
    "LargeKernelConv",
    "PerScale",
    "RepUXNet",
    "SEUNet",
    "ScaleConvUnit",
    "ScaleDownsample",
    "ScaleDropout",
    "ScaleFilters",
    "ScaleGroupConv",
    "ScaleLiftingConv",
    "ScaleNorm",
    "ScalePointwiseConv",
    "ScalePool",
    "ScaleProjection",
    "ScalePyramid",
    "ScaleResidualUnit",
    "ScaleUpsample",
    "assert_scale_equivariant",
    "consistency_dice",
    "data",
    "equivariance_error",
    "handlers",
    "inferers",
    "published",
    "relative_error",
    "rescale",
    "scale_shift",
    "transforms",
]
