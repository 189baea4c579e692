"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` resolve in bundle configs,
and the layers are entries of MONAI's layer factories.
"""

from monai_scaleequiv import published
from monai_scaleequiv.data import CheckLabeld, CheckVolumed, InputGridWriter, make_phantom_dataset, nifti_datalist
from monai_scaleequiv.handlers import (
    EngineProgressBar,
    ResumableCheckpointSaver,
    SpacingHausdorffDistanceMetric,
    claim_checkpoint_dir,
)
from monai_scaleequiv.layers import (
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
from monai_scaleequiv.maths import (
    gaussian_downsampling_matrix,
    hermite_gaussian_basis,
    hermite_gaussian_filters,
    linear_upsampling_matrix,
)
from monai_scaleequiv.nets import ScaleConvUnit, ScaleResidualUnit, SEUNet

__version__ = "0.1.0"

__all__ = [
    "CheckLabeld",
    "CheckVolumed",
    "EngineProgressBar",
    "InputGridWriter",
    "PerScale",
    "ResumableCheckpointSaver",
    "SEUNet",
    "ScaleConvUnit",
    "ScaleDownsample",
    "ScaleDropout",
    "ScaleGroupConv",
    "ScaleLiftingConv",
    "ScaleNorm",
    "ScalePointwiseConv",
    "ScalePool",
    "ScaleProjection",
    "ScaleResidualUnit",
    "ScaleUpsample",
    "SpacingHausdorffDistanceMetric",
    "claim_checkpoint_dir",
    "gaussian_downsampling_matrix",
    "hermite_gaussian_basis",
    "hermite_gaussian_filters",
    "linear_upsampling_matrix",
    "make_phantom_dataset",
    "nifti_datalist",
    "published",
]
