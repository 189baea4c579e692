"""Layers against slow references in float64, and what each promises."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool
from torch import nn

from monai_scaleequiv import (
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
    hermite_gaussian_basis,
    relative_error,
)
from monai_scaleequiv.metrics import assert_scale_equivariant
from monai_scaleequiv.published import published_basis

SCALES = (1.0, 0.9, 0.8)
CONV = {2: (F.conv2d, F.conv_transpose2d), 3: (F.conv3d, F.conv_transpose3d)}


def features(spatial_dims: int = 3, size: int = 9, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, len(SCALES), channels, *[size] * spatial_dims, dtype=torch.float64)


def slow_group_conv(layer: ScaleGroupConv, x: torch.Tensor) -> torch.Tensor:
    """One convolution for every scale, interaction and output channel, kernels summed function by function."""
    basis = hermite_gaussian_basis(layer.kernel_size, SCALES, layer.spatial_dims, sigma=0.95)
    convolve = CONV[layer.spatial_dims][layer.is_transposed]
    out = []
    for s in range(len(SCALES)):
        total = 0
        for j in range(layer.scale_size):
            source = x[:, min(s + j, len(SCALES) - 1)]
            weight = layer.weight[:, :, j].reshape(3, 4, -1, *[1] * layer.spatial_dims)
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
    layer = ScaleGroupConv(
        spatial_dims, 4, 3, SCALES, scale_size=scale_size, stride=stride, is_transposed=is_transposed
    )
    nn.init.normal_(layer.bias)
    x = features(spatial_dims, size=7)
    torch.testing.assert_close(layer(x), slow_group_conv(layer, x), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_lifting_equals_group_conv_on_a_repeated_image(spatial_dims, is_transposed):
    lifting = ScaleLiftingConv(spatial_dims, 2, 3, SCALES, is_transposed=is_transposed)
    group = ScaleGroupConv(spatial_dims, 2, 3, SCALES, is_transposed=is_transposed)
    group.load_state_dict({"weight": lifting.weight.detach().unsqueeze(2), "bias": lifting.bias.detach()})
    image = torch.randn(2, 2, *[8] * spatial_dims)
    repeated = image.unsqueeze(1).repeat_interleave(len(SCALES), dim=1)
    torch.testing.assert_close(lifting(image), group(repeated), atol=1e-12, rtol=0)


def blobs(size: int, magnification: float) -> torch.Tensor:
    """A sum of Gaussians, known at every size without resampling."""
    generator = torch.Generator().manual_seed(1)
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1) / magnification
    centres = (torch.rand(6, 3, generator=generator, dtype=torch.float64) - 0.5) * 12
    weights = torch.randn(6, generator=generator, dtype=torch.float64)
    distance = (grid[..., None, :] - centres).square().sum(-1)
    return (weights * torch.exp(-distance / (2 * 2.5**2))).sum(-1)[None, None]


def test_lifting_is_scale_equivariant_and_an_ordinary_comparison_is_not():
    layer = ScaleLiftingConv(3, 1, 4, scales=(1.0, 2.0), kernel_size=21, sigma=1.25, bias=False)
    small, large = layer(blobs(33, 1.0).float()), layer(blobs(65, 2.0).float())[..., ::2, ::2, ::2]
    inner = (..., slice(8, 25), slice(8, 25), slice(8, 25))

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b)[inner].square().sum() / b[inner].square().sum()).item()

    assert error(small[:, 0], large[:, 1]) < 1e-6
    assert error(small[:, 0], large[:, 0]) > 0.1  # unshifted: what a layer without scale axis would do


def stack(spatial_dims: int = 3, activation: type[nn.Module] = nn.SiLU, **args) -> nn.Sequential:
    """A lifting and two group convolutions."""
    return nn.Sequential(
        ScaleLiftingConv(spatial_dims, 1, 4, **args),
        activation(),
        ScaleGroupConv(spatial_dims, 4, 4, **args),
        activation(),
        ScaleGroupConv(spatial_dims, 4, 4, **args),
    )


def noise(size: int, slope: float = 3.5) -> torch.Tensor:
    """Periodic noise whose power falls with frequency as that of medical images does."""
    f = torch.fft.fftfreq(size) ** 2
    power = f[:, None, None] + f[:, None] + f
    amplitude = torch.where(power > 0, power, torch.inf) ** (-slope / 4)
    x = torch.fft.ifftn(torch.fft.fftn(torch.randn(size, size, size)) * amplitude).real
    return (x / x.std())[None, None]


@pytest.mark.usefixtures("float64")
def test_dilated_filters_are_exact_under_decimation():
    x = torch.randn(1, 1, 121, 121)

    def errors(method: str) -> tuple[float, float]:
        torch.manual_seed(0)
        args = {"scales": (1.0, 2.0, 4.0), "kernel_size": 3, "sigma": 0.8, "method": method}
        layers = stack(2, nn.ReLU, **args)
        large, small = layers(x)[..., ::2, ::2], layers(x[..., ::2, ::2])
        inner = (..., slice(13, -13), slice(13, -13))  # three times 4 voxels
        matched = relative_error(large[:, 1:][inner], small[:, :-1][inner])
        return matched, relative_error(large[inner], small[inner])

    matched, unshifted = errors("dilated")
    assert matched < 1e-30
    assert unshifted > 0.1
    assert errors("least_squares")[0] > 0.1


def test_stack_of_layers_is_scale_equivariant_where_the_published_filters_are_not():
    x = noise(45)
    scales = tuple(0.9**i for i in range(3))
    check = {"size": (50, 50, 50), "scales": scales, "margin": 0.25}
    reading = assert_scale_equivariant(stack(scales=scales, kernel_size=7, sigma=1.25), x, tolerance=1e-3, **check)
    assert reading.floor < 1e-4
    published = stack(scales=scales, basis=published_basis(5, scales, 3, "multi", kernel_padding=False))
    with pytest.raises(AssertionError, match="expected an error"):
        assert_scale_equivariant(published, x, tolerance=1e-3, **check)


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
        return ScaleLiftingConv(3, 1, 4, SCALES, kernel_size=None, sigma=sigma, padding=0, **spacing)

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
def test_kernels_are_cached_in_evaluation_and_follow_the_weights(layer_type):
    layer = layer_type(3, 2, 3, SCALES).eval()
    x = torch.rand(1, 2, 6, 6, 6) if layer_type is ScaleLiftingConv else torch.rand(1, 3, 2, 6, 6, 6)
    with torch.no_grad():
        first = layer._kernel()
        assert layer._kernel() is first
        layer.weight.mul_(2)
        torch.testing.assert_close(layer._kernel(), 2 * first)
        before = layer(x)
        layer.load_state_dict({"weight": torch.zeros_like(layer.weight), "bias": torch.zeros_like(layer.bias)})
        assert before.abs().max() > 0
        assert layer(x).abs().max() == 0
        layer.weight.data = torch.ones_like(layer.weight)
        assert layer(x).abs().max() > 0
        layer.weight.data.zero_()  # leaves no trace on the version counter
        assert layer(x).abs().max() == 0
        layer.weight.fill_(1.0)
        twin = copy.deepcopy(layer)
        twin.weight.zero_()
        assert twin(x).abs().max() == 0
        assert layer.double()._kernel().dtype == torch.float64
    layer.float()
    layer(x).sum().backward()  # with gradients, nothing stale stands between the weight and the loss
    assert layer.weight.grad.abs().max() > 0
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()


def test_temporary_weights_are_not_mistaken_for_one_another():
    layer = ScaleLiftingConv(3, 1, 1, SCALES, bias=False).eval()
    x = torch.rand(1, 1, 6, 6, 6)
    with torch.no_grad():
        for value in range(1, 6):  # freed and allocated again, often at the same address
            weight = torch.full_like(layer.weight, float(value))
            y = torch.func.functional_call(layer, {"weight": weight}, (x,))
            torch.testing.assert_close(y, value * torch.func.functional_call(layer, {"weight": weight / value}, (x,)))
            del weight


def test_basis_keeps_its_precision_through_single_precision():
    layer = ScaleLiftingConv(3, 1, 1, SCALES).float().double()
    exact = hermite_gaussian_basis(5, SCALES, sigma=0.95).flatten(2).transpose(0, 1)
    torch.testing.assert_close(layer.basis, exact, atol=0, rtol=0)
    assert "basis" not in layer.state_dict()


def test_autocast_rounds_the_kernel_only_once():
    layer = ScaleLiftingConv(3, 1, 4, SCALES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer._kernel().dtype == torch.float32
        assert layer(torch.rand(1, 1, 6, 6, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": 1}, "kernel_size must be odd"),
        ({"method": "guess"}, "method must be one of"),
        ({"method": "dilated"}, "whole multiples"),
        ({"spacing": 0}, "spacing must be"),
        ({"scales": ()}, "scales"),
        ({"sigma": 0.0}, "sigma"),
        ({"scale_size": 4}, "scale_size must be"),
        ({"scale_size": 0}, "scale_size must be"),
        ({"spatial_dims": 1}, "spatial_dims"),
    ],
)
def test_ill_convolution_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ScaleGroupConv(**{"spatial_dims": 3, "in_channels": 2, "out_channels": 2, "scales": SCALES, **change})


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
    y = ScaleGroupConv(3, 4, 4, SCALES, bias=False)(features().float())
    assert y.flatten(0, 1).data_ptr() == y.data_ptr()
    assert y.flatten(1, 2).data_ptr() == y.data_ptr()


def test_evaluation_does_not_depend_on_the_batch():
    layer = ScaleNorm(3, 4, "batch")
    x = features().float()
    layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_dropout_drops_channels_at_all_scales():
    x = torch.ones(2, 3, 200, 2, 2, 2)
    y = ScaleDropout(0.5)(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y == y[:, :1, :, :1, :1, :1]).all()
    assert 120 < (y[:, 0, :, 0, 0, 0] == 0).sum() < 280
    assert ScaleDropout(0.5).eval()(x) is x
    with pytest.raises(ValueError, match="p must be"):
        ScaleDropout(1.5)


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_projection(mode):
    x = features()
    expected = x.max(1).values if mode == "max" else x.mean(1)
    torch.testing.assert_close(ScaleProjection(mode)(x), expected)
    with pytest.raises(ValueError, match="mode must be"):
        ScaleProjection("median")


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


def test_metatensors_pass_through():
    x = MetaTensor(torch.rand(1, 1, 8, 8, 8), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    y = ScaleProjection()(ScaleLiftingConv(3, 1, 2, SCALES)(x))
    assert isinstance(y, MetaTensor)
    torch.testing.assert_close(y.affine, x.affine)


def test_layer_factories_build_by_name():
    x = features().float()
    assert Conv["SCALE_GROUP", 3](4, 2, scales=SCALES)(x).shape == (2, 3, 2, 9, 9, 9)
    assert Conv["scale_lifting", 2](1, 2)(torch.rand(1, 1, 6, 6)).shape == (1, 4, 2, 6, 6)
    assert Conv["SCALE_POINTWISE", 3](4, 2)(x).shape == (2, 3, 2, 9, 9, 9)
    assert Norm["SCALE_BATCH", 3](4)(x).shape == x.shape
    assert Pool["SCALE_MAX", 3](kernel_size=2)(x).shape == (2, 3, 4, 4, 4, 4)
    assert Dropout["SCALE_DROPOUT", 3](0.1)(x).shape == x.shape
    assert isinstance(Act["SILU"](), nn.SiLU)
