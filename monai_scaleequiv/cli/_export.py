"""A bundle in one folder: configs, weights and documents, with the modules of this package that they need."""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser

import monai_scaleequiv
from monai_scaleequiv.data import check_output_dir, read_weights, weights_digest

PACKAGE = "monai_scaleequiv"
IMPORT = re.compile(rf"\$import {PACKAGE}(?![\w.])")
# Where a bundle's own runs write
LEFT_OUT = [
    ".*",
    "__pycache__",
    "cache",
    "eval",
    "finetuned",
    "tensorboard",
    "checkpoint_epoch=*",
    "model_final.pt",
    "earlier_*",
]
LEFT_OUT += ["curve.png", "overlay_epoch=*"]
BASE = {"monai", "numpy", "torch"}  # which have entries of their own in the metadata
SCRIPTS = f'''"""Makes ``{PACKAGE}`` of this folder the one that is imported, also where another is installed."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = "{monai_scaleequiv.__version__}"
sys.path.insert(0, str(HERE))  # stays, for processes that load data may be started anew

import {PACKAGE}  # noqa: E402

if {PACKAGE}.__version__ != VERSION:
    got = f"{{{PACKAGE}.__version__}} of {{{PACKAGE}.__file__}}, imported before"
    warnings.warn(f"{{HERE}}: expected {PACKAGE} {{VERSION}}, got {{got}}; start a new process.")
'''


def write_bundle(bundle: Path, target: Path) -> None:
    """Writes a bundle so that it runs without this package, whole or not at all.

    All that importing this package runs lies in ``scripts/``, and configs import it from there: it wins over an
    installed one. In a process that has imported that one before, it stays, and a warning says so if its version is
    another. ``scripts`` is found in the current folder or on Python's path, as by any bundle of the Model Zoo.

    Raises:
        FileExistsError: when there is something at the target.
        FileNotFoundError: when there is ``models/``, as in all bundles but those without weights, and no ``model.pt``.
        ModuleNotFoundError: when the package safetensors is not installed.
        ValueError: when the bundle has ``scripts/`` of its own, no config that imports this package, or weights with
            anything but tensors.
    """
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError:
        hint = "pip install safetensors"
        raise ModuleNotFoundError(f"export_bundle: expected the package safetensors, got none; {hint}.") from None
    if os.path.lexists(target):
        raise FileExistsError(f"--output: {target} exists already; choose another folder or remove it.")
    if (bundle / "scripts").exists():
        raise ValueError(f"--bundle: {bundle} has scripts/ of its own; export the bundle that it was made from.")
    file = bundle / "models" / "model.pt"
    weights = read_weights(file, "cpu") if file.parent.exists() else {}
    for got in (type(value).__name__ for value in weights.values() if not isinstance(value, torch.Tensor)):
        raise ValueError(f"{file}: expected tensors alone, got {got}; save network.state_dict() instead.")
    check_output_dir(target.parent, "--output")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as unfinished:
        folder = Path(shutil.copytree(bundle, Path(unfinished) / "bundle", ignore=shutil.ignore_patterns(*LEFT_OUT)))
        _redirect_imports(folder / "configs", bundle)
        requirements = _copy_modules(folder / "scripts")
        _complete_metadata(folder / "configs" / "metadata.json", requirements)
        # The format knows neither views nor tensors that share their memory.
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
        if tensors:
            save_file(tensors, folder / "models" / "model.safetensors", {"format": "pt"})
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sums = "".join(f"{weights_digest(file)}  {file.relative_to(folder)}\n" for file in files)
        (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
        folder.rename(target)


def _redirect_imports(configs: Path, bundle: Path) -> None:
    """Lets the configs import this package from ``scripts``."""
    files = [file for file in configs.iterdir() if file.suffix[1:] in ConfigParser.suffixes]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    if not any(map(IMPORT.search, texts.values())):
        expected = f"a config with $import {PACKAGE} among its imports"
        raise ValueError(f"--bundle: {bundle}: expected {expected}, got none; add it.")
    for file, text in texts.items():
        file.write_text(IMPORT.sub(f"$from scripts import {PACKAGE}", text), encoding="utf-8")


def _copy_modules(scripts: Path) -> dict[str, str]:
    """Copies what importing this package runs, now or later; the version of each distribution that it imports."""
    parent = Path(monai_scaleequiv.__file__).parents[1]
    found: dict[Path, None] = {}
    others = set()
    names = [PACKAGE]
    for name in names:
        path = parent.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not name.startswith(PACKAGE):
            others.add(name.split(".")[0])
        elif file not in found and file.is_file():  # else a class or function of the module before
            found[file] = None
            names += _imports(file)
    for file in found:
        copy = scripts / file.relative_to(parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (scripts / "__init__.py").write_text(SCRIPTS, encoding="utf-8")
    distributions = importlib.metadata.packages_distributions()
    needed = {d for name in others - set(sys.stdlib_module_names) for d in distributions[name]}
    return {name: importlib.metadata.version(name) for name in sorted(needed - BASE)}


def _imports(file: Path) -> Iterator[str]:
    """Modules that a file imports anywhere in it, with those around them; names that it takes from them as well."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        parts = [f"{node.module}.{part}" for part in parts] if isinstance(node, ast.ImportFrom) else parts
        for part in parts:
            yield from itertools.accumulate(part.split("."), "{}.{}".format)


def _complete_metadata(file: Path, requirements: dict[str, str]) -> None:
    """Names the version of the modules, and in place of this package what they require."""
    meta = json.loads(file.read_text(encoding="utf-8"))
    listed = meta.get("required_packages_version", {})
    listed = {name: version for name, version in listed.items() if name.replace("-", "_") != PACKAGE}
    meta["required_packages_version"] = dict(sorted({**requirements, **listed}.items()))
    meta[f"{PACKAGE}_version"] = monai_scaleequiv.__version__
    file.write_text(json.dumps(meta, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
