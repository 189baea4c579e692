"""What a training leaves beside its weights, so that inference can agree with it."""

import builtins
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle.config_item import ComponentLocator
from monai.config import PathLike
from monai.utils import ensure_tuple
from torch import nn

from monai_scaleequiv.data._files import whole_file
from monai_scaleequiv.data._weights import unwrapped

OF_TRAINING = ("use_checkpoint", "train_scales")  # arguments of networks


def definition_of(network: nn.Module, out_channels: int | None = None) -> dict[str, Any]:
    """How a network was made: its class, and the constructor's arguments as its attributes of the same names have them.

    Gradient checkpointing and the scales of a training's step are left out, for they change nothing that a trained
    network computes. ``out_channels`` is for networks that do not keep theirs, such as MONAI's SegResNet, alone or in
    one of this package.

    Example::

        >>> definition_of(nn.Conv3d(1, 2, 3))["kernel_size"]
        [3, 3, 3]
    """
    network = unwrapped(network)
    names = [name for name in inspect.signature(type(network).__init__).parameters if name not in OF_TRAINING]
    arguments = {name: getattr(network, name) for name in names if hasattr(network, name)}
    parts = {name: part for name, part in arguments.items() if isinstance(part, nn.Module)}
    arguments |= {name: definition_of(part, out_channels) for name, part in parts.items()}
    if "out_channels" in names and out_channels is not None:
        arguments.setdefault("out_channels", out_channels)
    if "spatial_dims" in names and hasattr(network, "dimensions"):  # as MONAI's UNet calls it
        arguments.setdefault("spatial_dims", network.dimensions)
    name = type(network).__name__
    # Configs find classes of MONAI and its plugins by their name, those of torch by their path.
    return {"_target_": f"torch.nn.{name}" if getattr(nn, name, None) is type(network) else name, **plain(arguments)}


def plain(value: Any) -> Any:
    """A value as JSON has it, without the entries that JSON cannot hold: those are ``NotImplemented``."""
    if isinstance(value, nn.Module):
        return definition_of(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        pairs = ((str(key), plain(part)) for key, part in value.items())
        return {key: part for key, part in pairs if part is not NotImplemented}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)  # of an enumeration, too
    return value if value is None or isinstance(value, (bool, int, float)) else NotImplemented


def case_sizes(cases: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Name and bytes of the (first) image of each case, by which a record knows the cases of its training."""
    files = [Path(ensure_tuple(case["image"])[0]) for case in cases]
    return {file.name: file.stat().st_size for file in files}


def write_record(path: PathLike, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all.

    Example::

        >>> write_record("model.json", {"spacing": (1, 1, 1)})
        >>> read_record("model.pt")
        {'spacing': [1, 1, 1]}
    """
    with whole_file(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(plain(record), indent=2) + "\n", encoding="utf-8")


def read_record(ckpt_path: PathLike) -> dict[str, Any] | None:
    """The record of the training that weights come from, None where there is none.

    It is the file of the same name with ``.json``, else ``model.json`` beside it. Configs take values from it, so
    it may hold nothing that a config would run.

    Raises:
        ValueError: when the file is damaged or of another kind, or holds an expression, a reference or a ``_target_``
            that makes anything but a network.
    """
    path = Path(ckpt_path)
    for file in (path.with_suffix(".json"), path.with_name("model.json")):
        if file.is_file():
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise ValueError(f"{file}: expected the record of a training as JSON, got something else; restore it.")
            for got in _executable({key: record[key] for key in record if key != "training_cases"}):
                raise ValueError(f"{file}: expected plain values and names of networks, got {got!r:.80}; restore it.")
            return record
    return None


def _executable(value: Any, key: str = "") -> Iterator[str]:
    """What MONAI's config parser would run, import or replace, in the parts that configs take."""
    if key == "_target_" and not (isinstance(value, str) and _is_harmless(value)):
        yield str(value)
    elif isinstance(value, str) and value.lstrip().startswith(("$", "@", "%")):
        yield value
    elif isinstance(value, list):
        yield from (got for part in value for got in _executable(part))
    elif isinstance(value, dict):
        for name, part in value.items():
            if name != "_target_" and not re.fullmatch(r"[A-Za-z]\w*", name):
                yield name
            yield from _executable(part, name)


def _is_harmless(target: str) -> bool:
    """Whether a config that names this makes a network, or finds nothing: its own config alone knows a user's class."""
    if target.startswith("torch.nn."):
        kind = getattr(nn, target.removeprefix("torch.nn."), None)
        return isinstance(kind, type) and issubclass(kind, nn.Module)
    homes = ensure_tuple(ComponentLocator().get_component_module_name(target) or ())
    kinds = [getattr(import_module(home), target) for home in homes]
    if kinds and all(home.startswith(("monai.networks.", "monai_scaleequiv.")) for home in homes):
        return all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds)
    found = kinds or hasattr(builtins, target) or re.fullmatch(r"[A-Za-z]\w*", target) is None or find_spec(target)
    return not found or target == "Identity"  # MONAI has a transform of that name


def compare_records(recorded: Mapping[str, Any], current: Mapping[str, Any], name: str) -> None:
    """Compares what both hold, but for the training's cases; ``name`` is that of the weights.

    Raises:
        ValueError: with the id of the first value that differs, and both values.

    Example::

        >>> compare_records({"spacing": [1, 1, 1]}, {"spacing": [2, 2, 2]}, "model.pt")
        Traceback (most recent call last):
        ValueError: model.pt: expected spacing=[1, 1, 1] as in its training, got [2, 2, 2]; leave it out, or train anew.
    """
    for place, old, new in record_differences(recorded, current):
        hint = "leave it out, or train anew"
        raise ValueError(f"{name}: expected {place}={old} as in its training, got {new}; {hint}.")


def record_differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The ids of what both hold and that differs, with both values; the training's cases do not count.

    Example::

        >>> list(record_differences({"spacing": [1, 1], "window": [0, 1]}, {"spacing": [2, 2]}))
        [('spacing', [1, 1], [2, 2])]
    """
    left = [("", plain(recorded), plain(current))]
    for place, old, new in left:
        if isinstance(old, dict) and isinstance(new, dict):
            both = [key for key in old if key in new and (place or key != "training_cases")]
            left += [(f"{place}#{key}".lstrip("#"), old[key], new[key]) for key in both]
        elif old != new:
            yield place, old, new
