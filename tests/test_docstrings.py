"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import monai_scaleequiv

PACKAGE_FOLDER = monai_scaleequiv.__path__
MODULES = [
    module.name
    for module in pkgutil.walk_packages(PACKAGE_FOLDER, "monai_scaleequiv.")
    if not module.name.endswith("__main__") and ".bundles" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": __import__("torch")}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    # Packages hold no code of their own, and some examples would take minutes.
    exempt = hasattr(module, "__path__") or name.endswith(("._main", "._commands", "._demo", "._overlay"))
    assert result.attempted > 0 or not module.__all__ or exempt


@pytest.mark.parametrize("name", [n for n in monai_scaleequiv.__all__ if n != "published"])
def test_public_names_have_an_example(name):
    assert ">>>" in getattr(monai_scaleequiv, name).__doc__
