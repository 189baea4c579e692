"""How far a layer or network is from scale-equivariant: the measurement itself."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from monai_scaleequiv.layers import ScaleProjection
from monai_scaleequiv.maths import rescale

Network = Callable[[torch.Tensor], torch.Tensor]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Energy of the difference over the energy expected: 0 for equal, 2 for uncorrelated tensors, NaN over nothing."""
    return float(case_errors(found[None], expected[None]))


def case_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The same for each case of (B, ...), shape (B,), in float64."""
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    energy = expected.square().sum(dim=1)
    return (found - expected).square().sum(dim=1) / energy.masked_fill(energy == 0, torch.nan)


def scale_shift(scales: Sequence[float], ratio: float) -> int | None:
    """Number of steps along the scale axis that a magnification by ``ratio`` amounts to, or None if not a whole one.

    Example::

        >>> scale_shift((1.0, 0.9, 0.81), ratio=10 / 9), scale_shift((1.0, 0.9, 0.81), ratio=1.05)
        (1, None)
    """
    # f(T x) at scale s shows what f(x) shows at scale s / ratio.
    for shift in range(1 - len(scales), len(scales)):
        pairs = [(scales[i], scales[i + shift]) for i in range(len(scales)) if 0 <= i + shift < len(scales)]
        if all(abs(s / (t * ratio) - 1) < 1e-6 for s, t in pairs):
            return shift
    return None


@dataclass(frozen=True)
class EquivarianceReading:
    """One measurement of :py:func:`equivariance_error`; all errors are relative energies.

    Args:
        ratio: magnification of the image along each axis.
        floor: error of the rescaling alone, there and back.
        projected: error of the output; None for a layer with a scale axis.
        interior: error over the matched pairs of scales, before any projection; None where there are none.
        unshifted: control: the same over equal instead of matched scales, which a working layer must fail.

    Example::

        >>> equivariance_error(torch.nn.Sigmoid(), torch.rand(1, 1, 8, 8), size=(12, 12)).ratio
        (1.5, 1.5)
    """

    ratio: tuple[float, ...]
    floor: float
    projected: float | None
    interior: float | None = None
    unshifted: float | None = None


@torch.no_grad()
def equivariance_error(
    network: Network, image: torch.Tensor, size: Sequence[int], scales: Sequence[float] | None = None,
    margin: float = 0.1, rescaler: Callable[[torch.Tensor, Sequence[int]], torch.Tensor] = rescale,
) -> EquivarianceReading:  # fmt: skip
    r"""Relative error between rescaling first and rescaling last, :math:`\|T f(x) - f(T x)\|^2 / \|f(T x)\|^2`.

    Args:
        network: any that maps images (B, C, D, H, W) to images of the same size, or a layer that maps them to features
            (B, S, C, D, H, W), read before the last :py:class:`ScaleProjection`. Modules are in evaluation mode.
        image: images x of shape (B, C, D, H, W) or (B, C, H, W).
        size: number of voxels of each spatial axis after the rescaling T.
        scales: relative sizes along the scale axis; None takes ``network.scales`` where there are any.
        margin: share of each axis to leave out at either end, where borders rather than scale decide.
        rescaler: T as it acts on the image; outputs are compared after the ideal one.

    Raises:
        ValueError: when ``margin`` leaves nothing, or the output has neither the input's size nor a scale axis.

    Example::

        >>> equivariance_error(torch.nn.Identity(), torch.rand(1, 1, 9, 9, 9), size=(10, 10, 10)).projected
        0.0

    Source: definition as in Wimmer et al. 2023 (arXiv 2304.05864), section 3, with the rescaling made exact.
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be from 0 to below 0.5, got {margin}.")
    spatial = image.shape[2:]

    def error(found: torch.Tensor, expected: torch.Tensor) -> float:
        return relative_error(*(inner_part(x, margin, len(spatial)) for x in (found, expected)))

    rescaled = rescaler(image, size)
    ratio = tuple(m / n for n, m in zip(spatial, size, strict=True))
    floor = error(rescaler(rescaled, spatial), image)
    y, features = _observe(network, image)
    z, rescaled_features = _observe(network, rescaled)
    if y.shape[-len(spatial) :] != spatial or y.dim() - image.dim() not in (0, 1):
        raise ValueError(f"expected an output of spatial size {list(spatial)}, got shape {list(y.shape)}.")
    projected = error(rescale(y, size), z) if y.dim() == image.dim() else None
    if projected is None:
        features, rescaled_features = y, z
    scales = getattr(network, "scales", None) if scales is None else scales
    is_isotropic = max(ratio) / min(ratio) - 1 < 1e-6  # the mean of others can look like a step, or like none
    shift = scale_shift(scales, ratio[0]) if scales is not None and is_isotropic else None
    if features is None or rescaled_features is None or scales is None or not shift:
        return EquivarianceReading(ratio, floor, projected)
    if (features.shape[3:], rescaled_features.shape[3:]) != (spatial, tuple(size)):  # no voxels that match the image's
        return EquivarianceReading(ratio, floor, projected)
    moved, first, last = rescale(features, size), max(0, -shift), min(len(scales), len(scales) - shift)
    matched = rescaled_features[:, first:last]
    interior, unshifted = (error(moved[:, first + s : last + s], matched) for s in (shift, 0))
    return EquivarianceReading(ratio, floor, projected, interior, unshifted)


