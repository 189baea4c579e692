"""Weights from a file that may hold tensors and nothing else."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

__all__ = ["PlainWeightsLoader", "file_fault", "read_weights"]

GLOBAL = re.compile(r"GLOBAL (\S+)")
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


class PlainWeightsLoader:
    """Loads a network's weights as an engine starts, like MONAI's ``CheckpointLoader``, from plain tensors alone.

    Such files run no code, wherever they come from. What a pickle could do besides is refused, as are weights of
    another network, in one line with the file.

    Args:
        path: a state dict, or a checkpoint that has it under ``key``.
        network: takes the weights.
        key: see ``path``.
        map_location: see ``torch.load``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds anything but weights of this network.

    Example::

        >>> PlainWeightsLoader("no.pt", torch.nn.Conv3d(1, 1, 1)).attach(Engine(print))
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: torch.nn.Module,
        key: str = "network",
        map_location: str | torch.device | None = None,
    ) -> None:
        self.path = path
        self.network = network
        self.key = key
        self.map_location = map_location

    def attach(self, engine: Engine) -> None:
        """Attaches to the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Loads the weights."""
        state = read_weights(self.path, self.map_location)
        state = state[self.key] if isinstance(state.get(self.key), Mapping) else state
        network = self.network.module if isinstance(self.network, _WRAPPERS) else self.network
        try:
            network.load_state_dict(state)
        except (AttributeError, RuntimeError, TypeError) as error:
            name, told = type(network).__name__, " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: expected weights of this {name}, got others; {told}") from None


def read_weights(path: str | os.PathLike, map_location: str | torch.device | None = None) -> Mapping[str, Any]:
    """Reads tensors from a file with ``torch.load``, never anything that would run code.

    Args:
        path: the file.
        map_location: see ``torch.load``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds other objects than tensors and containers of them, or is damaged. Checksums are
            compared; for a file in the format of torch before 1.6, which has none, a warning says so.

    Example::

        >>> read_weights("no.pt")
        Traceback (most recent call last):
        FileNotFoundError: no.pt does not exist; give another path.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give another path.")
    fault = file_fault(path) if zipfile.is_zipfile(path) else ""
    if fault:
        raise ValueError(f"{path}: {fault}; copy it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an unusual pickle protocol, beside the error
            state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = GLOBAL.search(str(error))
        got = f"a pickle that calls {found[1]}" if found else "other objects, or a damaged file"
        raise ValueError(f"{path}: expected plain weights, got {got}; ask for a state dict of tensors.") from None
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged pickle makes of it
        told = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: expected plain weights, got a damaged file ({told}); copy it again.") from None
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path}: expected a state dict, got {type(state).__name__}; save network.state_dict() instead."
        )
    if not zipfile.is_zipfile(path):
        warnings.warn(f"{path} is in the format of torch before 1.6, without checksums; save it again.", stacklevel=2)
    return state


def file_fault(path: str | os.PathLike) -> str:
    """What is wrong with a file of ``torch.save``, nothing if it is whole. Nothing in it is unpickled.

    ``torch.load`` does not compare checksums, and takes a weight with a flipped bit for another weight.

    Example::

        >>> torch.save({}, "whole.pt")
        >>> file_fault("whole.pt")
        ''
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        return f"expected a whole checkpoint, got a damaged one ({error})"
    return f"expected a whole checkpoint, got one damaged at {member}" if member else ""
