"""From what a user names, a folder, a file or several, to the list of inputs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from monai.utils import ensure_tuple

__all__ = ["NIFTI", "nifti_datalist", "nifti_files", "stem_of"]

NIFTI = (".nii", ".nii.gz")


def nifti_datalist(
    source: Sequence[str | os.PathLike] | str | os.PathLike,
    key: str = "image",
    results: str | os.PathLike | None = None,
    postfix: Sequence[str] | str = "seg",
    overwrite: bool = False,
    skip_existing: bool = False,
) -> list[dict[str, str]]:
    """Lists NIfTI files as MONAI data dictionaries, in a fixed order.

    Args:
        source: a folder (searched with its sub-folders), a file, or several of them. Hidden files are passed over.
        key: key of the file's path in each dictionary.
        results: folder that the results will be written to, as ``NAME_postfix.nii.gz``.
        postfix: see ``results``; several where each file has several results.
        overwrite: whether results may replace files that are there already.
        skip_existing: whether to leave out the files whose results are there already. A file that has some of its
            results was interrupted; they will be replaced.

    Returns:
        one dictionary per file.

    Raises:
        FileExistsError: when a result is there already, ``overwrite`` and ``skip_existing`` are false.
        FileNotFoundError: when a path does not exist or a folder holds no NIfTI file.
        ValueError: when a file is not NIfTI, two files have the same name, so that their results would collide, or
            existing results are to be replaced and to be kept.

    Example::

        >>> nifti_datalist("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder or .nii / .nii.gz files.
    """
    if overwrite and skip_existing:
        raise ValueError("skip_existing: expected overwrite=false with it, got true; choose one of the two.")
    files = list(dict.fromkeys(file for path in ensure_tuple(source) for file in _expand(Path(path))))
    by_name = defaultdict(set)
    for file in files:
        by_name[stem_of(file.name)].add(file.resolve())
    for same in by_name.values():
        if len(same) > 1:
            first, second = sorted(same)[:2]
            raise ValueError(f"{first} and {second} have the same name: their results would collide; rename one.")
    if results is not None and not overwrite:
        targets = {n: [Path(results) / f"{n}_{ending}.nii.gz" for ending in ensure_tuple(postfix)] for n in by_name}
        if skip_existing:
            targets = {name: paths for name, paths in targets.items() if not all(path.exists() for path in paths)}
            files = [file for file in files if stem_of(file.name) in targets]
        else:
            _refuse_existing([path for paths in targets.values() for path in paths])
    return [{key: str(file)} for file in files]


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder and its sub-folders, in a fixed order, hidden ones aside.

    Example::

        >>> nifti_files(Path("no/such/folder"))
        []
    """
    return sorted(p for p in folder.rglob("*") if p.name.endswith(NIFTI) and not p.name.startswith("."))


def stem_of(file: str | os.PathLike) -> str:
    """A file's path without ``.nii`` or ``.nii.gz``.

    Example::

        >>> stem_of("images/scan.nii.gz")
        'images/scan'
    """
    return os.fspath(file).removesuffix(".gz").removesuffix(".nii")


def _refuse_existing(targets: Sequence[Path]) -> None:
    for target in targets:
        if target.exists():
            raise FileExistsError(
                f"{target} exists already; choose another output_dir, or set overwrite=true or skip_existing=true."
            )


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        found = nifti_files(path)
        if not found:
            raise FileNotFoundError(f"{path} holds no .nii or .nii.gz file; give another folder or the files.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder or .nii / .nii.gz files.")
    if not path.name.endswith(NIFTI):
        raise ValueError(f"{path} is not a .nii or .nii.gz file; convert it to NIfTI.")
    return [path]