def assert_scale_equivariant(
    network: Network, image: torch.Tensor, size: Sequence[int], tolerance: float, control: Network | None = None,
    scales: Sequence[float] | None = None, margin: float = 0.1,
) -> EquivarianceReading:  # fmt: skip
    """Asserts that a network commutes with rescaling, and that the same check can fail.

    Measures ``network`` on ``image`` by :py:func:`equivariance_error`, with ``size``, ``scales`` and ``margin`` as
    there: before the projection where there is a scale axis, else on the output. The error may be at most
    ``tolerance``; the negative controls, the unshifted comparison and ``control``, an ordinary network that is needed
    where there is no scale axis, must each miss it by a factor of 3 or more.

    Raises:
        AssertionError: when the error is above the tolerance, or a control does not miss it.
        ValueError: when there is nothing to serve as control.

    Example::

        >>> from monai_scaleequiv import ScaleLiftingConv
        >>> image = rescale(torch.randn(1, 1, 9, 9, 9), (36, 36, 36))
        >>> layer = ScaleLiftingConv(3, 1, 2, bias=False)
        >>> reading = assert_scale_equivariant(layer, image, (40, 40, 40), tolerance=0.001, margin=0.2)
        >>> reading.interior < reading.unshifted
        True
    """
    reading = equivariance_error(network, image, size, scales, margin)
    error = reading.projected if reading.interior is None else reading.interior
    if error is None or not error <= tolerance:
        raise AssertionError(f"expected an error of at most {tolerance:.3g}, got {reading}.")
    controls = [] if reading.unshifted is None else [reading.unshifted]
    if control is not None:
        found = equivariance_error(control, image, size, margin=margin).projected
        controls.append(torch.nan if found is None else found)  # NaN passes for nothing
    if not controls:
        raise ValueError("expected a control for a network without scale axis, got None; give an ordinary network.")
    # Each by itself, because a NaN among others would slip through their minimum.
    if not all(c > 3 * tolerance for c in controls):
        raise AssertionError(f"the controls pass as well, with {controls}: the check proves nothing.")
    return reading


def _observe(network: Network, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output, and what enters the network's last projection of scales, if it has one."""
    if not isinstance(network, nn.Module):
        return network(x), None
    seen: list[torch.Tensor] = []
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(setattr, module, "training", module.training)
            if isinstance(module, ScaleProjection):
                stack.enter_context(module.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        y = network.eval()(x)
    return y, seen[-1] if seen else None


def inner_part(x: torch.Tensor, margin: float, spatial_dims: int) -> torch.Tensor:
    """What is left of the last ``spatial_dims`` axes of ``x`` without the share ``margin`` of each at either end."""
    for axis in range(x.dim() - spatial_dims, x.dim()):
        cut = round(margin * x.shape[axis])
        x = x.narrow(axis, cut, x.shape[axis] - 2 * cut)
    return x
