"""Buffers that follow from a module's arguments: in no state dict, and exact whatever happens to the module."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import nn


class DerivedBuffers(nn.Module):
    """Base of modules with constants such as filters, which are buffers but neither saved nor loaded.

    From exact values kept beside them they are filled anew after all that moves or converts the module (``to``,
    ``to_empty``, ``half``), and after weights were loaded into a module built on the meta device.

    Example::

        >>> layer = DerivedBuffers()
        >>> layer.derive_buffer("quarters", torch.linspace, 0, 1, 5)
        >>> layer.half().double().quarters
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
        >>> len(layer.state_dict())
        0
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, np.ndarray] = {}
        self.register_load_state_dict_post_hook(_follow_parameters)

    def derive_buffer(self, name: str, make: Callable[..., torch.Tensor], *args: Any) -> None:
        """Adds a buffer of the values ``make(*args)`` in the default dtype, or replaces it, in this module alone."""
        with torch.device("cpu"):  # also while the module is built on the meta device
            self._exact = {**self._exact, name: make(*args).detach().double().cpu().numpy()}
        old = self._buffers.get(name)
        if old is None:
            buffer = torch.tensor(self._exact[name], dtype=torch.get_default_dtype())
            self.register_buffer(name, buffer, persistent=False)
        else:
            self._fill(old.device, old.dtype, [name])

    def _fill(self, device: torch.device, dtype: torch.dtype, names: Iterable[str] | None = None) -> None:
        exact = {name: self._exact[name] for name in (self._exact if names is None else names)}
        filled = {name: torch.tensor(values, dtype=dtype, device=device) for name, values in exact.items()}
        self._buffers = {**self._buffers, **filled}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in self._exact:
            self._fill(self.get_buffer(name).device, self.get_buffer(name).dtype, [name])
        return self


def _follow_parameters(module: DerivedBuffers, _incompatible_keys: object) -> None:
    # Parameters that were assigned may lie on another device than the one that the module was built on.
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.is_floating_point():
        module._fill(parameter.device, parameter.dtype)
