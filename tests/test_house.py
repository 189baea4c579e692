"""The house: which room may import which, how large a file may be, and what the package shows at its top level."""

import ast
from collections.abc import Iterator
from pathlib import Path

import monai_scaleequiv

PACKAGE = Path(monai_scaleequiv.__file__).parent
# Each room may import those before it. Those below stand beside: no other room imports them.
ROOMS = ("maths", "layers", "nets", "metrics", "data", "transforms", "inferers", "handlers", "cli")
ALLOWED = {room: set(ROOMS[:i]) for i, room in enumerate(ROOMS)}
ALLOWED["published"] = {"maths", "layers", "nets"}
ALLOWED["nnunet"] = {"nets"}
ALLOWED["auto3dseg"] = {"cli", "data"}
LONGEST_FILE = 250
MOST_PUBLIC_NAMES = 30


def imports(file: Path) -> Iterator[str]:
    """Dotted names of the modules of this package that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: expected absolute imports, got a relative one"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(room: str, names: list[str]) -> list[str]:
    """Imports of a room that point upwards, or at another room's private module."""
    wrong = []
    for name in names:
        parts = name.split(".")
        if parts[0] != "monai_scaleequiv" or len(parts) < 2 or parts[1] not in ALLOWED or parts[1] == room:
            continue
        if parts[1] not in ALLOWED[room] or any(part.startswith("_") for part in parts[2:]):
            wrong.append(name)
    return wrong


def test_rooms_import_downwards_and_nothing_private():
    found = {}
    for room in ALLOWED:
        files = sorted((PACKAGE / room).glob("*.py"))
        assert files, f"expected files in {room}, got none"
        for file in files:
            found[f"{room}/{file.name}"] = wrong_imports(room, list(imports(file)))
    assert {file: wrong for file, wrong in found.items() if wrong} == {}


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"bundles"}
    assert folders == set(ALLOWED)


def test_upward_and_private_imports_are_found():
    assert wrong_imports("layers", ["monai_scaleequiv.nets.SEUNet"]) == ["monai_scaleequiv.nets.SEUNet"]
    assert wrong_imports("nets", ["monai_scaleequiv.layers._conv.ScaleGroupConv"]) != []
    assert (
        wrong_imports("nets", ["monai_scaleequiv.layers.ScaleGroupConv", "torch.nn._x", "monai_scaleequiv.nets._a.b"])
        == []
    )


def test_no_file_is_long():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file): n for file, n in lengths.items() if n > LONGEST_FILE} == {}


def test_public_names_are_few_and_there():
    names = monai_scaleequiv.__all__
    assert len(names) <= MOST_PUBLIC_NAMES
    assert all(hasattr(monai_scaleequiv, name) for name in names)
    for room in ALLOWED:
        module = getattr(__import__(f"monai_scaleequiv.{room}"), room)
        assert all(hasattr(module, name) for name in module.__all__), room
