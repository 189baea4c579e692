"""Config overrides: read from the command line and checked before anything runs."""

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver

NONE = "$None"  # MONAI passes over overrides that are None, but not over an expression for it
COUNTS = {"batch_size", "epochs", "in_channels", "num_classes", "sw_batch_size", "val_interval"}
AXES = "coordinates"  # of which the network is told the place
WORDS = {"false", "n", "no", "off", "on", "true", "y", "yes"}  # YAML reads them as true or false, Python as texts


def override_value(text: str) -> Any:
    """The value of an override: JSON, else what Fire makes of it, which takes what follows a "#" for a comment."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text if "#" in text else DefaultParseValue(text)
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    return NONE if value is None else value


def is_expression(value: Any) -> bool:
    """Whether a value is for the config to resolve, so that nothing is known of it yet."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def check_overrides(parser: ConfigParser, overrides: Mapping[str, Any], source: str = "the config") -> None:
    """Applies overrides to a config; ValueError for an id that neither it nor its components have."""
    for key, value in overrides.items():
        parent, name = ReferenceResolver.split_id(key, last=True)
        section = parser.get(parent)
        if isinstance(section, str):
            raise ValueError(f"--{key}: {parent!r} is {section!r} in {source}, which has no parts; override it whole.")
        siblings = _names(section, parser)
        if siblings is not None and name not in siblings:
            parser.parse()  # all ids of the config are then known
            known = [*(f"{parent}::{n}" if parent else n for n in siblings), *filter(None, parser.ref_resolver.items)]
            known = [k.replace("::", "::" if "::" in key else "#") for k in known]
            raise ValueError(f"--{key}: {source} has no such id; {suggestion(key, known, '--')}")
        _check_kind(key, name, section.get(name) if isinstance(section, dict) else None, value)
        parser[key] = value


def _check_kind(key: str, name: str, present: Any, value: Any) -> None:
    """ValueError for a value of another kind than the one in the config: any text would count as true, for one."""
    is_axes = key == AXES and isinstance(present, list)
    is_needed = name in COUNTS or is_axes or isinstance(present, bool)
    if is_expression(value) and not (is_needed and value == NONE):
        return
    is_text = isinstance(value, str)
    word = is_text and value.strip("'\"").lower() in WORDS and not name.endswith(("_dir", "_path"))
    got, hint = None if value == NONE else value, f"write --{key}={present}"
    if name in COUNTS:
        fits, expected, hint = type(value) is int and value > 0, "a whole number of at least 1", f"write --{key}=3, say"
    elif is_axes:
        axes = value if isinstance(value, list) else [None]
        fits = all(type(axis) is int and 0 <= axis < 3 and axes.count(axis) == 1 for axis in axes)
        expected, hint = "different axes from 0 to 2", f"write --{key}=[0], say"
    elif isinstance(present, bool) or (word and is_expression(present)):
        fits, expected, hint = isinstance(value, bool), "true or false", f"write --{key}=true or --{key}=false"
    elif isinstance(present, (int, float)):
        fits, expected = not is_text and not isinstance(value, bool), f"a number such as {present}"
    elif isinstance(present, list):
        shown = json.dumps(present) if all(isinstance(v, (int, float)) for v in present) else "[...]"
        fits, expected, hint = not is_text, f"a list such as {shown}", "write it in brackets"
    else:
        return
    if not fits:
        raise ValueError(f"--{key}: expected {expected}, got {got!r}; {hint}.")


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The hint for a misspelt word."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return "choose one of " + ", ".join(k for k in known if "#" not in k and "::" not in k) + "."


def _names(section: Any, parser: ConfigParser) -> set[str] | None:
    """Names that a section of the config may have; None for any."""
    if not isinstance(section, dict):
        return {str(i) for i in range(len(section))} if isinstance(section, list) else set()
    if "_target_" not in section:
        return set(section)
    path = ConfigComponent(section, locator=parser.locator).resolve_module_name()
    try:
        component: Any = locate(path) if isinstance(path, str) else path
        parameters = inspect.signature(component).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return {*section, *parameters, *ConfigComponent.non_arg_keys}
