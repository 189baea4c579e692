"""The check of a whole data set before anything is trained on it."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from monai.config import PathLike
from tqdm import tqdm

from monai_scaleequiv.data._facts import VolumeFacts
from monai_scaleequiv.data._listing import list_dictionaries, list_folders, list_task
from monai_scaleequiv.data._read import read_facts
from monai_scaleequiv.data._report import DatasetReport
from monai_scaleequiv.data._set_rules import all_findings

LITTLE = 64 << 20  # bytes that are read sooner than a pool of processes has started and passed on what it found

File = tuple[str, bool]


def check_dataset(
    source: Sequence[Mapping[str, Any]] | PathLike | None = None,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    spatial_dims: int | None = None,
    image_key: str = "image",
    label_key: str | None = "label",
    workers: int | None = None,
    progress: bool = False,
) -> DatasetReport:
    """Reads every file of a data set to its end and looks for whatever would spoil a training or its figures.

    Args:
        source: a Decathlon task or an nnU-Net v2 raw folder, or its ``dataset.json``; or data dictionaries with paths.
        images: instead of ``source``, a folder of images.
        labels: folder of their label maps, with the same file names.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``; by default as in ``dataset.json``.
        channels: of each image; by default as in ``dataset.json``, else what most images have.
        spatial_dims: number of spatial dimensions; by default as in ``dataset.json``, else 3.
        image_key: key of the image, or of several, in data dictionaries.
        label_key: key of the label map, None without one.
        workers: number of processes that read; by default one per CPU core if there is much to read.
        progress: whether to show a progress bar, if standard error is a terminal.

    Returns:
        report with all errors and warnings; nothing is raised for them.

    Raises:
        FileNotFoundError: when ``source``, ``images`` or ``labels`` does not exist.
        RuntimeError: when a reading process was ended from outside.
        ValueError: when an argument or the list itself is not what it should be.

    Example::

        >>> import tempfile
        >>> from monai_scaleequiv.data import make_phantom_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_phantom_dataset(folder, cases=2, size=(24, 32, 24)).name
        ...     check_dataset(folder).errors
        'dataset.json'
        []
    """
    for name, value in {"num_classes": num_classes, "channels": channels, "workers": workers}.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    if (source is None) == (images is None) or (images is None and labels is not None):
        raise ValueError("check: expected a data set or --images with or without --labels; give one of the two.")
    if images is not None:
        listing = list_folders(images, labels)
    elif isinstance(source, (str, os.PathLike)):
        listing = list_task(source)
    else:
        listing = list_dictionaries(source or (), image_key, label_key)
    if num_classes is not None:
        listing.classes = {value: (listing.classes or {}).get(value, "") for value in range(num_classes)}
    listing.channels, listing.spatial_dims = channels or listing.channels, spatial_dims or listing.spatial_dims
    facts = _read_all(listing.files, workers, progress)
    findings = tuple(all_findings(listing, facts))
    return DatasetReport(listing.source, len(listing.cases), listing.classes, facts, findings)


def _read_all(files: Sequence[File], workers: int | None, progress: bool) -> dict[File, VolumeFacts]:
    if workers is None:
        size = sum(Path(path).stat().st_size for path, _ in files if Path(path).is_file())
        workers = len(os.sched_getaffinity(0)) if size > LITTLE and sys.platform == "linux" else 1
    hidden = None if progress and files else True
    show = functools.partial(tqdm, total=len(files), desc="check", unit="file", disable=hidden, leave=False)
    if min(workers, len(files)) < 2:
        return dict(zip(files, show(read_facts(*file) for file in files), strict=True))
    # New interpreters would import PyTorch first, which takes longer than reading many a data set.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(files)), mp_context=context) as pool:
            return dict(zip(files, show(pool.map(read_facts, *zip(*files, strict=True))), strict=True))
    except BrokenProcessPool:
        raise RuntimeError("a reading process was ended from outside, perhaps for memory; set workers to 1.") from None
