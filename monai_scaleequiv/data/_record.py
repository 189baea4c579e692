"""What a training leaves beside its weights, so that inference can agree with it."""

import dataclasses
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from torch import nn

from monai_scaleequiv.data._files import whole_file


def definition_of(network: nn.Module) -> dict[str, Any]:
    """How a network was made: its class, and the constructor's arguments as its attributes of the same names have them.

    Example::

        >>> definition_of(nn.Conv3d(1, 2, 3))["kernel_size"]
        [3, 3, 3]
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    names = inspect.signature(type(network).__init__).parameters
    values = {name: _plain(getattr(network, name)) for name in names if hasattr(network, name)}
    return {"_target_": type(network).__name__} | {k: v for k, v in values.items() if v is not NotImplemented}


def _plain(value: Any) -> Any:
    """A value as JSON has it; ``NotImplemented`` for what it cannot hold."""
    if isinstance(value, nn.Module):
        return definition_of(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else NotImplemented


def case_sizes(cases: Iterable[Mapping[str, Any]], key: str = "image") -> dict[str, int]:
    """Name and bytes of the (first) image of each case, by which a record knows the cases of its training."""
    files = [Path(ensure_tuple(case[key])[0]) for case in cases]
    return {file.name: file.stat().st_size for file in files}


def write_record(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all.

    Example::

        >>> write_record("model.json", {"spacing": (1, 1, 1)})
        >>> read_record("model.pt")
        {'spacing': [1, 1, 1]}
    """
    with whole_file(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(_plain(record), indent=2) + "\n", encoding="utf-8")


def read_record(ckpt_path: str | os.PathLike) -> dict[str, Any] | None:
    """The record of the training that weights come from: the file of their name with ``.json``, else ``model.json``.

    Args:
        ckpt_path: the weights.

    Returns:
        the record, None where there is no such file.

    Raises:
        ValueError: when the file is damaged or of another kind.
    """
    path = Path(ckpt_path)
    file = next((f for f in (path.with_suffix(".json"), path.with_name("model.json")) if f.is_file()), None)
    if file is None:
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected the record of a training, got no JSON ({error}); restore it.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{file}: expected the record of a training, got a {type(record).__name__}; restore it.")
    return record


def compare_records(recorded: Mapping[str, Any], current: Mapping[str, Any], name: str) -> None:
    """Compares what both hold but for the training's cases.

    Args:
        recorded: of the training.
        current: what is about to be used.
        name: the weights, for the error.

    Raises:
        ValueError: naming the first value that differs.

    Example::

        >>> compare_records({"spacing": [1, 1, 1]}, {"spacing": [2, 2, 2]}, "model.pt")
        Traceback (most recent call last):
        ValueError: model.pt: expected spacing=[1, 1, 1] as in its training, got [2, 2, 2]; leave it out, or train anew.
    """
    _compare(_plain(recorded), _plain(current), name, "")


def _compare(recorded: Mapping[str, Any], current: Mapping[str, Any], name: str, place: str) -> None:
    for key in recorded.keys() & current.keys() - {"training_cases"}:
        old, new = recorded[key], current[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _compare(old, new, name, f"{place}{key}#")
        elif old != new:
            raise ValueError(
                f"{name}: expected {place}{key}={old} as in its training, got {new}; leave it out, or train anew."
            )
