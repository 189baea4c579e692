"""Filters and resampling matrices against slow, obvious computations."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.data import MetaTensor
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_scaleequiv.maths import (
    ScaleFilters,
    as_ratio,
    gaussian_downsampling_matrix,
    hermite_gaussian_basis,
    hermite_gaussian_filters,
    linear_upsampling_matrix,
    resample_axis,
    sampled_gaussian_width,
)
from monai_scaleequiv.maths import _rescaling as rescaling


def resampling_matrix(size: int, target: int, step: float | None = None, smoothing: float = 0.0) -> torch.Tensor:
    """What resampling does to each sample of an axis alone."""
    numerator, denominator = (size, target) if step is None else as_ratio(step)
    return resample_axis(torch.eye(size, dtype=torch.float64), 0, target, numerator, denominator, smoothing)


def spectrum_error(filters: torch.Tensor, sigma: float) -> float:
    """Weighted distance of the filters' spectra from the continuous ones."""
    omega = np.linspace(-np.pi, np.pi, 501)
    taps = np.arange(filters.shape[1]) - (filters.shape[1] - 1) / 2
    spectra = filters.numpy() @ np.exp(-1j * np.outer(taps, omega))
    orders = np.arange(len(filters))[:, None]
    exact = (-1j * sigma * omega) ** orders * np.exp(-(sigma**2) * omega**2 / 2)
    return float((np.abs(spectra - exact) ** 2 / (omega**2 + 0.01)).mean())


def test_sampled_filters_are_the_formula():
    sigma = 1.3
    x = np.arange(-3, 4)
    gaussian = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    expected = np.stack([gaussian, x / sigma * gaussian, ((x / sigma) ** 2 - 1) * gaussian])
    np.testing.assert_allclose(hermite_gaussian_filters(7, sigma, 2, "sampled"), expected, atol=1e-14)


@pytest.mark.parametrize("kernel_size", [4, 5, 7])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.3])
def test_least_squares_filters_are_closer_to_the_continuous_ones(kernel_size, sigma):
    fitted = hermite_gaussian_filters(kernel_size, sigma, 2)
    sampled = hermite_gaussian_filters(kernel_size, sigma, 2, "sampled")
    assert spectrum_error(fitted, sigma) < spectrum_error(sampled, sigma)


def test_least_squares_converges_to_the_function_on_wide_kernels():
    fitted = hermite_gaussian_filters(15, 1.5, 2)
    torch.testing.assert_close(fitted, hermite_gaussian_filters(15, 1.5, 2, "sampled"), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("spatial_dims", "functions"), [(2, 6), (3, 10)])
def test_basis_is_complete_and_symmetric_in_the_axes(spatial_dims, functions):
    basis = hermite_gaussian_basis({"scales": (1.0, 0.8)}, spatial_dims)
    assert basis.shape == (functions, 2, *[5] * spatial_dims)
    swapped = basis.transpose(2, 3)
    for function in basis:  # exchanging two axes permutes the functions
        assert (swapped - function).flatten(1).abs().amax(dim=1).min() < 1e-12


def test_basis_does_not_depend_on_the_order_of_scales():
    basis = hermite_gaussian_basis({"scales": (1.0, 0.9, 0.7)})
    torch.testing.assert_close(hermite_gaussian_basis({"scales": (0.7, 1.0, 0.9)}), basis[:, [2, 0, 1]])


def test_basis_with_a_kernel_size_per_axis():
    assert hermite_gaussian_basis(ScaleFilters((1.0,), kernel_size=(5, 7, 3))).shape == (10, 1, 5, 7, 3)


@pytest.mark.parametrize(("sigma", "extent"), [(0.3, 3), (1.0, 7), (1.25, 9), (1.6, 9)])
def test_extent_follows_from_sigma(sigma, extent):
    assert hermite_gaussian_basis(ScaleFilters((1.0, 0.8), sigma, kernel_size=None), 2).shape == (6, 2, extent, extent)


@pytest.mark.parametrize(
    ("kernel_size", "spacing", "extent"),
    [(5, 0.5, 11), (5, 0.75, 7), (7, 1.4, 7), (5, 3.0, 9), (11, 3.0, 11), (None, 3.0, 9), (None, 0.5, 11)],
)
def test_extent_at_another_spacing(kernel_size, spacing, extent):
    filters = ScaleFilters((1.0,), 1.0, kernel_size=kernel_size, spacing=(1.0, spacing))
    basis = hermite_gaussian_basis(filters, 2)
    assert list(basis.shape[2:]) == [kernel_size or 7, extent]


