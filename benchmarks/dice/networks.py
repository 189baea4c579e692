"""The networks that are compared: names, what they are built of, how they are trained and tested."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from benchmarks.dice.one_scale import OneScaleAtATime
from benchmarks.scale_generalisation import PaddedToFit
from monai_scaleequiv import ScaleCanonicalizer, ScaleFilters, ScaleProjection, ScalePyramid, SEUNet
from monai_scaleequiv.published import PublishedSEUNet

HALF = tuple(2 ** (i / 2) for i in (-1, 0, 1))  # half octaves about the image's own voxels
FOUR = tuple(2 ** (i / 2) for i in (-2, -1, 0, 1))
FIVE = tuple(2 ** (i / 2) for i in (-2, -1, 0, 1, 2))
COARSE = tuple(2 ** (i / 2) for i in (0, 1, 2))  # no finer copy, so that all three cost one and a half passes
STEPS_OF_AN_OCTAVE = tuple(0.9**i for i in range(4))
WORKING = 1.25  # mm, ACDC's usual in the plane
TRAINED = 1.5625  # mm, that of most images of the setting "coarse" that train
WIDE = 1.0  # octaves of size augmentation either way
NARROW = 0.77  # for the pyramids: 1/1.7 to 1.7, as the copies cover the rest; pyramid_wide is trained with the other

LATE_FROM = 0.884  # share of the steps: 0.7 of the time, as the copies make a step 3.3 times as long

Test = Callable[[nn.Module], nn.Module]


class Remembering(ScaleProjection):
    """A projection that keeps what it was given, for a loss on each scale's own answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scales_answers = x
        return super().forward(x)


class TwoOfThem(ScalePyramid):
    """A pyramid that in training computes two of its scales, drawn anew at each step, for less than all of its cost."""

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        if not self.training:
            return super().forward(x, spacing)
        steps = self._steps(spacing)
        chosen = torch.randperm(len(steps))[:2].tolist()
        return self.projection(torch.stack([self._answer(x, steps[i]) for i in chosen], dim=1))


class LatePyramid(ScalePyramid):
    """A pyramid whose network is trained alone at first, at the price of one pass; its copies join later."""

    is_alone = False

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        return self.network(x) if self.training and self.is_alone else super().forward(x, spacing)


@dataclass(frozen=True)
class Entry:
    """One network of the comparison.

    ``build(axes, channels, classes)`` makes it; ``octaves`` is the range of sizes it is trained with; ``tests`` are
    the ways it is applied, by name, each made from the trained network; ``deep`` weighs a loss on each copy's answer.
    """

    build: Callable[[int, int, int], nn.Module]
    octaves: float
    tests: Mapping[str, Test] = field(default_factory=dict)
    deep: float = 0.0
    is_whole: bool = False  # whether it is trained on whole images, resized, in place of boxes of one size
    resample: float = 0.0  # mm that training images are brought to; 0 for their own
    unit: float = 0.0  # mm that the network's voxel sizes are given in when it is applied; 0 for one that is not told
    is_told: bool = False  # whether training tells it too: samples of one volume at a time, no CUDA graph
    is_mirrored: bool = False  # whether it sees the other side of the head as further channels
    alone: float = 0.0  # share of the steps in which a LatePyramid runs its network alone
    estimator_every: int = 1  # steps, in that share, of which one trains the estimator of sizes
    estimator_last: int = 0  # steps at the end that train it by itself, on images near their own size; none before


def unet(axes: int, channels: int, classes: int) -> nn.Module:
    """The plain network; all that are compared with it have about as many parameters."""
    widths = (16, 32, 64) if axes == 3 else (16, 32, 64, 128)
    return UNet(axes, channels, classes, widths, (2,) * (len(widths) - 1), num_res_units=2)


def seunet(axes: int, channels: int, classes: int) -> nn.Module:
    filters = ScaleFilters(STEPS_OF_AN_OCTAVE, max_order=3)
    widths = (18, 36, 74) if axes == 3 else (17, 34, 68, 113)
    return SEUNet(axes, channels, classes, widths, (2,) * (len(widths) - 1), num_res_units=2, filters=filters)


def one_scale_at_a_time(axes: int, channels: int, classes: int) -> nn.Module:
    return OneScaleAtATime(seunet(axes, channels, classes))


def published(axes: int, channels: int, classes: int) -> nn.Module:
    net = PublishedSEUNet(
        channels, classes, (16, 32, 64), (2, 2), kernel_size=5, effective_size=3, scales=list(STEPS_OF_AN_OCTAVE),
        basis_type="multi", num_res_units=2, act="silu", reduction="max",
    )  # fmt: skip
    return PaddedToFit(net)


