"""Layers on features with a scale axis, (B, S, C, D, H, W) in 3D and (B, S, C, H, W) in 2D; large kernels."""

from monai_scaleequiv.layers._conv import ScaleGroupConv, ScaleLiftingConv, SteerableConv
from monai_scaleequiv.layers._derived import DerivedBuffers
from monai_scaleequiv.layers._dropout import ScaleDropout
from monai_scaleequiv.layers._factories import register_layers
from monai_scaleequiv.layers._input_checks import check_arguments, check_counts, check_features, check_image
from monai_scaleequiv.layers._instance_norm import (
    SplitInstanceNorm2d,
    SplitInstanceNorm3d,
    split_instance_norm,
    with_split_sums,
)
from monai_scaleequiv.layers._kept_scales import keep_scales
from monai_scaleequiv.layers._large_kernel import LargeKernelConv
from monai_scaleequiv.layers._per_scale import PerScale, ScaleNorm, ScalePointwiseConv, ScalePool
from monai_scaleequiv.layers._projection import ScaleProjection
from monai_scaleequiv.layers._resampling import ScaleDownsample, ScaleUpsample, SpacedResample
from monai_scaleequiv.layers._single_image import SingleImageConvolutions

register_layers()

__all__ = [
    "DerivedBuffers", "LargeKernelConv", "PerScale", "ScaleDownsample", "ScaleDropout", "ScaleGroupConv",
    "ScaleLiftingConv", "ScaleNorm", "ScalePointwiseConv", "ScalePool", "ScaleProjection", "ScaleUpsample",
    "SingleImageConvolutions", "SpacedResample", "SplitInstanceNorm2d", "SplitInstanceNorm3d", "SteerableConv",
    "check_arguments", "check_counts", "check_features", "check_image", "keep_scales", "split_instance_norm",
    "with_split_sums",
]  # fmt: skip
