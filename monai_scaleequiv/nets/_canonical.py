"""Learned canonicalisation of scale: an image is brought to the size that the network was trained on, and back."""

# forward has no spacing; said on its line, TorchScript takes it for a type
# mypy: disable-error-code="override"

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn

from monai_scaleequiv.layers import check_arguments, check_counts, check_image
from monai_scaleequiv.maths import as_ratio, resample_axes, zoomed_view
from monai_scaleequiv.nets._metadata import with_metadata
from monai_scaleequiv.nets._pyramid import ScalePyramid
from monai_scaleequiv.nets._scale_estimator import ScaleEstimator

# Of training: part of the range in octaves, views of an image, and the largest standard deviation of their blur, in
# voxels. Without blur the estimator would read the scale off the sharpness, which depends on an image's history.
_DRAWN, _VIEWS, _BLUR = 0.75, 2, 1.0


class ScaleCanonicalizer(ScalePyramid):
    """Estimates how large an image's content is, and runs a network once, on a copy of the size that it was trained on.

    A pyramid of one copy, whose scale follows from the image: over a wider range of scales than the copies of a
    :py:class:`ScalePyramid` reach, at the price of about one pass. It is as equivariant as the estimate is right.

    In evaluation each image is rescaled by ``2 ** -estimate(image)`` and the answer brought back to its grid, all by
    ideal resampling.

    In training the network sees the images as they are, with what augmentation of moderate size they have, and they
    define the scale 1; the estimator learns beside it, without labels, from random views of the same images whose scale
    is known. This needs nothing of the training loop: the gradient of :py:meth:`estimator_loss` is added in the
    backward pass of the logits, times ``weight`` and the sum of their gradient's absolute values. So it follows the
    scaling of a loss, for float16 or for accumulated gradients, while Adam makes up for its size; with SGD, set
    ``weight`` to 0 and add :py:meth:`estimator_loss` to the loss. Around a network that is trained already, a
    thousand steps with that loss alone do, and :py:meth:`center`.

    The scale is that of what one call sees: prefer whole images to sliding windows, of which each would have its own.
    A copy for the scale s costs ``s ** -spatial_dims`` passes. TorchScript takes the evaluation, tracing and export do
    not, for they would keep one image's sizes.

    Args:
        network: segmentation network or :py:class:`ScalePyramid`, images (B, C, D, H, W) in, logits of that size out.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of the estimator's levels.
        coarseness: voxel of the grid that the estimator sees, in voxels of the image.
        largest: largest scale, relative to the training images; the smallest is its inverse.
        iterations: how often the estimate is refined on the image that was rescaled by it.
        size_divisor: number that the copy's size must be a multiple of, as in :py:class:`ScalePyramid`.
        weight: of the estimator's gradient in training, 0 for none.
        dropout: as in :py:class:`ScalePyramid`.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.
        RuntimeError: when the evaluation is traced or exported.

    Shape:
        input (B, in_channels, D, H, W), of any size in evaluation; output (B, C', D, H, W).

    Example::

        >>> from monai.networks.nets import UNet
        >>> unet = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> net = ScaleCanonicalizer(unet).eval()
        >>> net(torch.rand(1, 1, 35, 51, 36)).shape
        torch.Size([1, 2, 35, 51, 36])

        Around a network that is trained already, with images alone:

        >>> images, net = torch.rand(3, 1, 1, 16, 24, 16), ScaleCanonicalizer(unet)
        >>> optimizer = torch.optim.AdamW(net.estimator.parameters(), lr=0.005)
        >>> for image in images:  # a thousand steps
        ...     optimizer.zero_grad()
        ...     net.estimator_loss(image).backward()
        ...     optimizer.step()
        >>> net.eval().center(images)

    Source: Kaba et al. 2023 (arXiv 2211.06489).
    """

    def __init__(
        self, network: nn.Module, spatial_dims: int = 3, in_channels: int = 1, channels: Sequence[int] = (16, 32, 64),
        coarseness: float = 2.0, largest: float = 4.0, iterations: int = 2,
        size_divisor: Sequence[int] | int | None = None, weight: float = 1.0, dropout: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(network, (1.0,), "mean", spatial_dims, size_divisor=size_divisor, dropout=dropout)
        check_arguments(spatial_dims, in_channels=in_channels, channels=channels)
        check_counts(iterations=iterations)
        if len(channels) == 0:
            raise ValueError(f"channels must hold at least one number, got {channels}.")
        for name, value, least in (("coarseness", coarseness, 1), ("largest", largest, 1), ("weight", weight, 0)):
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least {least}, got {value}.")
        self.in_channels, self.channels = in_channels, tuple(channels)
        self.coarseness, self.largest = float(coarseness), float(largest)
        self.iterations, self.weight = iterations, float(weight)
        self._most = math.log2(largest)
        self.estimator = ScaleEstimator(spatial_dims, in_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Segments images (B, C, D, H, W)."""
        check_image(x, self.spatial_dims, self.in_channels)
        if not torch.jit.is_scripting():
            if isinstance(x, MetaTensor):
                return with_metadata(ScaleCanonicalizer.forward, self, x)
            if self.training:
                return self._forward_in_training(x)
            if torch.jit.is_tracing() or torch.compiler.is_exporting():
                raise RuntimeError("a traced ScaleCanonicalizer would keep one image's scale; use torch.jit.script.")
        scales: list[float] = torch.exp2(self.estimate(x)).tolist()
        steps = [[as_ratio(s)] * self.spatial_dims for s in scales]
        return torch.cat([self._answer(x[i : i + 1], steps[i]) for i in range(len(steps))])

    @torch.jit.unused
    def _forward_in_training(self, x: torch.Tensor) -> torch.Tensor:
        y = self.network(x)
        if self.weight == 0 or not torch.is_grad_enabled():
            return y
        return _WithLoss.apply(y, self.estimator_loss(x) * self.weight)

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        """Binary logarithms (B,) of the scales of images, 0 as in training, 1 for contents twice as large."""
        check_image(x, self.spatial_dims, self.in_channels)
        if not torch.jit.is_scripting():
            x = _plain(x)
        with torch.no_grad():
            estimates = self.estimator(self._seen(x, 0.0)).clamp(-self._most, self._most)
            for _ in range(self.iterations - 1):
                found: list[float] = estimates.tolist()
                rest = [self.estimator(self._seen(x[i : i + 1], found[i])) for i in range(len(found))]
                estimates = (estimates + torch.cat(rest)).clamp(-self._most, self._most)
            return estimates

    @torch.no_grad()
    @torch.jit.unused
    def center(self, images: Iterable[torch.Tensor]) -> None:
        """Takes from the estimates their mean over images (B, in_channels, D, H, W), those of the training.

        An estimator that was trained on crops has a bias on whole images, whose scale is to be 0.

        Raises:
            ValueError: when there is no image, or one has another number of axes or channels.
        """
        estimates = []
        for image in images:
            check_image(image, self.spatial_dims, self.in_channels)
            estimates.append(self.estimator(self._seen(_plain(image).to(self.estimator.last.weight), 0.0)))
        if not estimates:
            raise ValueError("images: expected at least one, got none; give those of the training.")
        self.estimator.last.bias.sub_(torch.cat(estimates).mean())

    def _seen(self, x: torch.Tensor, log2_scale: float) -> torch.Tensor:
        # The image as the estimator sees it, after it was made smaller by a scale
        step = self.coarseness * 2.0**log2_scale
        return resample_axes(x, [_coarse(n, step) for n in x.shape[2:]], [as_ratio(step)] * self.spatial_dims)

    def estimator_loss(self, x: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the estimates, in octaves, of views of these images at random scales and places."""
        check_image(x, self.spatial_dims, self.in_channels)
        # Not in half precision, in which a scaled gradient of one number is infinite.
        device = x.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            views, log2_scales = self._random_views(_plain(x).detach())
            estimates = self.estimator(views.to(self.estimator.last.weight.dtype))
            return (estimates.to(log2_scales.dtype) - log2_scales).square().mean()

    def _random_views(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([x] * _VIEWS)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        draws = 2 * torch.rand(x.shape[0], 2 + self.spatial_dims, device=x.device, dtype=dtype) - 1
        log2_scales = draws[:, 0] * (_DRAWN * self._most)
        blur = draws[:, 1].abs() * _BLUR
        step = self.coarseness * torch.exp2(-log2_scales)
        sizes = [_coarse(n, self.coarseness) for n in x.shape[2:]]
        # Within the image, or around it
        room = torch.stack([n - step * m for n, m in zip(x.shape[2:], sizes, strict=True)], 1)  # (B, axes)
        middle = torch.stack([torch.full_like(step, n / 2) for n in x.shape[2:]], 1)
        return zoomed_view(x, sizes, step, middle + draws[:, 2:] * room / 2, blur), log2_scales

    def extra_repr(self) -> str:
        return f"coarseness={self.coarseness}, largest={self.largest}, iterations={self.iterations}"


@torch.jit.unused
def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _coarse(size: int, step: float) -> int:
    # At least as many as the estimator's levels need
    return max(int(size / step + 0.5), 4)


class _WithLoss(torch.autograd.Function):
    """Logits as they are, in whose backward pass a loss has its gradient too."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.dtype = loss.dtype
        return logits.clone()  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, gradient.abs().sum(dtype=ctx.dtype)
