"""From what a user names, a folder, a file or several, to the list of inputs."""

from __future__ import annotations

import os
import warnings
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
from monai.data import create_file_basename
from monai.utils import ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data._faults import grid_fault

__all__ = ["NIFTI", "nifti_datalist", "nifti_files", "stem_of"]

NIFTI = (".nii", ".nii.gz")
# What a damaged header makes nibabel raise.
UNREADABLE = (EOFError, HeaderDataError, ImageFileError, OSError, OverflowError, ValueError, zlib.error)


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
        source: a folder (searched with its sub-folders), a file, or several of them. Hidden files are passed over, and
            what lies below ``results`` where that is a sub-folder.
        key: key of the file's path in each dictionary.
        results: folder that the results will be written to, as ``NAME_postfix.nii.gz``.
        postfix: see ``results``; several where each file has several results.
        overwrite: whether results may replace files that are there already. Inputs are never replaced.
        skip_existing: whether to leave out the files whose results are there already, and files that are such results.
            A file that lacks one of its results, or has an empty one, is listed: ``InputGridWriter`` with the same
            argument writes what is missing and leaves alone what is there.

    Returns:
        one dictionary per file.

    Raises:
        FileExistsError: when a result is there already, ``overwrite`` and ``skip_existing`` are false; and when an
            input is in the place of a result, unless ``skip_existing`` is true.
        FileNotFoundError: when a path does not exist or a folder holds no NIfTI file.
        ValueError: when a file is not NIfTI, two files have the same name, so that their results would collide,
            existing results are to be replaced and to be kept, or a file is to be left out for a result that is on
            another grid and so not its own.

    Example::

        >>> nifti_datalist("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder or .nii / .nii.gz files.
    """
    if overwrite and skip_existing:
        raise ValueError("skip_existing: expected overwrite=false with it, got true; choose one of the two.")
    folder = None if results is None else Path(results)
    files = list(dict.fromkeys(file for path in ensure_tuple(source) for file in _expand(Path(path), folder)))
    by_name = defaultdict(set)
    for file in files:
        by_name[_result_name(file)].add(file.resolve())
    for same in by_name.values():
        if len(same) > 1:
            first, second = sorted(same)[:2]
            raise ValueError(f"{first} and {second} have the same name: their results would collide; rename one.")
    if folder is not None:
        endings = ensure_tuple(postfix)
        targets = {f: [folder / f"{_result_name(f, ending)}.nii.gz" for ending in endings] for f in files}
        targets = _without_earlier_results(targets, skip_existing)
        files = [file for file, paths in targets.items() if overwrite or _is_left(file, paths, skip_existing)]
    return [{key: str(file)} for file in files]


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder and its sub-folders, in a fixed order, hidden ones aside.

    Example::

        >>> nifti_files(Path("no/such/folder"))
        []
    """
    found = (p for p in folder.rglob("*") if p.name.lower().endswith(NIFTI) and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())


def stem_of(file: str | os.PathLike) -> str:
    """A file's path without ``.nii`` or ``.nii.gz``, in small or capital letters.

    Example::

        >>> stem_of("images/scan.nii.gz")
        'images/scan'
    """
    path = os.fspath(file)
    for ending in (".gz", ".nii"):
        path = path[: -len(ending)] if path.lower().endswith(ending) else path
    return path


def _result_name(file: Path, postfix: str = "") -> str:
    """The name of a result without its ending, by the rule of MONAI's ``SaveImage``."""
    return Path(create_file_basename(postfix, file, "", separate_folder=False, makedirs=False)).name


def _place(file: Path) -> Path:
    """A name in a folder, wherever a link of that name points to."""
    return file.parent.resolve() / file.name


def _without_earlier_results(targets: Mapping[Path, list[Path]], skip_existing: bool) -> dict[Path, list[Path]]:
    """Leaves out inputs that are results of others, or refuses them: they would be replaced, or segmented again."""
    owners = {_place(path): file for file, paths in targets.items() for path in paths}
    earlier = {f: next((owners[p] for p in (_place(f), f.resolve()) if p in owners), None) for f in targets}
    earlier = {file: owner for file, owner in earlier.items() if owner is not None}
    for file, owner in earlier.items():
        if not skip_existing:
            raise FileExistsError(
                f"{file}: expected room for the result of {owner}, got another input; choose another output_dir, or "
                "set skip_existing=true if it is that result."
            )
    if earlier:
        file, owner = next(iter(earlier.items()))
        told = f"{len(earlier)} input(s) left out as results of other inputs, such as {file} of {owner}"
        warnings.warn(f"{told}; choose another output_dir if they are images.", stacklevel=3)
    return {file: paths for file, paths in targets.items() if file not in earlier}


def _is_left(file: Path, targets: Sequence[Path], skip_existing: bool) -> bool:
    """Whether a file is still to be run; refuses to replace results, and to take another file's for its own."""
    if not skip_existing:
        for target in targets:
            if os.path.lexists(target):
                raise FileExistsError(
                    f"{target} exists already; choose another output_dir, or set overwrite=true or skip_existing=true."
                )
        return True
    finished = [target for target in targets if target.is_file() and target.stat().st_size]
    for target in finished:
        _refuse_other_grid(file, target)
    return len(finished) < len(targets)


def _refuse_other_grid(file: Path, target: Path) -> None:
    try:
        image, result = nib.load(file), nib.load(target)
        fault = grid_fault(image.shape[:3], image.affine, result.shape[:3], result.affine, "input")
    except UNREADABLE:  # there is no grid to compare; the run will tell of the image
        return
    if fault is not None:
        raise ValueError(
            f"{target}: expected the result of {file}, got one on another grid; choose another output_dir."
        )


def _expand(path: Path, results: Path | None) -> list[Path]:
    if path.is_dir():
        found = nifti_files(path)
        if results is not None and path.resolve() in results.resolve().parents:
            own = results.resolve()
            found = [file for file in found if own not in _place(file).parents]
        if not found:
            raise FileNotFoundError(f"{path} holds no .nii or .nii.gz file; give another folder or the files.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder or .nii / .nii.gz files.")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder; copy it to a .nii or .nii.gz file.")
    if not path.name.lower().endswith(NIFTI):
        raise ValueError(f"{path} is not a .nii or .nii.gz file; convert it to NIfTI.")
    return [path]