def segresnet(axes: int, channels: int, classes: int) -> nn.Module:
    norm = ("GROUP", {"num_groups": 5})
    return SegResNet(axes, 10, channels, classes, norm=norm, blocks_down=(1, 2, 2), blocks_up=(1, 1))


def pyramid(
    scales: tuple[float, ...] = HALF, projection: str = "logsumexp", inner: Callable = unet, remember: bool = False
) -> Callable[[int, int, int], nn.Module]:
    def build(axes: int, channels: int, classes: int) -> nn.Module:
        joined: str | nn.Module = ScaleProjection(projection, classes) if projection == "attentive" else projection
        joined = Remembering(projection) if remember else joined
        return ScalePyramid(inner(axes, channels, classes), scales, joined, axes)

    return build


def pyramid_mm(axes: int, channels: int, classes: int) -> nn.Module:
    return ScalePyramid(unet(axes, channels, classes), HALF, spatial_dims=axes, voxel_size=WORKING)


def at_working(net: nn.Module) -> nn.Module:
    """A plain network on images that are brought to the working voxel size, its answers brought back."""
    return ScalePyramid(net, (1.0,), "mean", 2, voxel_size=WORKING)


def anchored(net: nn.Module) -> nn.Module:
    """Averaged over scales of the voxel size that the network was trained at, whatever an image's own."""
    return ScalePyramid(net, FOUR, "mean", 2, voxel_size=TRAINED)


def octaves_mm(net: nn.Module) -> nn.Module:
    """Averaged over two voxel sizes an octave apart, about the working one, which is 1 to a SEUNet that is told."""
    return ScalePyramid(net, (2**-0.5, 2**0.5), "mean", 2, voxel_size=1.0)


def narrower_pyramid(axes: int, channels: int, classes: int) -> nn.Module:
    """With the narrow estimator of sizes as many parameters as the plain network."""
    net = UNet(axes, channels, classes, (15, 30, 60), (2, 2), num_res_units=2)
    return ScalePyramid(net, HALF, spatial_dims=axes)


def two_scales_at_a_time(axes: int, channels: int, classes: int) -> nn.Module:
    return TwoOfThem(unet(axes, channels, classes), HALF, spatial_dims=axes)


def late_pyramid(axes: int, channels: int, classes: int) -> nn.Module:
    return LatePyramid(unet(axes, channels, classes), HALF, spatial_dims=axes)


def pyramid_of_wider_kernels(axes: int, channels: int, classes: int) -> nn.Module:
    """Kernels of 5 voxels in place of 3, and fewer channels for them."""
    net = UNet(axes, channels, classes, (8, 15, 29), (2, 2), kernel_size=5, up_kernel_size=5, num_res_units=2)
    return ScalePyramid(net, HALF, spatial_dims=axes)


def canonical(
    inner: Callable[[int, int, int], nn.Module] = unet, narrow: bool = False
) -> Callable[[int, int, int], nn.Module]:
    def build(axes: int, channels: int, classes: int) -> nn.Module:
        widths = (8, 16, 32) if narrow else (16, 32, 64)
        return ScaleCanonicalizer(inner(axes, channels, classes), axes, channels, widths)

    return build


def brought(test: Test) -> Test:
    """Brought to the size of the training first, and applied in this way there."""

    def wrap(net: nn.Module) -> nn.Module:
        found = copy.copy(net)
        found._modules = dict(net._modules)
        found.network = test(net.network)
        found.size_divisor = [1] * net.spatial_dims
        return found

    return wrap


def of_all_scales(test: Test) -> Test:
    """As the SEUNet of all scales that was trained one at a time."""
    return lambda net: test(net.whole)


def inside(test: Test) -> Test:
    """Without the step that brings images to the size of the training."""
    return lambda net: test(net.network)


def axes_of(net: nn.Module) -> int:
    """2 or 3."""
    return net.dimensions if isinstance(net, UNet) else net.spatial_dims


def once(net: nn.Module) -> nn.Module:
    """As it is; a plain network in a pyramid of one copy, for sizes that it does not take by itself."""
    if isinstance(net, (ScalePyramid, SEUNet, PaddedToFit)):
        return net
    divisor = 4 if isinstance(net, SegResNet) else None
    return ScalePyramid(net, (1.0,), "mean", axes_of(net), size_divisor=divisor)


def over(scales: tuple[float, ...], projection: str = "logsumexp") -> Test:
    """Averaged over these scales; a pyramid keeps the projection that it was trained with."""

    def wrap(net: nn.Module) -> nn.Module:
        is_pyramid = isinstance(net, ScalePyramid)
        inner, joined = (net.network, net.projection) if is_pyramid else (net, projection)
        return ScalePyramid(inner, scales, joined, axes_of(net))

    return wrap


