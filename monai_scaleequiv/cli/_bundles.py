"""Bundles that come with the package, or lie in a folder, and running their configs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigParser

import monai_scaleequiv
from monai_scaleequiv.cli._overrides import check_overrides, suggestion

__all__ = ["DEFAULT_BUNDLE", "NATIVE", "absolute", "find_bundle", "input_paths", "run_bundle"]

DEFAULT_BUNDLE = "seunet_hippocampus_segmentation"
NATIVE = "infer --native"
CONFIGS = {
    "train": ("train",),
    "evaluate": ("train", "evaluate"),
    "infer": ("inference",),
    NATIVE: ("inference_native",),
}


def run_bundle(command: str, folder: Path, overrides: Mapping[str, Any]) -> None:
    """Runs the configs of a bundle that belong to a command.

    Args:
        command: ``train``, ``evaluate``, ``infer`` or ``infer --native``.
        folder: the bundle's root.
        overrides: new values by config id.

    Raises:
        FileNotFoundError: when the bundle does not have the configs.
        ValueError: when the configs do not have an id.

    Example::

        >>> run_bundle("train", find_bundle(DEFAULT_BUNDLE), {"epoch": 3})
        Traceback (most recent call last):
        ValueError: --epoch: train.json has no such id; did you mean --epochs?
    """
    files = [folder / "configs" / f"{name}.json" for name in CONFIGS[command]]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist, which {command} needs; give another --bundle.")
    parser = ConfigParser()
    parser.read_config(files)
    overrides = {"bundle_root": str(folder), **overrides}
    check_overrides(parser, overrides, " with ".join(file.name for file in files))
    with warnings.catch_warnings():
        if folder.parent in _bundle_folders():
            warnings.filterwarnings("ignore", message="parsing config_file")  # it warns of configs by strangers
        monai.bundle.run(
            config_file=[str(file) for file in files], meta_file=str(folder / "configs" / "metadata.json"), **overrides
        )


def find_bundle(name: str) -> Path:
    """The root of a bundle.

    Args:
        name: a folder, or the name of a bundle that comes with this package.

    Returns:
        its absolute path.

    Raises:
        FileNotFoundError: when there is neither such a folder nor such a bundle.

    Example::

        >>> find_bundle("seunet_hippocampus_segmentation").name
        'seunet_hippocampus_segmentation'
    """
    shipped = {f.name: f for parent in _bundle_folders() for f in parent.glob("*") if (f / "configs").is_dir()}
    if name in shipped:
        return shipped[name]
    folder = Path(absolute(name))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--bundle={name}: expected a folder or a bundle of this package; {suggestion(name, shipped)}"
        )
    return folder


def _bundle_folders() -> list[Path]:
    """Where bundles are in an installed package, and where in a checkout."""
    package = Path(monai_scaleequiv.__file__).resolve().parent
    return [package / "bundles", package.parent / "bundles"]


def absolute(path: str) -> str:
    """A path of the command line, as the configs are given it.

    Example::

        >>> absolute("/data/../data/a.nii")
        '/data/../data/a.nii'
    """
    return str(Path(path).expanduser().absolute())


def input_paths(text: str) -> str | list[str]:
    """What ``--input`` names: a path, or several with commas between, unless there is a path with these commas.

    Raises:
        ValueError: when there is nothing beside a comma; an empty path would be the current folder.

    Example::

        >>> input_paths("/data/a.nii,/data/b.nii")
        ['/data/a.nii', '/data/b.nii']
    """
    if "," not in text or Path(absolute(text)).exists():
        return absolute(text)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"--input: expected paths with commas between, got an empty one in {text!r}; take it out.")
    return [absolute(part) for part in parts]
