"""Weights from a file that may hold tensors and nothing else."""

import hashlib
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike
from torch import nn

Device = str | torch.device | None


def weights_digest(path: PathLike) -> str | None:
    """The sha256 of a file of weights, by which label maps tell what made them; None where there is no file.

    Example::

        >>> weights_digest("no/such/model.pt")
    """
    if not Path(path).is_file():
        return None
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_weights(network: nn.Module, path: PathLike, map_location: Device = None, new_head: bool = False) -> list[str]:
    """Loads a network's weights, as they are or as other programs wrap them.

    Args:
        network: takes the weights; of a wrapper for parallel training, the network in it.
        path: a state dict, or a checkpoint with one under ``state_dict``, ``network``, ``model`` or ``net``; names may
            begin with ``module.`` or whatever else is in front of all of the network's names.
        map_location: see ``torch.load``.
        new_head: whether parameters of another shape for another number of classes keep their values: those whose
            first axis alone differs; where the network says its ``out_channels``, by that number, and others with
            them that differ by it, as the layers of the last block of MONAI's UNet do.

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
    network = unwrapped(network)
    wanted, found = network.state_dict(), read_weights(path, map_location)
    while entry := [found[k] for k in ("state_dict", "network", "model", "net") if isinstance(found.get(k), Mapping)]:
        found = entry[0]
    found = _without_prefix(found, wanted)
    shapes = {name: (tuple(getattr(found.get(name), "shape", ())), tuple(wanted[name].shape)) for name in wanted}
    # Layers take older shapes, too, in which the axes behind the channels are joined.
    joined = {name: [(*shape[:2], math.prod(shape[2:])) for shape in pair] for name, pair in shapes.items()}
    other = [name for name, (old, new) in joined.items() if name in found and old != new]
    kept = _of_head({name: joined[name] for name in other}, network) if new_head else []
    parts = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [str(name) for name in found if name not in wanted],
        "of another shape": ["{} of {} instead of {}".format(n, *shapes[n]) for n in other if n not in kept],
    }
    if any(parts.values()):
        got = "; ".join(f"{len(n)} {kind}: {', '.join(n[:2])}{' ...' * (len(n) > 2)}" for kind, n in parts.items() if n)
        hint = "choose the network_def that they were trained with"
        raise ValueError(f"{path}: expected weights of this {type(network).__name__}, got others ({got}); {hint}.")
    network.load_state_dict({**found, **{name: wanted[name] for name in kept}})
    return kept


def _of_head(shapes: Mapping[str, Sequence[tuple[int, ...]]], network: nn.Module) -> list[str]:
    """The parameters whose old and new shapes differ by the number of classes alone."""
    while isinstance(inner := getattr(network, "network", None), nn.Module):  # as a pyramid has it
        network = inner
    classes = getattr(network, "out_channels", None)
    first = [n for n, (old, new) in shapes.items() if old[1:] == new[1:] and classes in (None, new[0])]
    numbers = {(shapes[n][0][0], classes) for n in first}
    if len(numbers) > 1 and classes is not None:  # other layers happen to have as many channels
        return []
    rest = [n for n, (old, new) in shapes.items() if n not in first and len(old) == len(new)]
    return first + [n for n in rest if {(a, b) for a, b in zip(*shapes[n], strict=True) if a != b} <= numbers]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network in a wrapper for parallel training."""
    return network.module if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else network


def _without_prefix(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries under the one prefix that has all names of the network behind it, if there is one."""
    first = next(iter(wanted), "")
    prefixes = [str(name)[: -len(first)] for name in found if first and str(name).endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in found for name in wanted)]
    if found.keys() & wanted.keys() or len(whole) != 1:
        return found
    return {str(name).removeprefix(whole[0]): value for name, value in found.items() if str(name).startswith(whole[0])}


def read_weights(path: PathLike, map_location: Device = None) -> Mapping[str, Any]:
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
    if is_zip and (damage := file_finding(path)):
        raise ValueError(f"{path}: {damage}; copy it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an unusual pickle protocol, beside the error
            state = torch.load(path, map_location=map_location, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged pickle makes of it
        call = re.search(r"GLOBAL (\S+)", str(error))
        text = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:120]})"
        got = f"a pickle that calls {call[1]}" if call else f"other objects, or a damaged file{text}"
        raise ValueError(f"{path}: expected plain weights, got {got}; ask for a state dict of tensors.") from None
    if not isinstance(state, Mapping):
        hint = "save network.state_dict() instead"
        raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}; {hint}.")
    if not is_zip:
        warnings.warn(f"{path} is in the format of torch before 1.6, without checksums; save it again.", stacklevel=2)
    return state


def file_finding(path: PathLike) -> str:
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
