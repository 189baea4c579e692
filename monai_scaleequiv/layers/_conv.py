"""Lifting and group convolution of the scale-translation group with steerable Hermite-Gaussian filters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_scaleequiv.layers._input_checks import check_features, check_image
from monai_scaleequiv.layers._steerable import SteerableConv
from monai_scaleequiv.maths import ScaleFilters


class ScaleLiftingConv(SteerableConv):
    r"""Lifting convolution: an image in, features with a scale axis out.

    Every output channel is one filter, evaluated at all scales:
    :math:`y_s = \sum_i \sum_f w_{oif}\, \psi_f(\cdot / \sigma_s) * x_i`. When the image is magnified by the ratio of
    two neighbouring scales, the features are magnified and move by one along the scale axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels (per scale).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults.
        stride, padding: of the convolution; padding None keeps the size at stride 1. A bare stride aliases; see
            :py:class:`ScaleDownsample`.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) in place of the one that ``filters`` describes.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Example::

        >>> ScaleLiftingConv(3, in_channels=1, out_channels=8)(torch.rand(2, 1, 9, 9, 9)).shape
        torch.Size([2, 4, 8, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int,
        filters: ScaleFilters | Mapping[str, Any] | None = None, stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | None = None, bias: bool = True, is_transposed: bool = False,
        basis: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        sizes = spatial_dims, in_channels, out_channels
        super().__init__(*sizes, filters, 1, stride, padding, bias, is_transposed, basis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.spatial_dims, self.in_channels)
        return self._convolve(x, 1)


class ScaleGroupConv(SteerableConv):
    r"""Group convolution: features with a scale axis in and out.

    :math:`y_s = \sum_{j < J} \sum_i \sum_f w_{oijf}\, \psi_f(\cdot / \sigma_s) * x_{s + j, i}`, J = ``scale_size``.
    Past the end of the scale axis the last scale is repeated.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: numbers of channels (per scale).
        filters: a :py:class:`ScaleFilters`, a mapping with its arguments, or None for the defaults.
        scale_size: number of neighbouring scales that interact.
        stride, padding: of the convolution; padding None keeps the size at stride 1.
        bias: whether to add a bias, shared by the scales.
        is_transposed: whether to use a transposed convolution.
        basis: a basis of shape (functions, S, \*kernel_size) in place of the one that ``filters`` describes.

    Raises:
        ValueError: when an argument is out of range, or the input has another shape.

    Example::

        >>> ScaleGroupConv(3, in_channels=8, out_channels=4)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 4, 9, 9, 9])

    Source: Wimmer et al. 2023 (arXiv 2304.05864), section 3; repetition: Zhu et al. 2019 (arXiv 1909.11193).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_features(x, self.spatial_dims, [self.num_scales], self.in_channels)
        if self.scale_size > 1:
            x = self._gather_scales(x)
        return self._convolve(x.flatten(1, 2), self.num_scales)

    def _gather_scales(self, x: torch.Tensor) -> torch.Tensor:
        # (B, S, C, ...) -> (B, S, J * C, ...): each scale beside the J - 1 that follow it
        shifted = [x]
        for j in range(1, self.scale_size):
            last = x[:, -1:].expand([-1, j] + [-1] * (x.dim() - 2))
            shifted.append(torch.cat([x[:, j:], last], dim=1))
        return torch.cat(shifted, dim=2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights were once stored as (O, I, J, F), a shape that `to(memory_format=...)` takes for an image's.
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}weight") and value.dim() == 4:
                state_dict[key] = value.flatten(2)
        super()._load_from_state_dict(state_dict, prefix, *args)
