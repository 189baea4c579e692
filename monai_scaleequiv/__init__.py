"""Scale-equivariant and large-kernel networks for MONAI.

Importing this package registers its components with MONAI: short names such as ``SEUNet`` resolve in bundle configs,
and the layers are entries of MONAI's layer factories.
"""

<<<<<<< HEAD
from monai_scaleequiv import data, handlers, inferers, published, transforms
=======
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
>>>>>>> hand
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
<<<<<<< HEAD
=======
    "ArgmaxInvertd",
    "CheckLabeld",
    "CheckVolumed",
    "CheckedNibabelReader",
    "DatasetReport",
>>>>>>> hand
    "EquivarianceError",
    "EquivarianceReading",
    "LargeKernelConv",
<<<<<<< HEAD
=======
    "MillimetreSlidingWindowInferer",
>>>>>>> hand
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
<<<<<<< HEAD
=======
    "check_dataset",
    "check_output_dir",
>>>>>>> hand
    "consistency_dice",
    "data",
    "equivariance_error",
<<<<<<< HEAD
    "handlers",
    "inferers",
=======
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
>>>>>>> hand
    "published",
    "relative_error",
    "rescale",
    "scale_shift",
    "transforms",
]
