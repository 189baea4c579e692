"""Config overrides: read from the command line and checked before anything runs."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver

__all__ = ["NONE", "check_overrides", "override_value", "suggestion"]

NONE = "$None"  # MONAI passes over overrides that are None, but not over an expression for it
COUNTS = {"batch_size", "epochs", "num_classes", "sw_batch_size", "val_interval"}
WORDS = {
    "false",
    "n",
    "no",
    "off",
    "on",
    "true",
    "y",
    "yes",
}  # that YAML takes for true or false, and Python for a text


def override_value(text: str) -> Any:
    """Reads the value of an override: JSON, else what Fire makes of it.

    Args:
        text: as given on the command line.

    Returns:
        the value for the config.

    Example::

        >>> override_value("false"), override_value("[1,2]"), override_value("@train#dataset")
        (False, [1, 2], '@train#dataset')
    """
    try:
        value = json.loads(text)
    except ValueError:
        # Fire would take what follows a "#" for a comment.
        value = text if "#" in text else DefaultParseValue(text)
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    return NONE if value is None else value


def check_overrides(parser: ConfigParser, overrides: Mapping[str, Any], source: str = "the config") -> None:
    """Refuses overrides of ids that the config does not have and its components do not take.

    Args:
        parser: holds the config; the overrides are applied to it.
        overrides: new values by id, with ``#`` or ``::`` between the levels of an id.
        source: what the config is called in errors.

    Raises:
        ValueError: in one line, with the nearest id there is, or the kind of value expected.

    Example::

        >>> check_overrides(ConfigParser({"epochs": 5}), {"epoch": 3})
        Traceback (most recent call last):
        ValueError: --epoch: the config has no such id; did you mean --epochs?
    """
    for key, value in overrides.items():
        parent, name = ReferenceResolver.split_id(key, last=True)
        section = parser.get(parent)
        if isinstance(section, str):
            raise ValueError(f"--{key}: {parent!r} is {section!r} in {source}, which has no parts; override it whole.")
        siblings = _names(section, parser.locator)
        if siblings is not None and name not in siblings:
            separator = "::" if "::" in key else "#"
            known = [f"{parent}::{n}" if parent else n for n in siblings]
            known = [k.replace("::", separator) for k in (*known, *_ids(parser[""]))]
            raise ValueError(f"--{key}: {source} has no such id; {suggestion(key, known, '--')}")
        present = section.get(name) if isinstance(section, dict) else None
        _check_kind(key, name, present, value)
        parser[key] = value


def _check_kind(key: str, name: str, present: Any, value: Any) -> None:
    """Refuses a value of another kind than the one in the config: a text would count as true, whatever it says."""
    known = value == NONE or not _is_resolved_later(value)
    if name in COUNTS and known and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        got = None if value == NONE else value
        raise ValueError(f"--{key}: expected a whole number of at least 1, got {got!r}; write --{key}=3, say.")
    if _is_resolved_later(value):
        return
    word = isinstance(value, str) and value.strip("'\"").lower() in WORDS and not name.endswith(("_dir", "_path"))
    if isinstance(present, bool) or (word and isinstance(present, str) and present.startswith("$")):
        if not isinstance(value, bool):
            raise ValueError(f"--{key}: expected true or false, got {value!r}; write --{key}=true or --{key}=false.")
    elif isinstance(present, (int, float)) and isinstance(value, (bool, str)):
        got = "none" if isinstance(value, bool) else repr(value)
        raise ValueError(f"--{key}: expected a number such as {present}, got {got}; write --{key}={present}.")
    elif isinstance(present, list) and isinstance(value, str):
        shown = json.dumps(present) if all(isinstance(v, (int, float)) for v in present) else "[...]"
        raise ValueError(f"--{key}: expected a list such as {shown}, got {value!r}; write it in brackets.")


def _is_resolved_later(value: Any) -> bool:
    """Whether a value is an expression or a reference, of which nothing is known yet."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The remedy for a misspelt word.

    Args:
        word: what was given.
        known: what there is.
        prefix: stands before each of the known words.

    Example::

        >>> suggestion("trian", ["train", "evaluate"])
        'did you mean train?'
    """
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    shortest = sorted((k for k in known if "#" not in k and "::" not in k), key=str)
    return "choose one of " + ", ".join(shortest) + "."


def _names(section: Any, locator: ComponentLocator) -> set[str] | None:
    """Names that a section of the config may have, None for any."""
    if isinstance(section, list):
        return {str(i) for i in range(len(section))}
    if not isinstance(section, dict):
        return set()
    if "_target_" not in section:
        return set(section)
    parameters = _parameters(section, locator)
    return None if parameters is None else {*section, *parameters, *ConfigComponent.non_arg_keys}


def _parameters(section: dict, locator: ComponentLocator) -> set[str] | None:
    """Parameters of a component's callable, None where they are not known or any are taken."""
    path = ConfigComponent(section, locator=locator).resolve_module_name()
    component = locate(path) if isinstance(path, str) else path
    try:
        parameters = inspect.signature(component).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _ids(config: Any, id: str = "") -> Iterator[str]:
    """Ids of all parts of the config, with ``::`` between the levels."""
    if isinstance(config, (dict, list)):
        for _, sub_id, part in ReferenceResolver.iter_subconfigs(id, config):
            yield sub_id
            yield from _ids(part, sub_id)
