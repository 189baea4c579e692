"""The published scale-equivariant U-Net with its module names, so that its state dicts fit, and their loading."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn

import monai_scaleequiv.layers as layers
from monai_scaleequiv.published._basis import published_basis

_PROJECTIONS = {"max": "max", "avg": "mean"}
# Arguments of the published constructor that do not change what the network computes.
_TRAINING_ONLY = ("lr", "data_params")
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": nn.LeakyReLU, "elu": nn.ELU}
MakeUnit = Callable[..., nn.Sequential]  # `_conv_unit` with what all units of one network share
Stride = Sequence[int] | int


class BatchStatisticsNorm(nn.BatchNorm3d):
    """Normalisation by the statistics of the batch at hand, also in evaluation, where the variance is unbiased."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        if not self.training:
            # (x - m) / sqrt(c v + e), c = n / (n - 1), is batch normalisation of sqrt(c) x, divided by sqrt(c); c as a
            # tensor, for an exported graph would take a number from the shape for a constant.
            count = torch.ones_like(x[:, 0]).sum()
            root = (count / (count - 1)).sqrt()
            x, weight = x * root, weight / root
        return F.batch_norm(x, None, None, weight, self.bias, training=True, eps=self.eps)


def _conv_unit(
    in_channels: int, out_channels: int, lifting: bool = False, stride: Stride = 1, is_transposed: bool = False,
    conv_only: bool = False, *, basis: torch.Tensor, scale_size: int, bias: bool, act: str, norm: str | None,
    dropout: float,
) -> nn.Sequential:  # fmt: skip
    """Convolution, norm, dropout, activation. Strided convolutions are not padded."""
    conv_type = layers.ScaleLiftingConv if lifting else partial(layers.ScaleGroupConv, scale_size=scale_size)
    options: dict[str, Any] = {"stride": stride, "bias": bias, "is_transposed": is_transposed, "basis": basis}
    conv = conv_type(3, in_channels, out_channels, padding=None if stride == 1 else 0, **options)
    unit = nn.Sequential(OrderedDict({"conv_z_h" if lifting else "conv_h_h": conv}))
    if conv_only:
        return unit
    if norm is not None:
        unit.add_module("batch_norm", layers.PerScale(BatchStatisticsNorm(out_channels)))
    if dropout > 0:
        unit.add_module("dropout", layers.ScaleDropout(dropout))
    unit.add_module(act, _ACTIVATIONS[act]())
    return unit


