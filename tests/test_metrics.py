"""Rescaling against the cosine series term by term, and readings of equivariance that are known."""

import contextlib
import math

import pytest
import torch
from monai.metrics import compute_dice
from torch import nn

from monai_scaleequiv.layers import ScaleProjection
from monai_scaleequiv.maths import rescale
from monai_scaleequiv.metrics import (
    EquivarianceError,
    assert_scale_equivariant,
    check_ratios,
    consistency_dice,
    equivariance_error,
    relative_error,
    scale_shift,
)
from tests.test_maths import resampling_matrix

STEP = 10 / 9
SCALES = (1.0, 0.9, 0.81)


def by_series(signal, target, step, smoothing):
    """The cosine series of the signal, added up term by term."""
    size, values = len(signal), []
    for j in range(target):
        position = size / 2 + step * (j - (target - 1) / 2)
        value = 0.0
        for k in range(size):
            if k < size / step - 1e-9:
                share = sum(x * math.cos(math.pi * k * (i + 0.5) / size) for i, x in enumerate(signal)) / size
                damping = math.exp(-0.5 * (smoothing * step * math.pi * k / size) ** 2)
                value += (1 if k == 0 else 2) * damping * share * math.cos(math.pi * k * position / size)
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def test_matrix_is_the_cosine_series():
    cases = [(9, 10, 9 / 10), (10, 9, 10 / 9), (7, 7, 1), (6, 1, 6), (1, 4, 1 / 4)]
    for size, target, step in [*cases, (8, 5, 1.3)]:
        signal = torch.randn(size, dtype=torch.float64)
        for smoothing in (0.0, 0.7):
            expected = by_series(signal.tolist(), target, step, smoothing)
            matrix = resampling_matrix(size, target, None if (size, target, step) in cases else step, smoothing)
            torch.testing.assert_close(matrix @ signal, expected, rtol=0, atol=1e-12)


def test_rescaling_goes_axis_by_axis():
    x = torch.randn(2, 3, 5, 6, 4, dtype=torch.float64)
    matrices = [resampling_matrix(n, m, smoothing=0.4) for n, m in ((5, 7), (6, 3), (4, 4))]
    expected = torch.einsum("bcxyz,ix,jy,kz->bcijk", x, *matrices)
    torch.testing.assert_close(rescale(x, (7, 3, 4), smoothing=0.4), expected)
    torch.testing.assert_close(rescale(x[..., 0], (7, 3)), rescale(x, (7, 3, 4))[..., 0])  # same size: untouched


def test_magnifying_can_be_undone():
    x = torch.randn(1, 2, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(rescale(rescale(x, (8, 11, 7)), (5, 6, 7)), x, rtol=0, atol=1e-12)


def test_ill_rescaling_arguments():
    with pytest.raises(ValueError, match="x must have at least 3 axes"):
        rescale(torch.rand(4, 4), (5, 5, 5))
    for size, smoothing in (((5, 0), 0.0), ((5, 5), -0.1)):
        with pytest.raises(ValueError, match="sizes must be at least 1 and smoothing at least 0"):
            rescale(torch.rand(4, 4), size, smoothing)


def test_scale_shift():
    for ratio, shift in ((STEP, 1), (0.9, -1), (STEP**2, 2), (0.81, -2), (1.0, 0), (1.05, None), (0.7, None)):
        assert scale_shift(SCALES, ratio) == shift
    assert scale_shift((1.0, 0.9, 0.7), STEP) is None  # uneven steps
    assert scale_shift((1.0,), STEP) is None


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])) == 2.5
    assert relative_error(torch.ones(3), torch.ones(3)) == 0
    assert math.isnan(relative_error(torch.ones(3), torch.zeros(3)))


