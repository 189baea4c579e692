"""From what a user names, a ``dataset.json`` or data dictionaries, to the cases of a data set."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_scaleequiv.data._datalist import nifti_files
from monai_scaleequiv.data._faults import WARNING, Fault

__all__ = ["Case", "Listing", "files_of", "list_dictionaries", "list_task", "task_datalist"]

UNLISTED = Fault("unlisted", "each volume on the list", "one that is not", "add it to the list or remove it", WARNING)


@dataclass(frozen=True)
class Case:
    """One or several images, each with some of the channels, and their label map.

    Args:
        images: paths.
        label: path, None without one.
        place: where the case stands on the list.
    """

    images: tuple[str, ...]
    label: str | None
    place: str


@dataclass
class Listing:
    """The cases of a data set, what it says about them, and what is wrong with the list itself.

    Args:
        source: what was named.
        cases: in the order of the list.
        classes: names by label, None where they are not known.
        channels: of each image, None where they are not known.
        spatial_dims: of each image.
        faults: file, and what is wrong with its place on the list.
    """

    source: str
    cases: list[Case] = field(default_factory=list)
    classes: dict[int, str] | None = None
    channels: int | None = None
    spatial_dims: int = 3
    faults: list[tuple[str, Fault]] = field(default_factory=list)


def list_task(source: str | os.PathLike) -> Listing:
    """Lists a task of the Medical Segmentation Decathlon.

    Args:
        source: its folder or its ``dataset.json``.

    Raises:
        FileNotFoundError: when there is no ``dataset.json``.
        ValueError: when it is not what the Decathlon has, or lists a path outside its folder.

    Example::

        >>> list_task("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder with dataset.json, or --images and --labels.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder with dataset.json, or --images and --labels.")
    file = path / "dataset.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give another folder, or --images and --labels.")
    task = _read_task(file)
    listing = Listing(str(file), classes=_classes(task, file))
    listing.channels = len(task["modality"]) if isinstance(task.get("modality"), Mapping) else None
    listing.spatial_dims = 2 if task.get("tensorImageSize") == "2D" else 3
    for key in ("training", "validation", "test"):
        for index, entry in enumerate(task.get(key, ())):
            listing.cases.append(_case(entry, f"{key}[{index}]", file))
    _compare_count(listing, task, file)
    _find_unlisted(listing, file.parent)
    return listing


def task_datalist(source: str | os.PathLike, key: str = "training") -> list[dict[str, Any]]:
    """Data dictionaries of a task of the Medical Segmentation Decathlon, of files inside its folder alone.

    MONAI's ``load_decathlon_datalist`` also takes ``../`` and absolute paths, that is any file of the machine.

    Args:
        source: the task's folder or its ``dataset.json``.
        key: ``"training"``, ``"validation"`` or ``"test"``.

    Returns:
        ``image``, one path or several, and ``label`` where there is one.

    Raises:
        FileNotFoundError: when there is no ``dataset.json``.
        ValueError: when it has no such list, or a path on it leaves the folder.

    Example::

        >>> import tempfile
        >>> from monai_scaleequiv import make_phantom_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = make_phantom_dataset(folder, cases=2, size=(24, 32, 24))
        ...     [sorted(item) for item in task_datalist(file)]
        [['image', 'label'], ['image', 'label']]
    """
    listing = list_task(source)
    cases = [case for case in listing.cases if case.place.startswith(f"{key}[")]
    if not cases:
        raise ValueError(f"{listing.source}: expected cases under {key!r}, got none; name another list.")
    images = [case.images[0] if len(case.images) == 1 else list(case.images) for case in cases]
    return [
        {"image": image} if case.label is None else {"image": image, "label": case.label}
        for case, image in zip(cases, images, strict=True)
    ]


def files_of(listing: Listing) -> list[tuple[str, bool]]:
    """Each file once, with whether it is a label map.

    Example::

        >>> files_of(Listing("data", [Case(("a.nii",), "b.nii", "data[0]")]))
        [('a.nii', False), ('b.nii', True)]
    """
    files = [(path, False) for case in listing.cases for path in case.images]
    files += [(case.label, True) for case in listing.cases if case.label is not None]
    return list(dict.fromkeys(files))


