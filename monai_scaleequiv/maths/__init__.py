"""The mathematics behind the layers: plain functions on float64 tensors, no modules."""

from monai_scaleequiv.maths._basis import hermite_gaussian_basis, separable_filters
from monai_scaleequiv.maths._fft_conv import (
    crop_to_reach,
    fft_depthwise_conv,
    fft_depthwise_gradients,
    fft_kernel_spectrum,
    kernel_reach,
)
from monai_scaleequiv.maths._filters import ScaleFilters, check_scales, voxel_sizes
from monai_scaleequiv.maths._hermite import hermite_gaussian_filters
from monai_scaleequiv.maths._polyphase import (
    PolyphaseAxis,
    block_counts,
    join_phases,
    polyphase_axis,
    polyphase_basis,
    split_phases,
)
from monai_scaleequiv.maths._prior import frequency_prior
from monai_scaleequiv.maths._resampling import (
    gaussian_downsampling_matrix,
    linear_upsampling_matrix,
    sampled_gaussian_width,
)
from monai_scaleequiv.maths._rescaling import as_ratio, resample_axes, resample_axis, rescale
from monai_scaleequiv.maths._separable import SeparableConv
from monai_scaleequiv.maths._zooming import zoomed_view

__all__ = [
    "PolyphaseAxis", "ScaleFilters", "SeparableConv", "as_ratio", "block_counts", "check_scales", "crop_to_reach",
    "fft_depthwise_conv", "fft_depthwise_gradients", "fft_kernel_spectrum", "frequency_prior",
    "gaussian_downsampling_matrix", "hermite_gaussian_basis", "hermite_gaussian_filters", "join_phases",
    "kernel_reach", "linear_upsampling_matrix", "polyphase_axis", "polyphase_basis", "resample_axes", "resample_axis",
    "rescale", "sampled_gaussian_width", "separable_filters", "split_phases", "voxel_sizes", "zoomed_view",
]  # fmt: skip
