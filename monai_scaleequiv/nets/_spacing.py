"""A network for every voxel size, all with the same weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_scaleequiv.maths._basis import voxel_sizes

__all__: list[str] = []

_TWINS = 8


class SpacingNetwork(nn.Module):
    """Base of networks whose filters are made for one voxel size and whose weights hold for all.

    Args:
        arguments: the arguments of the subclass's constructor by name, ``spatial_dims`` and ``spacing`` among them.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self._arguments = arguments
        self.spacing = _key(arguments["spacing"], arguments["spatial_dims"])
        # Kept out of the registered modules: the twins hold no weights of their own.
        self._twins: OrderedDict[tuple[float, ...], SpacingNetwork] = OrderedDict()

    def at_spacing(self, spacing: Sequence[float] | float) -> SpacingNetwork:
        """The same network for images of another voxel size: ``net.at_spacing(image.pixdim)(image)``.

        For a batch of one voxel size, ``batch[0].pixdim``. The answer has this network's parameters and running
        statistics, the very same tensors: training either trains both. Only its filters and down-sampling factors are
        its own. The last 8 are kept; ask anew rather than hold on to one, because moving the network to another device
        or dtype leaves earlier ones behind.

        Args:
            spacing: edge of a voxel in the units of ``sigma``, one for all axes or one per axis.

        Returns:
            a network in the same mode as this one; this one itself where it has that spacing.

        Raises:
            ValueError: when a spacing is not above 0 or their number is not that of the spatial axes.
        """
        key = _key(spacing, self._arguments["spatial_dims"])
        if key == self.spacing:
            return self
        twin = self._twins.pop(key, None)
        if twin is None:
            twin = self._build_twin(key)
        self._twins[key] = twin
        if len(self._twins) > _TWINS:
            self._twins.popitem(last=False)
        _share(self, twin)
        return twin

    def _build_twin(self, spacing: tuple[float, ...]) -> SpacingNetwork:
        with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
            twin = type(self)(**{**self._arguments, "spacing": spacing})
        own = next(self.parameters())
        return twin.to(own.device, own.dtype)

    def _apply(self, fn, recurse: bool = True):
        self._twins.clear()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True):
        for twin in self._twins.values():
            twin.train(mode)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's twins would share the original's weights.
        return {**self.__dict__, "_twins": OrderedDict()}


def _key(spacing: Sequence[float] | float, spatial_dims: int) -> tuple[float, ...]:
    # What an affine matrix gives for 1 mm is 0.9999999 or 1.0000002.
    return tuple(float(f"{r:.5g}") for r in voxel_sizes(spacing, spatial_dims))


def _share(source: nn.Module, twin: nn.Module) -> None:
    """Makes the tensors of ``source`` those of ``twin``, filters aside, and its mode too, module by module."""
    for name, module in source.named_modules():
        other = twin.get_submodule(name)
        if other.training != module.training:
            other.train(module.training)  # the modules below follow in their turn
        other._parameters.update(module._parameters)
        own = module._non_persistent_buffers_set
        other._buffers.update({key: value for key, value in module._buffers.items() if key not in own})