PLAIN = {"own": once}
AVERAGED = {"own": once, "half": over(HALF), "four_mean": over(FOUR, "mean")}
CANONICAL = {
    "own": once, "half": brought(over(HALF)), "four_mean": brought(over(FOUR, "mean")), "without": inside(once),
}  # fmt: skip
COPIES = {"own": once, "four": over(FOUR)}
CANONICAL_AVERAGED = {"own": once, "four_mean": brought(over(FOUR, "mean"))}
AFTER = CANONICAL_AVERAGED | {"without": inside(over(FOUR, "mean"))}
LATE = {"own": once, "four": brought(over(FOUR))}
CANONICAL_COPIES = LATE | {"without": inside(once)}
OCTAVES = {"own": once, "octaves": over((2**-0.5, 2**0.5))}
ENTRIES = {
    "unet_aug": Entry(unet, WIDE, AVERAGED),
    "pyramid_aug": Entry(pyramid(), NARROW, COPIES),
    "seunet_aug": Entry(seunet, WIDE, OCTAVES),
    "seunet_one_scale_aug": Entry(one_scale_at_a_time, WIDE, {name: of_all_scales(t) for name, t in OCTAVES.items()}),
    "seunet_one_scale_mirrored_aug": Entry(
        one_scale_at_a_time, WIDE, {name: of_all_scales(t) for name, t in OCTAVES.items()}, is_mirrored=True
    ),
    "unet_mirrored_aug": Entry(unet, WIDE, AVERAGED, is_mirrored=True),
    "unet_whole_aug": Entry(unet, WIDE, {"own": once, "half": over(HALF)}, is_whole=True),
    "canon_pyramid_matched": Entry(canonical(narrower_pyramid, narrow=True), 0.5, {"own": once}),
    "canon_whole_aug": Entry(canonical(narrower_pyramid, narrow=True), 0.5, {"own": once}, is_whole=True),
    "canon_pyramid_no_aug": Entry(canonical(pyramid()), 0.0, {"own": once}),
    "unet": Entry(unet, 0.0, AVERAGED),
    "pyramid": Entry(pyramid(FIVE), 0.0, {"own": once, "four": over(FOUR), "half": over(HALF)}),
    "seunet_octaves_aug": Entry(pyramid((2**-0.5, 2**0.5), "logsumexp", seunet), NARROW, PLAIN),
    "published_aug": Entry(published, WIDE, PLAIN),
    "segresnet_aug": Entry(segresnet, WIDE, PLAIN),
    "pyramid_wide": Entry(pyramid(), WIDE, COPIES),
    "pyramid_attentive": Entry(pyramid(FOUR, "attentive"), WIDE, PLAIN),
    "pyramid_deep": Entry(pyramid(remember=True), WIDE, COPIES, deep=0.5),
    "pyramid_fine_steps": Entry(pyramid(tuple(2 ** (i / 4) for i in range(-2, 3))), NARROW, COPIES),
    "canon_unet": Entry(canonical(), 0.5, CANONICAL),
    "canon_unet_wide": Entry(canonical(), WIDE, CANONICAL),
    "canon_unet_rarely": Entry(canonical(), WIDE, CANONICAL, alone=1.0, estimator_every=8),
    "canon_unet_after": Entry(canonical(), WIDE, AFTER, estimator_last=500),
    "canon_unet_after_1000": Entry(canonical(), WIDE, CANONICAL_AVERAGED, estimator_last=1000),
    "canon_late": Entry(canonical(late_pyramid), WIDE, LATE, alone=LATE_FROM, estimator_every=4),
    "canon_two_scales": Entry(canonical(two_scales_at_a_time), 0.5, {"own": once}),
    "canon_wider_kernels": Entry(canonical(pyramid_of_wider_kernels), 0.5, {"own": once}),
    "canon_pyramid": Entry(canonical(pyramid()), 0.5, CANONICAL_COPIES),
    "canon_pyramid_wide": Entry(canonical(pyramid()), WIDE, CANONICAL_COPIES),
    "canon_coarse": Entry(canonical(pyramid(COARSE)), 0.5, CANONICAL_COPIES),
    "canon_coarse_wide": Entry(canonical(pyramid(COARSE)), WIDE, CANONICAL_COPIES),
    "unet_resampled_aug": Entry(unet, NARROW, {"own": at_working}, resample=WORKING, unit=1.0),
    "unet_mm_after": Entry(unet, WIDE, {"four_mean": over(FOUR, "mean"), "mm": anchored}, unit=1.0),
    "pyramid_mm_aug": Entry(pyramid_mm, NARROW, PLAIN, unit=1.0, is_told=True),
    "seunet_one_scale_mm_aug": Entry(
        one_scale_at_a_time,
        NARROW,
        {"own": of_all_scales(once), "octaves": of_all_scales(octaves_mm)},
        unit=WORKING,
        is_told=True,
    ),
}
