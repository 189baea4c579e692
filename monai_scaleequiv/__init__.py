"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` resolve in bundle configs,
and the layers are entries of MONAI's layer factories.
"""

from monai_scaleequiv import published
from monai_scaleequiv.data import (
    CheckLabeld,
    CheckVolumed,
    InputGridWriter,
    MillimetreWindowInferer,
    PrepareBatchSpacing,
    TakeScaleMapd,
    make_phantom_dataset,
    nifti_datalist,
)
from monai_scaleequiv.handlers import (
    EngineProgressBar,
    EquivarianceHandler,
    ResumableCheckpointSaver,
    SpacingHausdorffDistanceMetric,
    claim_checkpoint_dir,
)
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
from monai_scaleequiv.maths import (
    cosine_resampling_matrix,
    fft_depthwise_conv,
    frequency_prior,
    gaussian_downsampling_matrix,
    hermite_gaussian_basis,
    hermite_gaussian_filters,
    linear_upsampling_matrix,
    rescale,
)
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

__version__ = "0.1.0"

__all__ = [
    "CheckLabeld",
    "CheckVolumed",
    "EngineProgressBar",
    "EquivarianceError",
    "EquivarianceHandler",
    "EquivarianceReading",
    "InputGridWriter",
    "LargeKernelConv",
    "MillimetreWindowInferer",
    "PerScale",
    "PrepareBatchSpacing",
    "RepUXNet",
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
    "ScalePyramid",
    "ScaleResidualUnit",
    "ScaleUpsample",
    "SpacingHausdorffDistanceMetric",
    "TakeScaleMapd",
    "assert_scale_equivariant",
    "claim_checkpoint_dir",
    "consistency_dice",
    "cosine_resampling_matrix",
    "equivariance_error",
    "fft_depthwise_conv",
    "frequency_prior",
    "gaussian_downsampling_matrix",
    "hermite_gaussian_basis",
    "hermite_gaussian_filters",
    "linear_upsampling_matrix",
    "make_phantom_dataset",
    "nifti_datalist",
    "published",
    "relative_error",
    "rescale",
    "scale_shift",
]
