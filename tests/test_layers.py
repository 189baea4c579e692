"""Layers against slow references in float64, and what each promises."""

import contextlib
import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool
from torch import nn

from monai_scaleequiv import (
    EquivarianceReading,
    PerScale,
    ScaleDownsample,
    ScaleDropout,
    ScaleFilters,
    ScaleGroupConv,
    ScaleLiftingConv,
    ScaleNorm,
    ScalePointwiseConv,
    ScalePool,
    ScaleProjection,
    ScaleUpsample,
    assert_scale_equivariant,
    rescale,
)
from monai_scaleequiv.layers import DerivedBuffers
from monai_scaleequiv.maths import hermite_gaussian_basis
from monai_scaleequiv.metrics import relative_error
from monai_scaleequiv.published import published_basis

SCALES = (1.0, 0.9, 0.8)
FILTERS = ScaleFilters(scales=SCALES)
CONV = {2: (F.conv2d, F.conv_transpose2d), 3: (F.conv3d, F.conv_transpose3d)}


def features(spatial_dims: int = 3, size: int = 9, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, len(SCALES), channels, *[size] * spatial_dims, dtype=torch.float64)


def slow_group_conv(layer: ScaleGroupConv, x: torch.Tensor) -> torch.Tensor:
    """One convolution for every scale, interaction and output channel, kernels summed function by function."""
    basis = hermite_gaussian_basis(FILTERS, layer.spatial_dims)
    convolve = CONV[layer.spatial_dims][layer.is_transposed]
    out = []
    for s in range(len(SCALES)):
        total = 0
        for j in range(layer.scale_size):
            source = x[:, min(s + j, len(SCALES) - 1)]
            weight = layer.weight.unflatten(2, (layer.scale_size, -1))[:, :, j]
            weight = weight.reshape(3, 4, -1, *[1] * layer.spatial_dims)
            kernel = sum(weight[:, :, f] * basis[f, s] for f in range(len(basis)))
            kernel = kernel.transpose(0, 1) if layer.is_transposed else kernel
            total = total + convolve(source, kernel, stride=layer.stride, padding=layer.padding)
        out.append(total + layer.bias.reshape(-1, *[1] * layer.spatial_dims))
    return torch.stack(out, dim=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("scale_size", [1, 2, 3])
@pytest.mark.parametrize(("stride", "is_transposed"), [(1, False), (2, False), (2, True)])
def test_group_conv_equals_slow_reference(spatial_dims, scale_size, stride, is_transposed):
    layer = ScaleGroupConv(spatial_dims, 4, 3, FILTERS, scale_size, stride=stride, is_transposed=is_transposed)
    nn.init.normal_(layer.bias)
    x = features(spatial_dims, size=7)
    torch.testing.assert_close(layer(x), slow_group_conv(layer, x), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_lifting_equals_group_conv_on_a_repeated_image(spatial_dims, is_transposed):
    lifting = ScaleLiftingConv(spatial_dims, 2, 3, FILTERS, is_transposed=is_transposed)
    group = ScaleGroupConv(spatial_dims, 2, 3, FILTERS, is_transposed=is_transposed)
    group.load_state_dict(lifting.state_dict())
    image = torch.randn(2, 2, *[8] * spatial_dims)
    repeated = image.unsqueeze(1).repeat_interleave(len(SCALES), dim=1)
    torch.testing.assert_close(lifting(image), group(repeated), atol=1e-12, rtol=0)


STEPS = [0.9**i for i in range(4)]
WIDE = ScaleFilters(STEPS, kernel_size=11, sigma=1.5)


class ThereAndBack(nn.Module):
    """Down-sampling to a coarser grid, and up-sampling from it."""

    def __init__(self, down: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, ScaleUpsample(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x), list(x.shape[3:]))


def lifted(*layers: nn.Module) -> nn.Sequential:
    """What is tested, on features of an image that are themselves equivariant to 1e-6."""
    return nn.Sequential(ScaleLiftingConv(2, 1, 4, WIDE, bias=False), nn.SiLU(), *layers)


# What is measured, and the largest error. The control, without a shift along the scale axis, is three times above it.
EQUIVARIANT = {
    "lifting": (lambda: ScaleLiftingConv(2, 1, 4, WIDE), 1e-5),
    "group convolution": (lambda: lifted(ScaleGroupConv(2, 4, 4, WIDE)), 1e-5),
    "group convolution over scales": (lambda: lifted(ScaleGroupConv(2, 4, 4, WIDE, scale_size=2)), 1e-3),
    "batch norm": (lambda: lifted(ScaleNorm(2, 4, "batch")), 1e-5),
    "instance norm": (lambda: lifted(ScaleNorm(2, 4, "instance")), 1e-5),
    "dropout": (lambda: lifted(ScaleDropout(0.5)), 1e-5),
    "pointwise convolution": (lambda: lifted(ScalePointwiseConv(2, 4, 3)), 1e-5),
    "per scale": (lambda: lifted(PerScale(nn.GELU())), 1e-5),
    "pooling": (lambda: lifted(ScalePool(2, ("avg", {"kernel_size": 3, "stride": 1, "padding": 1}))), 6e-4),
    "down- and up-sampling": (lambda: lifted(ThereAndBack(ScaleDownsample(2, STEPS))), 8e-4),
}


def equivariance_of(network: nn.Module, tolerance: float, **args) -> EquivarianceReading:
    image = rescale(torch.randn(1, 1, 12, 12), (72, 72))
    return assert_scale_equivariant(network, image, (80, 80), tolerance, margin=0.25, **args)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", EQUIVARIANT)
def test_layers_are_scale_equivariant(name):
    build, tolerance = EQUIVARIANT[name]
    assert equivariance_of(build(), tolerance, scales=STEPS).floor < 1e-20


@pytest.mark.usefixtures("float64")
def test_a_bare_stride_is_not_scale_equivariant():
    with pytest.raises(AssertionError, match="expected an error"):
        equivariance_of(lifted(ThereAndBack(PerScale(nn.AvgPool2d(1, 2)))), 8e-4, scales=STEPS)


@pytest.mark.usefixtures("float64")
def test_projection_loses_only_what_enters_and_leaves_at_the_ends():
    class FirstScale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0]

    filters = ScaleFilters([0.9**i for i in range(8)], kernel_size=11, sigma=1.5)
    layers = ScaleLiftingConv(2, 1, 4, filters, bias=False), nn.SiLU()
    control = nn.Sequential(*layers, FirstScale())
    equivariance_of(nn.Sequential(*layers, ScaleProjection("logsumexp")), 4e-4, control=control)
    for mode in ("logsumexp", "mean", "max", "attentive"):  # what enters it moves along the scale axis
        network = nn.Sequential(*layers, ScaleProjection(mode, channels=4))
        equivariance_of(network, 1e-5, scales=filters.scales)


@pytest.mark.usefixtures("float64")
def test_fitted_filters_in_3d_are_scale_equivariant_where_sampled_and_published_ones_are_not():
    fitted = ScaleFilters(STEPS[:3], kernel_size=7, sigma=1.25)
    published = published_basis(5, fitted.scales, 3, "multi", kernel_padding=False)
    check = {"image": noise(36), "size": (40, 40, 40), "tolerance": 3e-4, "scales": fitted.scales, "margin": 0.25}
    for filters, basis in ((fitted, None), (dataclasses.replace(fitted, method="sampled"), None), (fitted, published)):
        first, second = (
            layer(3, n, 2, filters, basis=basis) for layer, n in ((ScaleLiftingConv, 1), (ScaleGroupConv, 2))
        )
        is_fitted = filters is fitted and basis is None
        with contextlib.nullcontext() if is_fitted else pytest.raises(AssertionError, match="expected an error"):
            assert_scale_equivariant(nn.Sequential(first, nn.SiLU(), second), **check)


def noise(size: int, slope: float = 3.5) -> torch.Tensor:
    """Periodic noise whose power falls with frequency as that of medical images does."""
    f = torch.fft.fftfreq(size) ** 2
    power = f[:, None, None] + f[:, None] + f
    amplitude = torch.where(power > 0, power, torch.inf) ** (-slope / 4)
    x = torch.fft.ifftn(torch.fft.fftn(torch.randn(size, size, size)) * amplitude).real
    return (x / x.std())[None, None]


def shrunk(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Ideal down-sampling of the last axis of a periodic signal."""
    spectrum = torch.fft.rfft(x, dim=-1)
    kept = torch.arange(spectrum.shape[-1]) * 2 * factor < x.shape[-1]
    return torch.fft.irfft(spectrum * kept, x.shape[-1], dim=-1)[..., ::factor]


def periodic(layer: ScaleLiftingConv, x: torch.Tensor) -> torch.Tensor:
    return layer(F.pad(x, [n for k in reversed(layer.kernel_size) for n in [k // 2] * 2], mode="circular"))


@pytest.mark.parametrize(("sigma", "r"), [(1.5, 2), (1.25, 3), (2.0, 5)])
def test_layer_in_millimetres_sees_the_same_on_thick_slices(sigma, r):
    x = noise(60)

    def layer(**spacing) -> ScaleLiftingConv:
        torch.manual_seed(0)
        filters = ScaleFilters(SCALES, sigma, kernel_size=None, **spacing)
        return ScaleLiftingConv(3, 1, 4, filters, padding=0)

    fine, coarse = layer(), layer(spacing=(1.0, 1.0, r))
    assert [p.shape for p in fine.parameters()] == [p.shape for p in coarse.parameters()]
    with torch.no_grad():
        expected, thick = shrunk(periodic(fine, x), r), shrunk(x, r)
        assert relative_error(periodic(coarse, thick), expected) < 2e-3
        assert relative_error(periodic(fine, thick), expected) > 0.05  # blind to spacing, as an ordinary layer is


@pytest.mark.parametrize(("spacing", "factor"), [(0.5, 4), (1.0, 2), (1.5, 1), (3.0, 1)])
def test_downsampling_blurs_the_same_in_millimetres(spacing, factor):
    size = 60
    layer = ScaleDownsample(2, (1.0, 0.75), factor=(1, 2), sigma=0.8, spacing=(1.0, spacing)).double()
    assert layer.factor == [1, factor]
    positions = (torch.arange(size, dtype=torch.float64) + 0.5) * spacing  # of voxel centres, in mm
    rows = layer(torch.eye(size, dtype=torch.float64).reshape(1, 1, size, 1, size))[0, :, :, 0]  # (S, voxel, row)
    rows = rows[..., rows.shape[-1] // 2]
    centre = (rows * positions).sum(-1)
    variance = (rows * positions**2).sum(-1) - centre**2
    torch.testing.assert_close(variance, torch.tensor([1.6**2, 1.2**2], dtype=torch.float64), atol=1e-3, rtol=0)
    coarse = (size // factor // 2 + 0.5) * spacing * factor  # both grids begin at the same edge
    torch.testing.assert_close(centre, torch.full_like(centre, coarse), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spacing", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_upsampling_smooths_the_same_in_millimetres(spacing):
    """Variance of what becomes of an impulse on the coarse grid."""
    layer = ScaleUpsample(2, factor=(1, 2), spacing=(1.0, spacing)).double()
    factor = layer.factor[1]
    impulse = torch.zeros(1, 1, 1, 1, 21, dtype=torch.float64)
    impulse[..., 10] = 1
    y = layer(impulse, [1, 21 * factor])[0, 0, 0, 0]
    positions = (torch.arange(21 * factor, dtype=torch.float64) + 0.5) * spacing - 10.5 * factor * spacing
    assert (y * positions).sum() / y.sum() == pytest.approx(0, abs=1e-9)
    plain = F.interpolate(impulse[0, 0], scale_factor=float(factor), mode="linear")[0, 0]
    expected = max(0.75, ((plain * positions**2).sum() / plain.sum()).item())  # 0.75 at spacing 1
    assert (y * positions**2).sum() / y.sum() == pytest.approx(expected, abs=1e-3)


def test_downsampling_leaves_axes_of_factor_1_alone():
    x = features(2)
    layer = ScaleDownsample(2, SCALES, factor=(1, 2), spacing=(0.25, 1.0)).double()
    torch.testing.assert_close(layer(x), ScaleDownsample(2, SCALES, factor=(1, 2)).double()(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer_type", [ScaleLiftingConv, ScaleGroupConv])
def test_kernels_follow_the_weights(layer_type):
    layer = layer_type(3, 2, 3, FILTERS).eval()
    x = torch.rand(1, 2, 6, 6, 6) if layer_type is ScaleLiftingConv else torch.rand(1, 3, 2, 6, 6, 6)
    with torch.no_grad():
        first = layer(x)
        layer.weight.data.mul_(2)  # leaves no trace on the version counter
        torch.testing.assert_close(layer(x), 2 * first)
        layer.weight.data = torch.zeros_like(layer.weight)
        assert layer(x).abs().max() == 0
        weight = torch.ones_like(layer.weight)
        assert torch.func.functional_call(layer, {"weight": weight}, (x,)).abs().max() > 0
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("assign", [False, True])
def test_weights_of_rank_4_are_loaded(assign):
    layer, other = (ScaleGroupConv(3, 2, 3, FILTERS, scale_size=2) for _ in range(2))
    old = {"weight": other.weight.detach().unflatten(2, (2, 10)), "bias": other.bias.detach()}
    nn.Sequential(layer).load_state_dict({f"0.{k}": v for k, v in old.items()}, assign=assign)
    torch.testing.assert_close(layer.weight, other.weight, atol=0, rtol=0)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.dim() == 3  # other ranks are an image's to `to(memory_format=...)`


def test_basis_keeps_its_precision_through_single_precision():
    layer = ScaleLiftingConv(3, 1, 1, FILTERS).float().double()
    exact = hermite_gaussian_basis(FILTERS).flatten(2).transpose(0, 1)
    torch.testing.assert_close(layer.basis, exact, atol=0, rtol=0)
    assert "basis" not in layer.state_dict()


def test_weights_of_another_dtype_are_assigned_to_a_layer_on_the_meta_device():
    source = ScaleLiftingConv(3, 1, 1, FILTERS).double()
    with torch.device("meta"):
        layer = ScaleLiftingConv(3, 1, 1, FILTERS)
    assert layer.basis.is_meta
    layer.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    torch.testing.assert_close(layer.basis, source.basis, atol=0, rtol=0)
    x = torch.rand(1, 1, 6, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x), atol=0, rtol=0)


def test_a_derived_buffer_is_replaced_for_one_module_alone():
    first, second = DerivedBuffers(), DerivedBuffers()
    first.derive_buffer("ramp", torch.linspace, 0, 1, 3)
    second.__dict__.update(first.__dict__)
    second.half().derive_buffer("ramp", torch.linspace, 0, 1, 2)
    assert second.ramp.dtype == torch.float16
    assert [len(first.ramp), len(second.ramp)] == [3, 2]


def test_spacing_of_a_layer_can_be_set():
    filters = ScaleFilters(SCALES, sigma=1.2, kernel_size=7, spacing=(1.0, 2.0))
    layer, other = ScaleLiftingConv(2, 1, 2, {**vars(filters), "spacing": 1.0}), ScaleLiftingConv(2, 1, 2, filters)
    other.load_state_dict(layer.state_dict())
    layer.set_spacing((1.0, 2.0))
    assert layer.padding == [3, 4]
    torch.testing.assert_close(layer(torch.ones(1, 1, 9, 9)), other(torch.ones(1, 1, 9, 9)), atol=0, rtol=0)
    with pytest.raises(ValueError, match="basis of its own"):
        ScaleLiftingConv(2, 1, 2, basis=torch.ones(1, 1, 3, 3)).set_spacing(2.0)


def test_autocast_rounds_the_kernel_only_once():
    layer, x = ScaleLiftingConv(3, 1, 4, FILTERS), torch.rand(1, 1, 6, 6, 6)
    rounded = layer.assemble_kernel().detach().bfloat16().float().reshape(12, 1, 5, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = F.conv3d(x.bfloat16().float(), rounded, padding=2).bfloat16().float().reshape(y.shape)
    torch.testing.assert_close(y.float(), expected, atol=0, rtol=2**-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels"),
        ({"out_channels": 1.5}, "out_channels"),
        ({"filters": {"kernel_size": 4}}, "kernel_size must be odd"),
        ({"filters": {"edge": 5}}, "filters must be a ScaleFilters.*'edge'"),
        ({"filters": ScaleFilters(spacing=(1.0, 2.0))}, "spacing must be one number"),
        ({"stride": 0}, "stride must be"),
        ({"padding": -1}, "padding must be"),
        ({"scale_size": 4}, "scale_size must be"),
        ({"scale_size": 0}, "scale_size must be"),
        ({"spatial_dims": 1}, "spatial_dims"),
    ],
)
def test_ill_convolution_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ScaleGroupConv(**{"spatial_dims": 3, "in_channels": 2, "out_channels": 2, "filters": FILTERS, **change})


@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 2})])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_norm_treats_every_scale_as_a_sample_without_a_copy(norm, spatial_dims):
    x = features(spatial_dims).float()
    layer = ScaleNorm(spatial_dims, 4, norm)
    expected = layer.layer(x.reshape(-1, *x.shape[2:])).reshape(x.shape)
    layer.train()
    torch.testing.assert_close(layer(x), expected)
    seen = []
    probe = nn.Identity()
    probe.register_forward_pre_hook(lambda _, args: seen.append(args[0].data_ptr()))
    PerScale(probe)(x)
    assert seen == [x.data_ptr()]


def test_convolution_output_folds_without_a_copy():
    y = ScaleGroupConv(3, 4, 4, FILTERS, bias=False)(features().float())
    assert y.flatten(0, 1).data_ptr() == y.data_ptr()
    assert y.flatten(1, 2).data_ptr() == y.data_ptr()


def test_dropout_drops_channels_at_all_scales():
    x = torch.ones(2, 3, 200, 2, 2, 2)
    y = ScaleDropout(0.5)(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y == y[:, :1, :, :1, :1, :1]).all()
    assert 120 < (y[:, 0, :, 0, 0, 0] == 0).sum() < 280
    assert ScaleDropout(0.5).eval()(x) is x
    with pytest.raises(ValueError, match="between 0 and 1"):
        ScaleDropout(1.5)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_pooling(pool):
    x = features().float()
    expected = {"max": F.max_pool3d, "avg": F.avg_pool3d}[pool](x.flatten(0, 1), 2).reshape(2, 3, 4, 4, 4, 4)
    torch.testing.assert_close(ScalePool(3, (pool, {"kernel_size": 2}))(x), expected)


def test_pointwise_convolution_is_the_same_at_every_scale():
    layer = ScalePointwiseConv(3, 4, 2)
    x = features().float()
    for s in range(len(SCALES)):
        torch.testing.assert_close(layer(x)[:, s], layer(x[:, s : s + 1])[:, 0])


@pytest.mark.parametrize(("factor", "sizes"), [(2, [5, 5, 5]), ((1, 2, 3), [9, 5, 3])])
def test_resampling_goes_down_and_back_to_any_size(factor, sizes):
    x = features()
    down = ScaleDownsample(3, SCALES, factor).double()(x)
    assert list(down.shape[3:]) == sizes
    up = ScaleUpsample(3, factor)(down, [9, 9, 9])
    assert up.shape == x.shape
    ones = torch.ones_like(x)
    down = ScaleDownsample(3, SCALES, factor).double()(ones)
    torch.testing.assert_close(ScaleUpsample(3, factor)(down, [9, 9, 9]), ones)


def test_downsampling_blurs_in_proportion_to_the_scale():
    impulse = torch.zeros(1, 1, 1, 33, 33, dtype=torch.float64)
    impulse[..., 16, 16] = 1
    y = ScaleDownsample(2, (1.0, 0.5), factor=(1, 2), sigma=1.0).double()(impulse)[0, :, 0, 16]  # (S, W)
    positions = torch.arange(17, dtype=torch.float64) * 2 + 0.5 - 16
    variance = (y * positions**2).sum(-1) / y.sum(-1)
    torch.testing.assert_close(variance, torch.tensor([4.0, 1.0], dtype=torch.float64), atol=1e-2, rtol=0)


def test_downsampling_suppresses_what_the_coarse_grid_cannot_hold():
    checkerboard = (torch.arange(32) % 2 * 2.0 - 1).expand(1, 1, 1, 32, 32)
    assert ScaleDownsample(2, SCALES)(checkerboard)[..., 2:-2].abs().max() < 0.05
    assert checkerboard[..., ::2].abs().max() == 1  # a bare stride turns it into a constant


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resampling_in_half_precision_keeps_its_positions(dtype):
    x = torch.linspace(0, 1, 600).reshape(1, 1, 1, 1, 600)
    down = ScaleDownsample(2, (1.0,), (1, 2))
    up = ScaleUpsample(2, (1, 2))
    expected = up(down(x), [1, 600])
    half = up(down.to(dtype)(x.to(dtype)), [1, 600]).float()
    assert (half - expected).abs().max() < 0.01  # counting voxels in bfloat16 is wrong by 0.002 per voxel beyond 256


def test_ill_resampling_arguments():
    with pytest.raises(ValueError, match="factor must be"):
        ScaleDownsample(3, SCALES, 0)
    with pytest.raises(ValueError, match="scales must hold"):
        ScaleDownsample(3, (), 2)
    with pytest.raises(ValueError, match="sigma must be"):
        ScaleDownsample(3, SCALES, 2, sigma=0.0)
    with pytest.raises(ValueError, match="size must have one number"):
        ScaleUpsample(2)(torch.rand(1, 1, 1, 4, 4), [8])


def test_layer_factories_build_by_name():
    x = features().float()
    assert Conv["SCALE_GROUP", 3](4, 2, filters={"scales": SCALES})(x).shape == (2, 3, 2, 9, 9, 9)
    assert Conv["scale_lifting", 2](1, 2)(torch.rand(1, 1, 6, 6)).shape == (1, 4, 2, 6, 6)
    assert Conv["SCALE_POINTWISE", 3](4, 2)(x).shape == (2, 3, 2, 9, 9, 9)
    assert Norm["SCALE_BATCH", 3](4)(x).shape == x.shape
    assert Pool["SCALE_MAX", 3](kernel_size=2)(x).shape == (2, 3, 4, 4, 4, 4)
    assert Dropout["SCALE_DROPOUT", 3](0.1)(x).shape == x.shape
    assert isinstance(Act["SILU"](), nn.SiLU)
