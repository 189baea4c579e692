"""Every example in a docstring runs, and what is public says how it is called, what it raises and an example."""

import doctest
import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass

import pytest
import torch

import monai_scaleequiv

FOUND = [m for m in pkgutil.walk_packages(monai_scaleequiv.__path__, "monai_scaleequiv.") if ".bundles" not in m.name]
ROOMS = [m.name for m in FOUND if m.ispkg and not m.name.endswith(".cli")]


@pytest.mark.parametrize("room", [*ROOMS, "monai_scaleequiv.cli"])
def test_examples_run(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (m.name for m in FOUND if m.name.startswith(f"{room}.")):
        module = importlib.import_module(name)
        result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, name


def _user_facing(room):
    """What a room has for users: what the top level exports as well, else its classes; the rest serves other rooms."""
    module = importlib.import_module(room)
    whole = room in ("monai_scaleequiv", "monai_scaleequiv.published")
    for name in module.__all__:
        value = getattr(module, name)
        is_helper = inspect.isfunction(value) or is_dataclass(value) or room.endswith((".maths", ".layers"))
        if callable(value) and (whole or name in monai_scaleequiv.__all__ or not is_helper):
            yield name, value


def test_user_facing_names_say_what_they_take_what_they_raise_and_an_example():
    missing = []
    for name, value in {n: v for room in ["monai_scaleequiv", *ROOMS] for n, v in _user_facing(room)}.items():
        doc = value.__doc__ or ""
        makers = (
            [value] if inspect.isfunction(value) else [vars(value).get("__init__"), vars(value).get("__post_init__")]
        )
        makers = [make for make in makers if make is not None]
        parameters = {p for make in makers for p in inspect.signature(make).parameters} - {"self", "args", "kwargs"}
        # What a dataclass generates has no source.
        raises = any("raise " in inspect.getsource(m) for m in makers if m.__code__.co_filename != "<string>")
        missing += [f"{name}: example"] * (">>>" not in doc)
        missing += [f"{name}: {p}" for p in sorted(parameters) if p not in doc]
        missing += [f"{name}: what it raises"] * (raises and "aises" not in doc)
    assert not missing, "\n".join(missing)