def smooth(spatial_dims, size=36):
    """Images without detail that a filter would see at one scale only."""
    return rescale(torch.randn(1, 1, *[size // 4] * spatial_dims), [size] * spatial_dims)


class ScaleBands(nn.Module):
    """Exactly equivariant but for the ends: at scale s what an ideal filter of width proportional to s leaves."""

    def __init__(self, project=False):
        super().__init__()
        self.scales = list(SCALES)
        self.projection = ScaleProjection("mean") if project else None

    def forward(self, x):
        orders = [torch.arange(n, dtype=torch.float64) / n for n in x.shape[2:]]
        frequency = sum(o.reshape([-1] + [1] * (x.dim() - 3 - i)) ** 2 for i, o in enumerate(orders))
        bands = []
        for scale in self.scales:
            y = transform(x.double(), inverse=False)
            bands.append(transform(y * torch.exp(-30 * scale**2 * frequency), inverse=True).to(x.dtype))
        y = torch.stack(bands, dim=1)
        return y if self.projection is None else self.projection(y)


def transform(x, inverse):
    """Cosine transform of all spatial axes, orthonormal."""
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        k = torch.arange(size, dtype=torch.float64)
        matrix = torch.cos(math.pi / size * torch.outer(k, k + 0.5)) * math.sqrt(2 / size)
        matrix[0] /= math.sqrt(2)
        matrix = matrix.T if inverse else matrix
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


@pytest.mark.parametrize(("size", "used"), [(40, STEP), (20, 5 / 9)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_identity_has_no_error(spatial_dims, size, used):
    image = torch.rand(1, 1, *[36] * spatial_dims)
    reading = equivariance_error(nn.Identity(), image, [size] * spatial_dims)
    assert reading.projected == 0
    assert (reading.interior, reading.unshifted) == (None, None)
    assert reading.ratio == pytest.approx([used] * spatial_dims)
    assert reading.floor < 1e-12 if size > 36 else reading.floor > 0.05


@pytest.mark.parametrize("size", [40, 45])
def test_error_is_the_formula(size):
    layer = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(2, 1, 36, 36)
    cut = round(0.2 * size)
    with torch.no_grad():
        found, expected = rescale(layer(image), (size, size)), layer(rescale(image, (size, size)))
    found, expected = (x[..., cut : size - cut, cut : size - cut] for x in (found, expected))
    reading = equivariance_error(layer, image, (size, size), margin=0.2)
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert reading.projected == pytest.approx(error.item(), rel=1e-5)


@pytest.mark.parametrize(("size", "target"), [(36, 40), (40, 36)])
@pytest.mark.parametrize("project", [False, True])
def test_interior_of_an_exactly_equivariant_layer(size, target, project):
    image = rescale(torch.randn(1, 1, 9, 9), (size, size))
    reading = equivariance_error(ScaleBands(project), image, (target, target), margin=0)
    assert reading.interior < 1e-9
    assert reading.unshifted > 1e-3
    assert (reading.projected is not None) == project
    if project:  # what enters and leaves at the ends of the scale axis
        assert reading.projected > 1e-4


@pytest.mark.parametrize("size", [(40, 36), (38, 38), (32, 45)])
def test_no_interior_where_the_ratio_is_no_step_of_the_scales(size):
    reading = equivariance_error(ScaleBands(), torch.randn(1, 1, 36, 40), size)
    assert reading.interior is None
    assert reading.unshifted is None


def test_no_interior_where_the_features_have_another_resolution():
    network = nn.Sequential(nn.AvgPool2d(2), ScaleBands(project=True), nn.Upsample(scale_factor=2))
    reading = equivariance_error(network, torch.randn(1, 1, 36, 36), (40, 40), scales=SCALES)
    assert reading.projected > 0
    assert reading.interior is None


def test_ordinary_convolution_fails():
    image = torch.randn(1, 1, 18, 18, 18)
    with pytest.raises(AssertionError, match="expected an error of at most"):
        assert_scale_equivariant(nn.Conv3d(1, 2, 5, padding=2), image, (20, 20, 20), 0.01, control=nn.Identity())


def test_check_that_cannot_fail_raises():
    image = torch.randn(1, 1, 36, 36)
    with pytest.raises(ValueError, match="expected a control"):
        assert_scale_equivariant(nn.Identity(), image, (40, 40), 0.01)
    for control in (nn.Sigmoid(), ScaleBands()):  # the latter's output is none that can be compared
        with pytest.raises(AssertionError, match="controls pass as well"):
            assert_scale_equivariant(nn.Identity(), image, (40, 40), 0.01, control=control)
    assert_scale_equivariant(nn.Identity(), image, (40, 40), 0.01, control=nn.Conv2d(1, 1, 5, padding=2, bias=False))


@pytest.mark.parametrize("dead", [lambda x: 0 * x, lambda x: x * math.nan])
def test_network_that_gives_nothing_fails_and_is_no_control(dead):
    image, control = torch.randn(1, 1, 36, 36), nn.Conv2d(1, 1, 5, padding=2, bias=False)
    with pytest.raises(AssertionError, match="expected an error"):
        assert_scale_equivariant(dead, image, (40, 40), 0.01, control=control)
    with pytest.raises(AssertionError, match="controls pass"):
        assert_scale_equivariant(ScaleBands(), rescale(image, (36, 36)), (40, 40), 0.01, control=dead)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("failing")


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_hooks_are_as_before(fails):
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.9).eval(), ScaleBands(project=True))
    if fails:
        network.append(Failing())
    modes = [module.training for module in network.modules()]
    statistics = network[0].running_mean.clone()
    with pytest.raises(RuntimeError, match="failing") if fails else contextlib.nullcontext():
        equivariance_error(network, torch.rand(1, 1, 9, 9), (10, 10), SCALES)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_pre_hooks for module in network.modules())
    torch.testing.assert_close(network[0].running_mean, statistics)  # measured in evaluation mode


def test_ill_arguments_and_outputs():
    for margin in (-0.1, 0.5):
        with pytest.raises(ValueError, match="margin must be"):
            equivariance_error(nn.Identity(), torch.rand(1, 1, 8, 8), (9, 9), margin=margin)
    with pytest.raises(ValueError, match="expected an output of spatial size"):
        equivariance_error(nn.MaxPool2d(2), torch.rand(1, 1, 8, 8), (10, 10))
    with pytest.raises(ValueError, match="shapes dont match"):
        EquivarianceError()(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5))
    with pytest.raises(ValueError, match="as many cases, channels and axes"):
        consistency_dice(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4))
    for ratios in ((), (1.0,), (0.8, 0), (-0.5,), (math.inf,), (math.nan,), ("0.8",), (True,)):
        with pytest.raises(ValueError, match="scales must be numbers above 0 other than 1"):
            check_ratios(ratios, "scales")


