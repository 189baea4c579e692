"""Hermite-Gaussian filters in one dimension, fitted to a few taps."""

from functools import lru_cache

import numpy as np
import torch

# The fit trusts low frequencies most, because the spectrum of medical images falls steeply with frequency.
_FREQUENCIES = 2049
_WEIGHT_FLOOR = 0.01


def _sampled_filters(offsets: np.ndarray, sigma: float, max_order: int) -> np.ndarray:
    gaussian = np.exp(-(offsets**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    orders = np.eye(max_order + 1)
    return np.stack([gaussian * np.polynomial.hermite_e.hermeval(offsets / sigma, c) for c in orders])


def _least_squares_filters(offsets: np.ndarray, sigma: float, max_order: int) -> np.ndarray:
    omega = np.linspace(-np.pi, np.pi, _FREQUENCIES)
    root_weight = 1 / np.sqrt(omega**2 + _WEIGHT_FLOOR)
    envelope = np.exp(-(sigma**2) * omega**2 / 2)
    waves = np.exp(-1j * np.outer(omega, offsets)) * root_weight[:, None]  # (frequency, tap)
    system = np.concatenate([waves.real, waves.imag])
    filters = []
    for order in range(max_order + 1):
        # He_n(x/s) g_s(x) is (-s d/dx)^n g_s(x), whose Fourier transform is the product below.
        target = (-1j * sigma * omega) ** order * envelope * root_weight
        filters.append(np.linalg.lstsq(system, np.concatenate([target.real, target.imag]), rcond=None)[0])
    return np.stack(filters)


METHODS = ("least_squares", "sampled")


def hermite_gaussian_filters(
    kernel_size: int, sigma: float, max_order: int, method: str = "least_squares"
) -> torch.Tensor:
    r"""Filters (max_order + 1, kernel_size) for :math:`He_n(x/\sigma)\, g_\sigma(x)`, in float64.

    :math:`g_\sigma` is the Gaussian of unit mass (the :math:`\sigma^{-d}` measure of the scale-translation group).

    Args:
        kernel_size: number of taps, odd or even; the grid is always centred.
        sigma: standard deviation of the Gaussian in voxels.
        max_order: highest order of the Hermite-E polynomial.
        method: ``"least_squares"`` chooses the taps whose spectrum is closest to the continuous one on the whole
            band, weighted by 1/(w^2 + 0.01); ``"sampled"`` reads the function off at the taps, as the paper does.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> hermite_gaussian_filters(kernel_size=5, sigma=1.0, max_order=2).shape
        torch.Size([3, 5])
    """
    if kernel_size < 1 or sigma <= 0 or max_order < 0:
        raise ValueError(
            "kernel_size must be at least 1, sigma above 0 and max_order at least 0, "
            f"got kernel_size={kernel_size}, sigma={sigma}, max_order={max_order}."
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    return _filters(int(kernel_size), float(sigma), int(max_order), method).clone()


@lru_cache(maxsize=512)  # the layers of a network ask for the same few over and over
def _filters(kernel_size: int, sigma: float, max_order: int, method: str) -> torch.Tensor:
    offsets = np.arange(kernel_size) - (kernel_size - 1) / 2
    make = _sampled_filters if method == "sampled" else _least_squares_filters
    return torch.from_numpy(make(offsets, sigma, max_order))