def list_dictionaries(data: Sequence[Mapping[str, Any]], image_key: str, label_key: str | None) -> Listing:
    """Lists data dictionaries, such as MONAI's ``load_decathlon_datalist`` makes them.

    Args:
        data: one dictionary per case, with paths.
        image_key: key of the image, or of a list of them.
        label_key: key of the label map, None without one.

    Raises:
        ValueError: when a value is no path.

    Example::

        >>> list_dictionaries([{"image": "a.nii", "label": "b.nii"}], "image", "label").cases
        [Case(images=('a.nii',), label='b.nii', place='data[0]')]
    """
    listing = Listing("data")
    for index, item in enumerate(data):
        place = f"data[{index}]"
        if not isinstance(item, Mapping) or image_key not in item or (label_key is not None and label_key not in item):
            keys = image_key if label_key is None else f"{image_key} and {label_key}"
            raise ValueError(f"{place}: expected a dictionary with {keys}, got {_shown(item)}; complete the list.")
        label = None if label_key is None else _path(item[label_key], place)
        images = tuple(_path(path, place) for path in ensure_tuple(item[image_key]))
        if not images:
            raise ValueError(f"{place}: expected at least one {image_key}, got none; name one or remove the entry.")
        listing.cases.append(Case(images, label, place))
    return listing


def _read_task(file: Path) -> dict[str, Any]:
    try:
        task = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got something else ({error}); mend it.") from None
    if not isinstance(task, dict) or not isinstance(task.get("training"), list):
        raise ValueError(f"{file}: expected a list 'training', got none; add it, or give --images and --labels.")
    for key in ("validation", "test"):
        if not isinstance(task.get(key, []), list):
            raise ValueError(f"{file}: expected a list {key!r}, got {_shown(task[key])}; mend it.")
    return task


def _classes(task: Mapping[str, Any], file: Path) -> dict[int, str] | None:
    names = task.get("labels")
    if names is None:
        return None
    try:
        return {int(label): _line(str(name)) for label, name in names.items()}
    except (AttributeError, ValueError, RecursionError):
        raise ValueError(
            f"{file}: expected 'labels' from number to name, got {_shown(names)}; write them as in '1': 'liver'."
        ) from None


def _case(entry: Any, place: str, file: Path) -> Case:
    item = {"image": entry} if isinstance(entry, (str, list)) else entry
    if not isinstance(item, Mapping) or "image" not in item:
        raise ValueError(f"{file}, {place}: expected a path or a dictionary with image, got {_shown(entry)}; mend it.")
    images = ensure_tuple(item["image"])
    if not images:
        raise ValueError(f"{file}, {place}: expected at least one image, got none; name one or remove the entry.")
    label = item.get("label")
    paths = [_inside(file, place, path) for path in (*images, *([label] if label else []))]
    return Case(tuple(paths[: len(images)]), paths[-1] if label else None, place)


def _inside(file: Path, place: str, value: Any) -> str:
    path = _path(value, f"{file}, {place}")
    if Path(path).is_absolute() or Path(path).parts[:1] == ("..",):
        raise ValueError(f"{file}, {place}: expected a path inside {file.parent}, got {path}; copy the file there.")
    return str(file.parent / path)


def _compare_count(listing: Listing, task: Mapping[str, Any], file: Path) -> None:
    count = len(task["training"])
    if task.get("numTraining", count) != count:
        expected = f"numTraining = {_shown(task['numTraining'])} cases"
        fault = Fault("count", expected, str(count), "mend one of them", WARNING)
        listing.faults.append((str(file), fault))
    for case in listing.cases:
        if case.label is None and case.place.startswith(("training", "validation")):
            fault = Fault("unpaired", "a label map", f"none at {case.place}", "add it to the list")
            listing.faults.append((case.images[0], fault))


def _find_unlisted(listing: Listing, root: Path) -> None:
    listed = {path for case in listing.cases for path in (*case.images, case.label) if path}
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        listing.faults += [(path, UNLISTED) for path in map(str, nifti_files(root / name)) if path not in listed]


def _path(value: Any, place: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{place}: expected a path, got {_shown(value)}; mend the list.")
    path = os.path.normpath(value)
    if path != _line(path):
        raise ValueError(f"{place}: expected a path of characters that names have, got {_shown(path)}; mend the list.")
    return path


def _line(text: str) -> str:
    """Text that can be printed, as one line: ``?`` in place of halves of characters, of line ends and of their like."""
    whole = text.encode("utf-8", "replace").decode()
    return "".join("?" if unicodedata.category(letter) == "Cc" else letter for letter in whole)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= 60 else f"{text[:60]} ..."
