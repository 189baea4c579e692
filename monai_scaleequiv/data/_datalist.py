"""From what a user names, a folder, a file or several, to the list of inputs."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import nibabel as nib
from monai.config import PathLike
from monai.data import create_file_basename
from monai.utils import ensure_tuple, str2bool

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._brats import MODALITIES, brats_cases, image_files
from monai_scaleequiv.data._writer import maker_of

Case = tuple[Path, ...]


def nifti_datalist(
    source: Sequence[PathLike] | PathLike,
    key: str = "image",
    results: PathLike | None = None,
    postfix: Sequence[str] | str = "seg",
    overwrite: bool = False,
    skip_existing: bool = False,
    channels: int = 1,
    made_by: str | None = None,
) -> list[dict[str, Any]]:
    """Lists NIfTI files as MONAI data dictionaries, in a fixed order.

    Args:
        source: folders (with sub-folders and links), files, or both. Hidden ones are passed over, and what lies below
            ``results`` where that is a sub-folder.
        key: key of the path, or of the list of paths, in each dictionary.
        results: folder that the results will be written to, as ``NAME_postfix.nii.gz``.
        postfix: see ``results``; several where each file has several results.
        overwrite: whether results may replace files that are there already. Inputs are never replaced.
        skip_existing: whether to leave out files that have all their results, and files that are results.
        channels: of each case; files ``NAME_0000``, ``NAME_0001`` and so on are one case, named after the first. With
            four, so are the files of a case of BraTS, as FLAIR, T1, T1ce, T2, and its label map is passed over; one
            that it lacks is listed, so that this case alone fails when it is read.
        made_by: digest of the weights that results are to be of (see ``weights_digest``).

    Raises:
        FileExistsError: when a result is there already, or an input in its place.
        FileNotFoundError: when a path does not exist or a folder holds no NIfTI file.
        ValueError: when a switch is neither true nor false, a file is not NIfTI, a numbered channel is missing, two
            results would have the same name, or one that is there already is on another grid than its input, or says
            that other weights made it.

    Example::

        >>> nifti_datalist("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder or .nii / .nii.gz files.
    """
    overwrite, skip_existing = str2bool(str(overwrite)), str2bool(str(skip_existing))
    if overwrite and skip_existing:
        raise ValueError("skip_existing: expected overwrite=false with it, got true; choose one of the two.")
    folder = None if results is None else Path(results)
    cases = _grouped([file for path in ensure_tuple(source) for file in _expand(Path(path), folder)], channels)
    by_name = defaultdict(set)
    for case in cases:
        by_name[_result_name(case[0])].add(case[0].resolve())
    for first, other in (sorted(files)[:2] for files in by_name.values() if len(files) > 1):
        raise ValueError(f"{first} and {other} have the same name: their results would collide; rename one.")
    if folder is not None:
        endings = ensure_tuple(postfix)
        targets = {c: [folder / f"{_result_name(c[0], ending)}.nii.gz" for ending in endings] for c in cases}
        targets = _without_earlier_results(targets, skip_existing)
        cases = [c for c, paths in targets.items() if overwrite or _is_left(c[0], paths, skip_existing, made_by)]
    return [{key: str(case[0]) if len(case) == 1 else [str(file) for file in case]} for case in cases]


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder and its sub-folders, in a fixed order, hidden ones aside.

    Links to folders are followed, each folder once; links that lead nowhere are listed, for reading to report them.
    """
    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if real not in seen else []
        found += [] if real in seen else [Path(root, n) for n in names if _is_nifti(n) and not n.startswith(".")]
        seen.add(real)
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_nifti(path: PathLike) -> bool:
    """Whether a name is that of a NIfTI file; like readers do, it takes capitals for small letters."""
    return os.fspath(path).lower().endswith((".nii", ".nii.gz"))


def stem_of(file: PathLike) -> str:
    """A file's path without ``.nii`` or ``.nii.gz``, in small or capital letters."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", os.fspath(file), flags=re.IGNORECASE)


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    """The cases that files make: with several channels, ``NAME_0000`` and so on are one, and modalities of BraTS."""
    cases = brats_cases(files) if channels == len(MODALITIES) else {}
    taken = {file for parts in cases.values() for file in parts.values()}
    files = [file for file in files if file not in taken]
    stems = {file: stem_of(file) for file in files}
    names = {stem[:-5] for stem in stems.values() if channels > 1 and stem.endswith("_0000")}
    groups: dict[str, list[Path]] = {}
    for file, stem in stems.items():
        is_channel = stem[:-5] in names and re.search(r"_\d{4}$", stem)
        groups.setdefault(stem[:-5] if is_channel else str(file), []).append(file)
    for name in names:
        expected = [f"{name}_{index:04d}" for index in range(channels)]
        if sorted(map(stem_of, groups[name])) != expected:
            text = f"{channels} files, one per channel, {Path(expected[0]).name} to {Path(expected[-1]).name}"
            hint = "add the missing ones or set in_channels"
            raise ValueError(f"{groups[name][0]}: expected {text}, got {len(groups[name])}; {hint}.")
    of_brats = [image_files(key, parts) for key, parts in cases.items()]
    return of_brats + [tuple(sorted(group)) for group in groups.values()]


def _result_name(file: Path, postfix: str = "") -> str:
    """The name of a result without its ending, by the rule of MONAI's ``SaveImage``."""
    return Path(create_file_basename(postfix, file, "", separate_folder=False, makedirs=False)).name


def _place(file: Path) -> Path:
    """A name in a folder, wherever a link of that name points to."""
    return file.parent.resolve() / file.name


def _without_earlier_results(targets: Mapping[Case, list[Path]], skip_existing: bool) -> dict[Case, list[Path]]:
    """Leaves out inputs that are results of others, or raises: they would be replaced, or segmented again."""
    owners = {_place(path): case[0] for case, paths in targets.items() for path in paths}
    own = {case: [owners[p] for f in case for p in (_place(f), f.resolve()) if p in owners] for case in targets}
    earlier = [(case[0], owner[0]) for case, owner in own.items() if owner]
    for file, owner in earlier[:1]:
        if not skip_existing:
            hint = "choose another output_dir, or set skip_existing=true if it is that result"
            raise FileExistsError(f"{file}: expected room for the result of {owner}, got another input; {hint}.")
        text = f"{len(earlier)} input(s) left out as results of other inputs, such as {file} of {owner}"
        warnings.warn(f"{text}; choose another output_dir if they are images.", stacklevel=3)
    return {case: paths for case, paths in targets.items() if not own[case]}


def _is_left(file: Path, targets: Sequence[Path], skip_existing: bool, made_by: str | None) -> bool:
    """Whether a file is still to be run; raises where a result would be replaced, or is of another image or network."""
    for target in () if skip_existing else filter(os.path.lexists, targets):
        hint = "choose another output_dir, or set overwrite=true or skip_existing=true"
        raise FileExistsError(f"{target} exists already; {hint}.")
    finished = [target for target in targets if skip_existing and target.is_file() and target.stat().st_size]
    for target in finished:
        finding = maker = None
        with suppress(Exception):  # of a damaged file, which has no grid: the run will report it
            result, image = (cast(nib.Nifti1Image, nib.load(path)) for path in (target, file))
            maker = maker_of(result.header)
            finding = rules.grid(image.shape[:3], image.affine, result.shape[:3], result.affine, "the input")
        if finding is not None:
            hint = "choose another output_dir"
            raise ValueError(f"{target}: expected the result of {file}, got one on another grid; {hint}.")
        if made_by and maker not in (None, made_by):
            hint = "choose another output_dir, or set overwrite=true in place of skip_existing"
            raise ValueError(f"{target}: expected a result of weights {made_by:.18}, got one of {maker:.18}; {hint}.")
    return len(finished) < len(targets)


def _expand(path: Path, results: Path | None) -> list[Path]:
    if path.is_dir():
        own = results.resolve() if results is not None and path.resolve() in results.resolve().parents else None
        found = [file for file in nifti_files(path) if own not in _place(file).parents]
        if not found:
            raise FileNotFoundError(f"{path} holds no .nii or .nii.gz file; give another folder or the files.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder or .nii / .nii.gz files.")
    if not path.is_file() or not _is_nifti(path):
        raise ValueError(f"{path} is not a .nii or .nii.gz file; convert or copy it to one.")
    return [path]
