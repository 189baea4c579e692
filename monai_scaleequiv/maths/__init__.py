"""The mathematics behind the layers: plain functions on float64 tensors, no modules."""

from monai_scaleequiv.maths._hermite import hermite_gaussian_basis, hermite_gaussian_filters
from monai_scaleequiv.maths._resampling import gaussian_downsampling_matrix, linear_upsampling_matrix
from monai_scaleequiv.maths._rescaling import cosine_resampling_matrix, rescale

__all__ = [
    "cosine_resampling_matrix",
    "gaussian_downsampling_matrix",
    "hermite_gaussian_basis",
    "hermite_gaussian_filters",
    "linear_upsampling_matrix",
    "rescale",
]