@pytest.mark.parametrize("as_list", [False, True])
def test_metric_is_the_formula(as_list):
    y_pred, y = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    expected = [(((a - b) ** 2).sum() / (b**2).sum()).item() for a, b in zip(y, y_pred, strict=True)]
    metric = EquivarianceError()
    errors = metric(y_pred=list(y_pred) if as_list else y_pred, y=list(y) if as_list else y)
    assert errors[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert metric.aggregate().item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert metric.aggregate("none").shape == (3, 1)
    assert relative_error(y[0], y_pred[0]) == pytest.approx(expected[0], rel=1e-6)


def test_metric_leaves_out_cases_without_energy():
    y_pred = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    metric = EquivarianceError(get_not_nans=True)
    errors = metric(y_pred, 2 * torch.ones(2, 1, 4, 4))
    assert math.isnan(errors[0])
    value, count = metric.aggregate()
    assert (value.item(), count.item()) == (1, 1)


def blobs(size, classes, spatial_dims=3, radius=0.6):
    """Logits with a ball of the last class inside the first."""
    grid = torch.meshgrid(*[(torch.arange(size) + 0.5) / size * 2 - 1] * spatial_dims, indexing="ij")
    inside = 8 * (radius - torch.stack(grid).norm(dim=0))
    return torch.stack([-inside, *[torch.full_like(inside, -50.0)] * (classes - 2), inside][-classes:])[None]


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_consistent_label_maps(classes, spatial_dims):
    y = blobs(16, classes, spatial_dims)
    dice = consistency_dice(rescale(y, [20] * spatial_dims), y)
    assert dice.shape == (1, 1)
    assert dice.item() > 0.97
    assert consistency_dice(y, y).item() == 1


@pytest.mark.parametrize("classes", [1, 2])
def test_inconsistent_label_maps(classes):
    y_pred, y = blobs(20, classes, radius=0.5), blobs(16, classes, radius=0.7)
    dice = consistency_dice(y_pred, y).item()
    maps = [blobs(20, 1, radius=r)[0] > 0 for r in (0.5, 0.7)]
    assert 0.3 < dice < 0.8
    assert dice == pytest.approx(compute_dice(maps[0][None], maps[1][None]).item(), abs=0.03)


def test_classes_absent_from_both_are_left_out():
    y = torch.cat([blobs(16, 3, radius=0.6), blobs(16, 3, radius=-1)])
    y_pred = torch.cat([blobs(16, 3, radius=0.6), blobs(16, 3, radius=0.6)])
    dice = consistency_dice(y_pred, y)
    # Class 1 is nowhere; class 2 is in both maps of the first case and in one of the second.
    torch.testing.assert_close(dice, torch.tensor([[math.nan, 1.0], [math.nan, 0.0]]), equal_nan=True)
    torch.testing.assert_close(consistency_dice(y, y_pred)[1], torch.tensor([math.nan, 0.0]), equal_nan=True)
    assert consistency_dice(y_pred, y, include_background=True).shape == (2, 3)
