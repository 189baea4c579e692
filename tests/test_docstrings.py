"""Every example in a docstring runs, and what is public says how it is called, what it raises and an example."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import monai_scaleequiv

FOUND = [m for m in pkgutil.walk_packages(monai_scaleequiv.__path__, "monai_scaleequiv.") if ".bundles" not in m.name]
ROOMS = [m.name for m in FOUND if m.ispkg]


@pytest.mark.parametrize("room", ROOMS)
def test_examples_run(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (m.name for m in FOUND if m.name.startswith(f"{room}.")):
        module = importlib.import_module(name)
        result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, name


@pytest.mark.parametrize("room", [r for r in ROOMS if not r.endswith(".cli")])
def test_public_names_say_what_they_take_what_they_raise_and_an_example(room):
    module = importlib.import_module(room)
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
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
