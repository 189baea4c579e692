"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` resolve in bundle configs,
and the layers are entries of MONAI's layer factories.
"""

from monai_scaleequiv import handlers, published
from monai_scaleequiv.data import (
    CheckedNibabelReader,
    DatasetReport,
    InputGridWriter,
    check_dataset,
    check_output_dir,
    held_out,
    load_datalist,
    make_phantom_dataset,
    nifti_datalist,
    read_weights,
    split_datalist,
)
from monai_scaleequiv.inferers import MillimetreSlidingWindowInferer
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
    ScaleFilters,
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
from monai_scaleequiv.transforms import ArgmaxInvertd, CheckLabeld, CheckVolumed

__all__ = [
    "ArgmaxInvertd",
    "CheckLabeld",
    "CheckVolumed",
    "CheckedNibabelReader",
    "DatasetReport",
    "EquivarianceError",
    "EquivarianceReading",
    "InputGridWriter",
    "LargeKernelConv",
    "MillimetreSlidingWindowInferer",
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
    "check_dataset",
    "check_output_dir",
    "consistency_dice",
    "cosine_resampling_matrix",
    "equivariance_error",
    "fft_depthwise_conv",
    "frequency_prior",
    "gaussian_downsampling_matrix",
    "handlers",
    "held_out",
    "hermite_gaussian_basis",
    "hermite_gaussian_filters",
    "linear_upsampling_matrix",
    "load_datalist",
    "make_phantom_dataset",
    "nifti_datalist",
    "published",
    "read_weights",
    "relative_error",
    "rescale",
    "scale_shift",
    "split_datalist",
]