@pytest.mark.parametrize("method", ["sampled", "least_squares"])
def test_basis_is_the_same_function_on_voxels_of_another_size(method):
    """Values of the function at spacing 1, times the voxel's length: then a sum over voxels is the same integral."""
    args = {"scales": (1.0, 0.9), "sigma": 3.0, "max_order": 3, "kernel_size": 25, "method": method}
    fine = hermite_gaussian_basis(args, 2)
    coarse = hermite_gaussian_basis({**args, "spacing": (1.0, 2.0)}, 2)[..., 6:-6]
    tolerance = 1e-14 if method == "sampled" else 3e-3  # the fit gives way at the kernel's edge
    torch.testing.assert_close(coarse, 2 * fine[..., ::2], atol=tolerance, rtol=0)
    assert (coarse - fine[..., ::2]).abs().max() > 0.01  # without the voxel's length


@pytest.mark.parametrize("sigma", [0.2, 0.4, 0.7, 1.5])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_sampled_gaussian_has_the_variance_asked_for(sigma, offset):
    width = sampled_gaussian_width(sigma, offset)
    positions = np.arange(-30, 30) + offset
    taps = np.exp(-(positions**2) / (2 * width**2))
    variance = (taps * positions**2).sum() / taps.sum()
    assert variance == pytest.approx(max(sigma**2, offset**2), abs=1e-6)
    if sigma == 0.4 and offset == 0:
        assert abs(width - sigma) > 0.05


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, 1.0, 2), "kernel_size must be"),
        ((5, 0.0, 2), "sigma"),
        ((5, 1.0, -1), "max_order"),
        ((5, 1.0, 2, "guess"), "method must be one of"),
    ],
)
def test_ill_filter_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        hermite_gaussian_filters(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scales": ()}, "scales must hold"),
        ({"scales": (1.0, -1.0)}, "scales must hold"),
        ({"scales": (1.0, "0.9")}, "scales must hold"),
        ({"sigma": 0.0}, "sigma must be"),
        ({"sigma": math.nan}, "sigma must be"),
        ({"max_order": -1}, "max_order must be"),
        ({"max_order": 1.5}, "max_order must be"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": (5, 1, 5)}, "kernel_size must be odd"),
        ({"method": "dilated"}, "method must be one of"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing must be one number"),
        ({"spacing": math.inf}, "spacing must be one number"),
        ({"width": 1}, "filters must be a ScaleFilters.*'width'"),
        (3, "filters must be a ScaleFilters"),
    ],
)
def test_ill_filters(args, message):
    with pytest.raises(ValueError, match=message):
        ScaleFilters.of(args)


def test_ill_basis_arguments():
    with pytest.raises(ValueError, match="spatial_dims must be"):
        hermite_gaussian_basis(spatial_dims=4)
    with pytest.raises(ValueError, match="spacing must be one number"):
        hermite_gaussian_basis({"spacing": (1.0, 2.0)})


def test_equal_filters_are_equal_however_they_are_spelt():
    spelt = {"scales": [1, 0.9], "sigma": 1, "kernel_size": [5, 5, 7], "spacing": torch.tensor([1.0, 1.0, 2.5])}
    filters = ScaleFilters.of(spelt)
    assert filters == ScaleFilters((1.0, 0.9), 1.0, kernel_size=(5, 5, 7), spacing=(1, 1, 2.5))
    assert hash(filters) == hash(ScaleFilters.of(vars(filters)))
    assert ScaleFilters.of(filters) is filters
    assert ScaleFilters.of(None) == ScaleFilters()
    assert json.loads(json.dumps(vars(filters))) == {**vars(filters), "scales": [1.0, 0.9], "kernel_size": [5, 5, 7],
                                                     "spacing": [1.0, 1.0, 2.5]}  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        filters.sigma = 2.0


@pytest.mark.parametrize("factor", [2, 3])
def test_downsampling_matrix_is_a_gaussian_filter_with_a_stride(factor):
    size, sigma = 61, 1.1
    signal = np.random.default_rng(0).standard_normal(size)
    matrix = gaussian_downsampling_matrix(size, factor, [sigma], like=torch.zeros(0, dtype=torch.float64))[0]
    rows = np.arange(matrix.shape[0])
    centres = factor * rows + (factor - 1) / 2
    expected = []
    for centre in centres:
        weights = np.exp(-((np.arange(size) - centre) ** 2) / (2 * sigma**2))
        expected.append((weights * signal).sum() / weights.sum())
    np.testing.assert_allclose(matrix.numpy() @ signal, expected, atol=1e-12)
    if factor % 2:  # then the centres are voxels, and the inner ones can be compared with scipy's filter
        filtered = scipy.ndimage.gaussian_filter1d(signal, sigma, truncate=8.0)[centres[5:-5].astype(int)]
        np.testing.assert_allclose((matrix.numpy() @ signal)[5:-5], filtered, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_downsampling_keeps_constants_also_at_the_borders(size):
    matrix = gaussian_downsampling_matrix(size, 2, [0.5, 1.0], like=torch.zeros(0, dtype=torch.float64))
    assert matrix.shape == (2, math.ceil(size / 2), size)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, math.ceil(size / 2), dtype=torch.float64))


