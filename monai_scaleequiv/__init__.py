"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` or ``CheckVolumed`` resolve
in bundle configs, and the layers are entries of MONAI's layer factories. What is not here is reached from its room:
``data``, ``transforms``, ``inferers``, ``handlers``, ``maths``, ``metrics``, ``published``, ``nnunet``,
``auto3dseg``.
"""

from monai_scaleequiv import data, handlers, inferers, published, transforms  # noqa: F401 - MONAI looks them through
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
)
from monai_scaleequiv.nets import RepUXNet, ScaleCanonicalizer, ScaleConvUnit, ScalePyramid, ScaleResidualUnit, SEUNet

__version__ = "0.2.0"

__all__ = [
    "EquivarianceError",
    "EquivarianceReading",
    "LargeKernelConv",
    "PerScale",
    "RepUXNet",
    "SEUNet",
    "ScaleCanonicalizer",
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
    "equivariance_error",
    "published",
    "rescale",
]