class PublishedResidualUnit(nn.Module):
    """Convolution units beside a shortcut that changes channels and size as they do."""

    def __init__(
        self, make_unit: MakeUnit, in_channels: int, out_channels: int, lifting: bool = False, stride: Stride = 1,
        subunits: int = 2, conv_only: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        units = [make_unit(in_channels, out_channels, lifting, stride, conv_only=conv_only)]
        units += [make_unit(out_channels, out_channels) for _ in range(1, subunits)]
        self.conv = nn.Sequential(OrderedDict((f"unit{i}", unit) for i, unit in enumerate(units)))
        self.residual: nn.Module = nn.Identity()
        if not lifting and stride == 1 and in_channels != out_channels:
            # The published bias of this layer is never added.
            self.residual = layers.ScalePointwiseConv(3, in_channels, out_channels, bias=False)
        elif stride != 1 or in_channels != out_channels:
            self.residual = make_unit(in_channels, out_channels, lifting, stride, conv_only=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.residual(x)


def _unet_level(
    make_unit: MakeUnit, in_channels: int, out_channels: int, channels: Sequence[int], strides: Sequence[Stride],
    subunits: int, projection: str | None = None,
) -> nn.Sequential:  # fmt: skip
    """One level of the U-Net around the next; ``projection`` marks the top one."""
    is_top, width, stride = projection is not None, channels[0], strides[0]
    if len(channels) > 2:
        below: nn.Module = _unet_level(make_unit, width, width, channels[1:], strides[1:], subunits)
    else:
        below = PublishedResidualUnit(make_unit, width, channels[1], subunits=subunits)
    joined = 2 * width if len(channels) > 2 else width + channels[1]
    down = PublishedResidualUnit(make_unit, in_channels, width, is_top, stride, subunits)
    up = nn.Sequential(
        make_unit(joined, out_channels, stride=stride, is_transposed=True),
        PublishedResidualUnit(make_unit, out_channels, out_channels, subunits=1, conv_only=is_top),
    )
    if projection is not None:
        up = nn.Sequential(up, layers.ScaleProjection(projection))
    return nn.Sequential(down, SkipConnection(below, dim=2), up)


class PublishedSEUNet(nn.Module):
    """The scale-equivariant U-Net of Wimmer et al. 2023, with the published arguments and defaults.

    It computes what the published code computes, its defects included: unpadded strided convolutions (few sizes come
    back), transposed convolutions, statistics of the batch also in evaluation. For new models use
    :py:class:`monai_scaleequiv.SEUNet`.

    ``in_channels``, ``out_channels``, ``channels``, ``strides``, ``bias`` and ``dropout`` are as in MONAI's networks.
    ``kernel_size``, ``effective_size``, ``basis_type``, ``mult``, ``max_order`` and ``scales`` (None for 1 alone)
    describe the filters, see :py:func:`published_basis`; ``scale_size`` neighbouring scales interact. Residual units
    have ``num_res_units`` convolutions, at least 1. ``act`` is relu, silu, leaky or elu; ``norm`` batch or None;
    ``reduction`` over the scales at the end max or avg.

    Raises:
        ValueError: when an argument is out of range.

    Example::

        >>> net = PublishedSEUNet(1, 1, (4, 8), (2,), kernel_size=5, effective_size=3, num_res_units=1)
        >>> net(torch.rand(1, 1, 17, 17, 17)).shape
        torch.Size([1, 1, 17, 17, 17])

    Source: code of Wimmer et al. 2023 (arXiv 2304.05864).
    """

    def __init__(
        self, in_channels: int, out_channels: int, channels: Sequence[int], strides: Sequence[Stride],
        scale_size: int = 1, kernel_size: int = 3, effective_size: int = 1, scales: Sequence[float] | None = None,
        bias: bool = True, basis_type: str = "single", num_res_units: int = 0, act: str = "relu",
        norm: str | None = "batch", reduction: str = "max", dropout: float = 0.0, mult: float = 1.2, max_order: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        allowed: dict[str, list[str | None]] = {"act": [*_ACTIVATIONS], "norm": ["batch", None]}
        allowed["reduction"] = [*_PROJECTIONS]
        for name, value in (("act", act), ("norm", norm), ("reduction", reduction)):
            if value not in allowed[name]:
                raise ValueError(f"{name} must be one of {allowed[name]}, got {value!r}.")
        if num_res_units < 1 or len(channels) < 2 or len(strides) < len(channels) - 1:
            got = f"got num_res_units={num_res_units}, {len(channels)} channels and {len(strides)} strides"
            raise ValueError(f"num_res_units must be at least 1, channels 2 or more and strides one fewer, {got}.")
        basis = published_basis(kernel_size, scales or [1.0], effective_size, basis_type, False, mult, max_order)
        unit = partial(_conv_unit, basis=basis, scale_size=scale_size, bias=bias, act=act, norm=norm, dropout=dropout)
        projection = _PROJECTIONS[reduction]
        self.in_channels = in_channels
        self.model = _unet_level(unit, in_channels, out_channels, channels, strides, num_res_units, projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers.check_image(x, 3, self.in_channels)
        return self.model(x)


def build_seunet(config: Mapping, state_dict: Mapping[str, Any] | None = None) -> PublishedSEUNet:
    """Builds the published network from its own arguments and loads a published checkpoint.

    Args:
        config: arguments of the published constructor by name (``hyper_parameters`` of its checkpoints).
        state_dict: published state dict, or the whole checkpoint that holds it under ``state_dict``, for a network in
            evaluation mode; None for random weights, in training mode.

    Raises:
        ValueError: when ``config`` holds an unknown argument or a value out of range.
        RuntimeError: when the weights do not fit the network.

    Example::

        >>> checkpoint = torch.load("published.ckpt", weights_only=True)  # doctest: +SKIP
        >>> net = build_seunet(checkpoint["hyper_parameters"], checkpoint)  # doctest: +SKIP
    """
    known = sorted(inspect.signature(PublishedSEUNet).parameters)
    unknown = sorted(set(config) - set(known) - set(_TRAINING_ONLY))
    if unknown:
        raise ValueError(f"config has unknown arguments {unknown}; the published network takes {known}.")
    net = PublishedSEUNet(**{k: v for k, v in config.items() if k in known})
    if state_dict is None:
        return net
    net.load_state_dict(_converted(state_dict.get("state_dict", state_dict), net))
    return net.eval()


def _converted(state_dict: Mapping[str, torch.Tensor], net: PublishedSEUNet) -> dict[str, torch.Tensor]:
    """Drops what the published network stores but does not learn or use, and renames what is wrapped here."""
    wrapped = {name.replace(".layer.", "."): name for name in net.state_dict()}
    pointwise = [name for name, own in wrapped.items() if own.endswith("residual.layer.weight")]
    unused = {name.removesuffix("weight") + "bias" for name in pointwise}
    kept = {k: v for k, v in state_dict.items() if not k.endswith(".basis") and k not in unused}
    return {wrapped.get(k, k): v for k, v in kept.items()}