@pytest.mark.parametrize(("size", "factor", "target"), [(4, 2, 8), (4, 2, 7), (3, 3, 8), (1, 2, 1)])
def test_upsampling_matrix_is_torchs_interpolation(size, factor, target):
    x = torch.randn(1, 1, size, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(x, scale_factor=float(factor), mode="linear")[0, 0, :target]
    matrix = linear_upsampling_matrix(size, factor, target, like=x)
    torch.testing.assert_close(matrix @ x[0, 0], expected)


def test_resampling_is_spoilt_by_no_earlier_call_of_another_kind():
    """Matrices are kept between calls: first under inference mode, fake tensors, export and so on, then plainly."""

    def run(x: torch.Tensor) -> torch.Tensor:
        return resample_axis(x, 2, 13, 2, 3, 0.5)

    x = torch.rand(2, 3, 8, 7)
    kept = rescaling._kept
    kept.clear()
    expected = run(x.double()).float()
    module = torch.nn.Module()
    module.forward = run

    def fake():
        with FakeTensorMode() as mode:
            return run(mode.from_tensor(x))

    kinds = {
        "inference mode": lambda: torch.inference_mode()(run)(x),
        "fake tensors": fake,
        "export": lambda: torch.export.export(module, (x,)),
        "compile": lambda: torch.compile(run, backend="eager")(x),
        "trace": lambda: torch.jit.trace(run, x),
        "meta": lambda: run(x.to("meta")),
        "half": lambda: run(x.bfloat16()),
        "functional": lambda: torch.func.vmap(run)(x[None]),
        "metatensor": lambda: run(MetaTensor(x)),
    }
    for kind, call in kinds.items():
        kept.clear()
        call()
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        assert type(y) is torch.Tensor, kind
        torch.testing.assert_close(y, expected, msg=kind)
        y.square().sum().backward()  # a tensor of inference mode could not be kept for this
        assert leaf.grad.isfinite().all(), kind
    assert kept  # that is, kept between plain calls
    assert all(type(m) is torch.Tensor for m in kept.values())
    for size in range(1, 200):
        resample_axis(torch.ones(1, 1, size), 2, 3, size, 3)
    assert len(kept) <= 128


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_resampling_of_one_axis(axis):
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    matrix = resampling_matrix(x.shape[axis], 9, step=0.5)
    expected = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    torch.testing.assert_close(resample_axis(x, axis, 9, 1, 2), expected, atol=1e-12, rtol=0)
    assert resample_axis(x, axis, x.shape[axis], 1, 1) is x


def test_axes_that_shrink_most_are_resampled_first(monkeypatch):
    x = torch.randn(1, 1, 6, 8, 5, dtype=torch.float64)
    size, steps = [12, 3, 5], [(1, 2), (8, 3), (1, 1)]
    expected = x
    for axis in range(3):
        expected = resample_axis(expected, 2 + axis, size[axis], *steps[axis])
    order = []
    monkeypatch.setattr(rescaling, "resample_axis", lambda *args: order.append(args[1]) or resample_axis(*args))
    torch.testing.assert_close(rescaling.resample_axes(x, size, steps), expected, atol=1e-12, rtol=0)
    assert order == [3, 4, 2]
