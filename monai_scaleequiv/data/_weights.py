"""Weights from a file that may hold tensors and nothing else."""

import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

GLOBAL = re.compile(r"GLOBAL (\S+)")
ENTRIES = ("state_dict", "network", "model", "net")


def load_weights(
    network: nn.Module,
    path: str | os.PathLike,
    map_location: str | torch.device | None = None,
    new_head: bool = False,
) -> list[str]:
    """Loads a network's weights, as they are or as other programs wrap them.

    They may lie under ``state_dict``, ``network``, ``model`` or ``net``, and their names begin with ``module.``,
    ``net.`` or whatever else is in front of all of the network's names.

    Args:
        network: takes the weights; of a wrapper for parallel training, the network in it.
        path: a state dict, or a checkpoint that has it as an entry.
        map_location: see ``torch.load``.
        new_head: whether parameters whose first axis alone differs, for another number of classes, keep their values.

    Returns:
        names of the parameters that kept their values.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: in one line, when it holds anything but weights of this network.

    Example::

        >>> torch.save({"state_dict": {"net.weight": torch.ones(2, 3), "net.bias": torch.ones(2)}}, "linear.pt")
        >>> load_weights(nn.Linear(3, 4), "linear.pt", new_head=True)
        ['weight', 'bias']
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    found: Mapping[str, Any] = read_weights(path, map_location)
    while entry := next((found[key] for key in ENTRIES if isinstance(found.get(key), Mapping)), None):
        found = entry
    wanted = network.state_dict()
    found = _without_prefix(found, wanted)
    kept = []
    for name in [name for name in wanted if new_head and name in found]:
        old, new = (getattr(state[name], "shape", ()) for state in (found, wanted))
        if old and new and old[0] != new[0] and _flat(old)[1:] == _flat(new)[1:]:
            kept.append(name)
    found = {name: value for name, value in found.items() if name not in kept}
    _check(found, {name: value for name, value in wanted.items() if name not in kept}, path, type(network).__name__)
    network.load_state_dict({**found, **{name: wanted[name] for name in kept}})
    return kept


def _without_prefix(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries under the one prefix that has all names of the network behind it, if there is one."""
    if not wanted or found.keys() & wanted.keys():
        return found
    first = next(iter(wanted))
    prefixes = [str(key)[: -len(first)] for key in found if str(key).endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in found for name in wanted)]
    if len(whole) != 1:
        return found
    return {str(key)[len(whole[0]) :]: value for key, value in found.items() if str(key).startswith(whole[0])}


def _check(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], path: str | os.PathLike, name: str) -> None:
    shapes = {key: (getattr(found[key], "shape", ()), wanted[key].shape) for key in wanted if key in found}
    other = [key for key, (old, new) in shapes.items() if _flat(old) != _flat(new)]
    missing, surplus = [key for key in wanted if key not in found], [str(key) for key in found if key not in wanted]
    parts = [f"{len(missing)} missing ({_few(missing)})"] * bool(missing)
    parts += [f"{len(surplus)} unknown ({_few(surplus)})"] * bool(surplus)
    for key in other[:1]:
        old, new = map(tuple, shapes[key])
        parts.append(f"{len(other)} of another shape ({key} of {old} instead of {new})")
    if parts:
        raise ValueError(
            f"{path}: expected weights of this {name}, got others: {', '.join(parts)}; choose the network_def that "
            "they were trained with."
        )


def _flat(shape: Sequence[int]) -> list[int]:
    """A shape as far as every version of a layer has it: what lies behind the channels may be joined to one axis."""
    return [*shape[:2], math.prod(shape[2:])]


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + " ..." * (len(names) > 2)


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
    is_zip = zipfile.is_zipfile(path)
    damage = file_finding(path) if is_zip else ""
    if damage:
        raise ValueError(f"{path}: {damage}; copy it again.")
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
        text = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: expected plain weights, got a damaged file ({text}); copy it again.") from None
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path}: expected a state dict, got {type(state).__name__}; save network.state_dict() instead."
        )
    if not is_zip:
        warnings.warn(f"{path} is in the format of torch before 1.6, without checksums; save it again.", stacklevel=2)
    return state


def file_finding(path: str | os.PathLike) -> str:
    """What is wrong with a file of ``torch.save``, nothing if it is whole. Nothing in it is unpickled.

    ``torch.load`` does not compare checksums, and takes a weight with a flipped bit for another weight.

    Example::

        >>> torch.save({}, "whole.pt")
        >>> file_finding("whole.pt")
        ''
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        return f"expected a whole checkpoint, got a damaged one ({error})"
    return f"expected a whole checkpoint, got one damaged at {member}" if member else ""
