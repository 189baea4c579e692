"""The lists of cases that a training and an evaluation use."""

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from monai.config import PathLike
from monai.data import partition_dataset
from monai.utils import ensure_tuple

from monai_scaleequiv.data._case import Listing
from monai_scaleequiv.data._listing import list_task
from monai_scaleequiv.data._record import case_sizes, read_record
from monai_scaleequiv.data.rules import raise_first

Data = list[dict[str, Any]]


def load_datalist(source: PathLike, key: str = "training") -> Data:
    """Data dictionaries of a Decathlon task or of an nnU-Net v2 raw folder, of files inside its folder alone.

    Args:
        source: the folder or its ``dataset.json``.
        key: ``"training"``, ``"validation"`` or ``"test"``.

    Returns:
        ``image``, one path or several, ``label`` and ``fold`` where there is one.

    Raises:
        FileNotFoundError: when there is no ``dataset.json``.
        ValueError: when it has no such list, a path on it leaves the folder, or a case lacks a file.

    Example::

        >>> from monai_scaleequiv.data import make_phantom_dataset
        >>> load_datalist(make_phantom_dataset("listed", cases=1, size=(16, 16, 16)))
        [{'image': 'listed/imagesTr/phantom_000.nii.gz', 'label': 'listed/labelsTr/phantom_000.nii.gz'}]
    """
    listing = list_task(source)
    data = _dictionaries(listing, key)
    if not data:
        raise ValueError(f"{listing.source}: expected cases under {key!r}, got none; name another list.")
    return data


def class_names(source: PathLike) -> dict[int, str]:
    """Names by label, from the ``dataset.json`` of a data set; none where there is no such file that can be read.

    Args:
        source: see ``load_datalist``.

    Example::

        >>> class_names("no/such/folder")
        {}
    """
    with suppress(FileNotFoundError, ValueError):  # which a check of the data reports, and names alone do not need
        return list_task(source).classes or {}
    return {}


def split_datalist(source: PathLike, fold: int = 0, ratio: float = 0.8, seed: int = 0) -> tuple[Data, Data]:
    """Splits labelled cases into those to train on and those to validate on.

    Validated on is the list ``validation`` of ``dataset.json``; without one, the cases of ``fold`` where cases have
    such a key; without any, a part of the cases that MONAI's ``partition_dataset`` draws, with all of a patient in it.

    Args:
        source: see ``load_datalist``.
        fold: number of the fold to validate on.
        ratio: share of the cases to train on, where they are drawn.
        seed: of the draw.

    Raises:
        ValueError: when either part would be empty.

    Example::

        >>> from monai_scaleequiv.data import make_phantom_dataset
        >>> training, validation = split_datalist(make_phantom_dataset("split", cases=5, size=(16, 16, 16)))
        >>> len(training), len(validation)
        (4, 1)
    """
    listing = list_task(source)
    training, validation = _dictionaries(listing, "training"), _dictionaries(listing, "validation")
    folds = list(dict.fromkeys(str(item["fold"]) for item in training if "fold" in item))
    if not validation and folds:
        if str(fold) not in folds:
            raise ValueError(f"fold: expected one of {', '.join(folds)}, got {fold}; choose another.")
        validation = [item for item in training if str(item.get("fold")) == str(fold)]
        training = [item for item in training if str(item.get("fold")) != str(fold)]
    elif not validation and training:
        by_patient: dict[str, Data] = {}
        for item in training:
            by_patient.setdefault(_patient_of(item), []).append(item)
        drawn = partition_dataset([*by_patient], ratios=[ratio, 1 - ratio], shuffle=True, seed=seed)
        training, validation = ([item for patient in part for item in by_patient[patient]] for part in drawn)
    if not training or not validation:
        found = f"expected labelled cases to train on and to validate on, got {len(training)} and {len(validation)}"
        raise ValueError(f"{listing.source}: {found}; add some.")
    return training, validation


def held_out(source: PathLike, ckpt_path: PathLike, fold: int = 0) -> Data:
    """The labelled cases that an evaluation measures: those that the training of the weights did not see.

    Args:
        source: see ``load_datalist``.
        ckpt_path: weights; the record beside them lists the cases of their training, by name and size. Without a record
            the validation part of ``split_datalist`` is taken. Unless all cases are, a warning says how many.
        fold: see ``split_datalist``.

    Raises:
        ValueError: when no case is left.

    Example::

        >>> held_out("no/such/folder", "model.pt")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder with dataset.json, or give --images.
    """
    listing = list_task(source)
    cases = _dictionaries(listing, "training") + _dictionaries(listing, "validation")
    seen = (read_record(ckpt_path) or {}).get("training_cases")
    if isinstance(seen, Mapping):
        left = [case for case in cases if not case_sizes([case]).items() <= seen.items()]
        why = f"the training of {ckpt_path} saw the others"
    else:
        left = split_datalist(source, fold)[1]
        why = f"without a record of the training of {ckpt_path}, the others are taken for its training part"
    if not left:
        raise ValueError(f"{listing.source}: expected cases that the training did not see, got none; give others.")
    if len(left) < len(cases):
        warnings.warn(f"{listing.source}: measures {len(left)} of {len(cases)} labelled cases; {why}.", stacklevel=2)
    return left


def _patient_of(item: Mapping[str, Any]) -> str:
    """Who a case is of: BraTS numbers several scans of one patient since 2023, as in BraTS-GLI-00008-100."""
    file = str(ensure_tuple(item["image"])[0])
    match = re.search(r"(BraTS-[A-Z]+-\d+)-\d{3}\b", file)
    return match[1] if match else file


def _dictionaries(listing: Listing, part: str) -> Data:
    cases = [case for case in listing.cases if case.part == part]
    files = {path for case in cases for path, _ in case.files}
    for file, finding in listing.findings:
        if file in files or part == "training":
            raise_first(file, finding)
    images = [case.images[0] if len(case.images) == 1 else list(case.images) for case in cases]
    data = [{"image": i, "label": case.label, "fold": case.fold} for i, case in zip(images, cases, strict=True)]
    return [{key: value for key, value in item.items() if value is not None} for item in data]
