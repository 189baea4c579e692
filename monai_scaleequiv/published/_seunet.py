"""The published scale-equivariant U-Net, and the loading of its checkpoints."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_scaleequiv.layers import check_image
from monai_scaleequiv.published._basis import published_basis
from monai_scaleequiv.published._blocks import ACTIVATIONS, Stride, conv_unit, unet_level

_PROJECTIONS = {"max": "max", "avg": "mean"}
# Arguments of the published constructor that do not change what the network computes.
_TRAINING_ONLY = ("lr", "data_params")


class PublishedSEUNet(nn.Module):
    """The scale-equivariant U-Net of Wimmer et al. 2023, with the published arguments and defaults.

    It computes what the published code computes, its defects included: unpadded strided convolutions (an axis comes
    back at its own size only if a size of 5 modulo 8 fits its three strides), transposed convolutions, statistics of
    the batch also in evaluation. For new models use :py:class:`monai_scaleequiv.SEUNet`.

    ``in_channels``, ``out_channels``, ``channels``, ``strides``, ``bias`` and ``dropout`` are as in MONAI's networks.
    ``kernel_size``, ``effective_size``, ``basis_type``, ``mult``, ``max_order`` and ``scales`` (None for a single one
    of 1) describe the filters, see :py:func:`published_basis`; ``scale_size`` neighbouring scales interact. A residual
    unit has ``num_res_units`` convolutions, at least 1 (0 crashes in the published code). ``act`` is relu, silu, leaky
    or elu; ``norm`` batch or None (the published instance normalisation cannot be trained); ``reduction`` over the
    scales at the end max or avg.

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
        for name, value, allowed in (
            ("act", act, [*ACTIVATIONS]), ("norm", norm, ["batch", None]), ("reduction", reduction, [*_PROJECTIONS])
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
        if num_res_units < 1 or len(channels) < 2 or len(strides) < len(channels) - 1:
            raise ValueError(
                "num_res_units must be at least 1, and channels have at least 2 entries and strides one fewer, got "
                f"num_res_units={num_res_units}, {len(channels)} channels and {len(strides)} strides."
            )
        basis = published_basis(kernel_size, scales or [1.0], effective_size, basis_type, False, mult, max_order)
        unit = partial(conv_unit, basis=basis, scale_size=scale_size, bias=bias, act=act, norm=norm, dropout=dropout)
        projection = _PROJECTIONS[reduction]
        self.in_channels = in_channels
        self.model = unet_level(unit, in_channels, out_channels, channels, strides, num_res_units, projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, 3, self.in_channels)
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
