"""From a ``dataset.json``, folders or data dictionaries to the cases of a data set."""

import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.utils import ensure_tuple

from monai_scaleequiv.data._brats import (
    CLASSES,
    MODALITIES,
    brats_cases,
    check_order,
    missing_modalities,
    tissue_labels,
)
from monai_scaleequiv.data._case import Case, Listing
from monai_scaleequiv.data._datalist import nifti_files, stem_of
from monai_scaleequiv.data.rules import WARNING, Finding

PAIRS = (("imagesTr", "labelsTr"), ("TrainingImg", "TrainingMask"))  # FLARE 2022 and 2021 have no dataset.json
CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's files of one channel each
UNLISTED = Finding("unlisted", "each volume on the list", "one that is not", "add it or remove the file", WARNING)


def list_task(source: PathLike) -> Listing:
    """Lists a folder of the Medical Segmentation Decathlon, of nnU-Net v2, or of FLARE or BraTS as downloaded."""
    file = Path(source) / "dataset.json" if Path(source).is_dir() else Path(source)
    if not file.is_file():
        for listing in _without_json(Path(source)):
            return listing
        raise FileNotFoundError(f"{file} does not exist; give a folder with dataset.json, or give --images.")
    try:
        task = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got something else ({error}); correct it.") from None
    if isinstance(task, dict) and "channel_names" in task and "training" not in task:
        listing = _list_nnunet(task, file)
    else:
        listing = _list_decathlon(task if isinstance(task, dict) else {}, file)
    count = sum(case.part == "training" for case in listing.cases)
    if task.get("numTraining", count) != count:
        expected = f"numTraining = {_shown(task['numTraining'])} cases"
        listing.findings.append((listing.source, Finding("count", expected, str(count), "correct it", WARNING)))
    return listing


def _without_json(folder: Path) -> Iterator[Listing]:
    for images, labels in PAIRS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            yield list_folders(folder / images, folder / labels)
    if folder.is_dir() and (cases := brats_cases(nifti_files(folder))):
        yield _list_brats(folder, cases)


def _list_brats(folder: Path, cases: Mapping[tuple[Path, str, str], Mapping[str, Path]]) -> Listing:
    sign = next(iter(cases))[2]
    listing = Listing(str(folder), classes=CLASSES[sign], channels=len(MODALITIES), coded=True)
    for (place, name, other), parts in cases.items():
        if other != sign:
            hint = "keep challenges before and since 2023 apart: their labels differ"
            raise ValueError(f"{place / name}: expected names such as {sign}seg, got {other}seg; {hint}.")
        images = tuple(str(parts[modality]) for modality in MODALITIES if modality in parts)
        listing.cases.append(Case(images, str(parts["seg"]) if "seg" in parts else None, str(place / name)))
        if missing := missing_modalities(parts):
            found = Finding("files", f"{', '.join(MODALITIES)} of {name}", f"no {missing}", "restore it")
            listing.findings.append((images[0], found))
    listing.report_missing_labels(f"name it NAME{sign}seg, or give the folder of the training cases")
    return listing


def brats_label_values(source: PathLike) -> list[int]:
    """Labels of necrotic core, oedema and enhancing tumour in a data set.

    BraTS has 1, 2 and 4 up to 2022, 1, 2 and 3 since 2023; Task01 of the Decathlon 2, 1 and 3. Decided by the names of
    the files, else by the names of the labels in ``dataset.json``.

    Args:
        source: folder with cases as downloaded, or with ``dataset.json``.

    Raises:
        FileNotFoundError: when there is no data set.
        ValueError: when a name is missing or fits several labels, or the channels have names of another order.

    Example::

        >>> brats_label_values("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder with dataset.json, or give --images.
    """
    listing = list_task(source)
    if listing.channel_names:
        check_order(listing.channel_names, source)
    return tissue_labels(listing.classes, source)


def _list_decathlon(task: Mapping[str, Any], file: Path) -> Listing:
    listing = Listing(str(file), classes=_classes(task.get("labels"), file))
    if isinstance(names := task.get("modality"), Mapping):
        listing.channels, listing.channel_names = len(names), _in_order(names)
    listing.spatial_dims = 2 if task.get("tensorImageSize") == "2D" else 3
    for part in ("training", "validation", "test"):
        entries = task.get(part, None if part == "training" else [])
        if not isinstance(entries, list):
            raise ValueError(f"{file}: expected a list {part!r}, got {_shown(entries)}; complete it, or give --images.")
        listing.cases += [_case(entry, f"{part}[{index}]", part, file) for index, entry in enumerate(entries)]
    listed = {path for path, _ in listing.files}
    for folder in (file.parent / name for name in ("imagesTr", "labelsTr", "imagesTs")):
        files = [str(path) for path in nifti_files(folder)] if folder.is_dir() else []
        listing.findings += [(path, UNLISTED) for path in files if path not in listed]
    listing.report_missing_labels()
    return listing


