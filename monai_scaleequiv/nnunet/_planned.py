"""Networks as nnU-Net builds them from a plans file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from monai_scaleequiv.nets import RepUXNet, ScalePyramid, SEUNet

TRAINERS = Path(__file__).parent / "trainers"

# What a plan says of nnU-Net's own networks, whose layers these do not have.
_OF_OTHERS = (
    "network_class_name", "n_stages", "conv_op", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage",
    "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
    "nonlin_kwargs",
)  # fmt: skip


class _Planned(torch.nn.Module):
    """The switch that nnU-Net turns, and logits of the sizes that its losses compare: those of the plan's strides."""

    deep_supervision: bool
    plan_strides: list[list[int]]
    outputs: Callable[[torch.Tensor], list[torch.Tensor]]

    @property
    def decoder(self) -> "_Planned":
        """Where nnU-Net looks for the switch, ``network.decoder.deep_supervision``."""
        return self

    def forward(self, x: torch.Tensor) -> Any:
        if not self.deep_supervision:
            y = super().forward(x)
            return y[0] if isinstance(y, list) else y
        size, answers = [float(n) for n in x.shape[2:]], []
        for y, strides in zip(self.outputs(x), self.plan_strides, strict=False):
            size = [n / s for n, s in zip(size, strides, strict=True)]
            answers.append(_resized(y, [round(n) for n in size]))
        return answers


def _resized(y: torch.Tensor, size: list[int]) -> torch.Tensor:
    return y if list(y.shape[2:]) == size else F.interpolate(y, size, mode="trilinear" if y.dim() == 5 else "bilinear")


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OF_OTHERS}


class PlannedSEUNet(_Planned, SEUNet):  # type: ignore[misc] # a plan has no spacing to give
    """:py:class:`SEUNet` as a plans file of nnU-Net describes networks, with the plan's levels and half its channels.

    Half the channels, for each is computed at every scale. A last level without strides is added, which with the last
    of the plan makes the two convolutions that nnU-Net has there. Norms are those of instances, as nnU-Net has them.

    Args:
        input_channels, num_classes: numbers of channels.
        deep_supervision: whether to give a list of logits, of all levels but the last of the plan, finest first.
            nnU-Net turns ``network.decoder.deep_supervision`` on and off.
        features_per_stage, strides: of the plan's levels, finest first.
        options: further arguments of :py:class:`SEUNet`, from the plan's ``arch_kwargs``. What those say of the layers
            of nnU-Net's own networks is passed over.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Example::

        >>> strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
        >>> net = PlannedSEUNet(1, 3, deep_supervision=True, features_per_stage=[8, 16, 32], strides=strides)
        >>> [list(y.shape) for y in net(torch.rand(1, 1, 6, 16, 16))]
        [[1, 3, 6, 16, 16], [1, 3, 6, 8, 8]]
    """

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool, features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]], **options: Any,
    ) -> None:  # fmt: skip
        channels = [max(1, n // 2) for n in [*features_per_stage, features_per_stage[-1]]]
        own: dict[str, Any] = {"norm": ("INSTANCE", {"affine": True}), "dsdepth": max(1, len(strides) - 1)}
        own |= _own(options)
        super().__init__(len(strides[0]), input_channels, num_classes, channels, strides, **own)
        self.deep_supervision, self.plan_strides = deep_supervision, [list(s) for s in strides]


class PlannedRepUXNet(_Planned, RepUXNet):
    """:py:class:`RepUXNet` as a plans file of nnU-Net describes networks, with the plan's channels at as many levels.

    Its levels halve all axes, whatever the strides of the plan; under deep supervision its logits are interpolated to
    the sizes that follow from these.

    Args:
        input_channels, num_classes: numbers of channels.
        deep_supervision: as in :py:class:`PlannedSEUNet`.
        features_per_stage, strides: of the plan's levels, finest first.
        options: further arguments of :py:class:`RepUXNet`, as in :py:class:`PlannedSEUNet`.

    Raises:
        ValueError: when an argument is out of range, or the input has another number of axes or channels.

    Example::

        >>> strides = [[1, 1], [2, 2], [2, 2]]
        >>> net = PlannedRepUXNet(1, 3, deep_supervision=False, features_per_stage=[4, 8, 16], strides=strides)
        >>> net(torch.rand(2, 1, 16, 20)).shape
        torch.Size([2, 3, 16, 20])
    """

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool, features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]], **options: Any,
    ) -> None:  # fmt: skip
        *features, lowest = features_per_stage
        depth = len(features)
        own: dict[str, Any] = {"depths": [2] * depth, "feature_size": features, "hidden_size": lowest}
        own |= {"dsdepth": depth} | _own(options)
        super().__init__(len(strides[0]), input_channels, num_classes, **own)
        self.deep_supervision, self.plan_strides = deep_supervision, [list(s) for s in strides]


class PlannedPyramid(ScalePyramid):
    """:py:class:`ScalePyramid` around a network of nnU-Net, as a plans file describes that network.

    Args:
        input_channels, num_classes: numbers of channels.
        deep_supervision: False; train with ``nnUNetTrainerNoDeepSupervision``.
        strides: of the network's levels.
        network_class_name: the network's, as in the plan.
        network_options: its further arguments, the plan's ``arch_kwargs``.

    Raises:
        ValueError: when ``deep_supervision`` is True.

    Example::

        >>> options = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]  # doctest: +SKIP
        >>> PlannedPyramid(1, 3, deep_supervision=False, **options)  # doctest: +SKIP
    """

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool, strides: Sequence[Sequence[int]],
        network_class_name: str = "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        **network_options: Any,
    ) -> None:  # fmt: skip
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        if deep_supervision:
            raise ValueError("deep_supervision must be False, got True; use -tr nnUNetTrainerNoDeepSupervision.")
        options = {"strides": strides, **network_options}
        network = get_network_from_plans(
            network_class_name, options, [], input_channels, num_classes, deep_supervision=False
        )
        divisor = torch.tensor(strides).prod(dim=0).tolist()
        super().__init__(network, spatial_dims=len(divisor), size_divisor=divisor)

    @property
    def decoder(self) -> Any:
        """Where nnU-Net sets ``deep_supervision``, False whenever it calls the network."""
        return self.network.decoder