def _list_nnunet(task: Mapping[str, Any], file: Path) -> Listing:
    ending, names, labels = task.get("file_ending", ".nii.gz"), task["channel_names"], task.get("labels")
    if ending not in (".nii", ".nii.gz"):
        raise ValueError(f"{file}: expected file_ending .nii.gz, got {_shown(ending)}; convert the files to NIfTI.")
    if not isinstance(names, Mapping) or not isinstance(labels, Mapping):
        raise ValueError(f"{file}: expected channel_names and labels, got {_shown(names)}; complete them.")
    listing = list_folders(file.parent / "imagesTr", file.parent / "labelsTr")
    if (file.parent / "imagesTs").is_dir():
        listing.cases += [replace(case, part="test") for case in list_folders(file.parent / "imagesTs").cases]
    listing.source, listing.channels, listing.channel_names = str(file), len(names), _in_order(names)
    if not all(str(number).isdigit() for number in labels.values()):
        raise ValueError(f"{file}: expected labels from name to number, got {_shown(labels)}; regions are not read.")
    listing.classes = _classes({number: name for name, number in labels.items()}, file)
    for case in listing.cases:
        if len(case.images) != len(names):
            expected, got = f"{len(names)} files, one per channel", str(len(case.images))
            listing.findings.append((case.images[0], Finding("files", expected, got, "restore the missing ones")))
    return listing


def list_folders(images: PathLike, labels: PathLike | None = None) -> Listing:
    """Pairs two folders and their sub-folders by the paths of their files; ``_0000`` to ``_9999`` may be channels."""
    # They are where the label map has the name without them, or where it is missing, there is a _0000 and none of them
    # has a label map of its own. Else they are the numbers of cases.
    listing = Listing(" and ".join(os.fspath(folder) for folder in (images, labels) if folder is not None))
    found, targets = _by_name(Path(images)), {} if labels is None else _by_name(Path(labels))
    numbered = {CHANNEL.sub("", name) for name in targets if CHANNEL.search(name)}
    groups: dict[str, list[str]] = {}
    for name, path in found.items():
        stem = CHANNEL.sub("", name)
        is_channel = stem in targets or (f"{stem}_0000" in found and stem not in numbered)
        groups.setdefault(stem if is_channel and name not in targets else name, []).append(path)
    listing.cases = [Case(tuple(paths), targets.get(name), name) for name, paths in groups.items()]
    alone = [(groups[name][0], name, "a label map", labels) for name in groups if labels and name not in targets]
    alone += [(path, name, "an image", images) for name, path in targets.items() if name not in groups]
    hint = "add it, or remove this file"
    for path, name, expected, folder in alone:
        listing.findings.append((path, Finding("unpaired", expected, f"none named {name} in {folder}", hint)))
    return listing


def _by_name(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with .nii or .nii.gz files.")
    found: dict[str, str] = {}
    for file in nifti_files(folder):
        name = file.relative_to(folder).as_posix()
        # Beside a.nii.gz, a.nii keeps its whole name and so finds no partner.
        found[name if stem_of(name) in found else stem_of(name)] = str(file)
    if not found:
        raise FileNotFoundError(f"{folder} holds no .nii or .nii.gz file; give another folder.")
    return found


def list_dictionaries(data: Sequence[Any]) -> Listing:
    """Lists data dictionaries with paths, such as ``load_datalist`` makes them; without label maps, or all with one."""
    listing = Listing("data", [_case(entry, f"data[{index}]") for index, entry in enumerate(data)])
    if any(case.label for case in listing.cases):
        listing.report_missing_labels()
    return listing


def _in_order(names: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_line(str(names[number])) for number in sorted(names, key=lambda number: (len(number), number)))


def _classes(names: Any, file: Path) -> dict[int, str] | None:
    try:
        return None if names is None else {int(label): _line(str(name)) for label, name in names.items()}
    except (AttributeError, ValueError, RecursionError):
        hint = "write them as in '1': 'liver'"
        raise ValueError(f"{file}: expected 'labels' from number to name, got {_shown(names)}; {hint}.") from None


def _case(entry: Any, place: str, part: str = "training", file: Path | None = None) -> Case:
    """An entry of a list; paths of one in a file lie in its folder: no list may name other files of the machine."""
    where = place if file is None else f"{file}, {place}"
    item = entry if isinstance(entry, Mapping) else {"image": entry}
    if not isinstance(entry, (str, list, Mapping)) or "image" not in item:
        raise ValueError(f"{where}: expected a path or a dictionary with image, got {_shown(entry)}; correct it.")
    images, label = ensure_tuple(item["image"]), item.get("label")
    if not images:
        raise ValueError(f"{where}: expected at least one image, got none; name one or remove the entry.")
    paths = [_path(path, where, file and file.parent) for path in (*images, *([label] if label else []))]
    return Case(tuple(paths[: len(images)]), paths[-1] if label else None, place, part, item.get("fold"))


def _path(value: Any, where: str, folder: Path | None) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{where}: expected a path, got {_shown(value)}; correct the list.")
    path = os.path.normpath(value)
    if path != _line(path):
        raise ValueError(f"{where}: expected a path of characters that names have, got {_shown(path)}; correct it.")
    if folder is None:
        return path
    if Path(path).is_absolute() or Path(path).parts[:1] == ("..",):
        raise ValueError(f"{where}: expected a path inside {folder}, got {path}; copy the file there.")
    return str(folder / path)


def _line(text: str) -> str:
    """Text that can be printed, as one line: ``?`` in place of halves of characters, of line ends and of their like."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:80]
