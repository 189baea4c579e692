"""The check of a whole data set before anything is trained on it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from monai_scaleequiv.data._audit_cache import FactsCache, cache_folder, state_of
from monai_scaleequiv.data._audit_folders import list_folders
from monai_scaleequiv.data._audit_listing import Listing, files_of, list_dictionaries, list_task
from monai_scaleequiv.data._audit_report import DatasetReport
from monai_scaleequiv.data._audit_rules import all_faults
from monai_scaleequiv.data._faults import ERROR
from monai_scaleequiv.data._volume_file import VolumeFacts, read_facts

__all__ = ["check_dataset"]

LITTLE = 64 << 20  # bytes that are read sooner than a pool of processes has started and passed on what it found

File = tuple[str, bool]


def check_dataset(
    source: Sequence[Mapping[str, Any]] | str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    spatial_dims: int | None = None,
    image_key: str = "image",
    label_key: str | None = "label",
    workers: int | None = None,
    fresh: bool = False,
    progress: bool = False,
) -> DatasetReport:
    """Reads every file of a data set to its end and looks for whatever would spoil a training or its figures.

    Checksum, header, axes, channels, data type, NaN and infinity, affine, voxel size, the grids of image and label map,
    label values, empty labels, copies, equal names, missing and unpaired files. Files that have kept size and times of
    change are not read again: what was found out about them is kept below ``XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        source: a task of the Medical Segmentation Decathlon, as its folder or its ``dataset.json``, or data
            dictionaries with paths.
        images: instead of ``source``, a folder of images.
        labels: folder of their label maps, with the same file names.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``; by default as in ``dataset.json``.
        channels: number of channels of each image; by default as in ``dataset.json``, else what most images have.
        spatial_dims: number of spatial dimensions; by default as in ``dataset.json``, else 3.
        image_key: key of the image, or of several, in data dictionaries.
        label_key: key of the label map, None without one.
        workers: number of processes that read; 1 for this one alone; by default one per CPU core if there is much to
            read.
        fresh: whether to read all files again.
        progress: whether to show a progress bar, if standard error is a terminal.

    Returns:
        report with all errors and warnings; nothing is raised for them.

    Raises:
        FileNotFoundError: when ``source``, ``images`` or ``labels`` does not exist.
        RuntimeError: when a reading process was ended from outside.
        ValueError: when an argument or the list itself is not what it should be.

    Example::

        >>> import tempfile
        >>> from monai_scaleequiv import make_phantom_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_phantom_dataset(folder, cases=2, size=(24, 32, 24)).name
        ...     check_dataset(folder).errors
        'dataset.json'
        []
    """
    for name, value in {"num_classes": num_classes, "channels": channels, "workers": workers}.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    listing = _list(source, images, labels, image_key, label_key)
    listing.classes = listing.classes if num_classes is None else _named(num_classes, listing.classes)
    listing.channels = listing.channels if channels is None else channels
    listing.spatial_dims = listing.spatial_dims if spatial_dims is None else spatial_dims

    files, cache = files_of(listing), FactsCache(cache_folder())
    facts: dict[File, VolumeFacts] = {}
    for file in [] if fresh else files:
        stored = cache.get(*file)
        if stored is not None:
            facts[file] = stored
    states = {file: state_of(file[0]) for file in files if file not in facts}
    if workers is None:
        workers = _cores() if sum(state[0] for state in states.values() if state) > LITTLE else 1
    try:
        for file, found in _read_all(list(states), workers, progress):
            facts[file] = found
            cache.put(*file, found, states[file])
    finally:
        cache.save()
    findings = sorted(all_faults(listing, facts), key=lambda finding: finding[1].severity != ERROR)
    ordered = {file: facts[file] for file in files}
    return DatasetReport(
        listing.source, len(listing.cases), listing.classes, ordered, tuple(findings), read=len(states)
    )


def _list(
    source: Sequence[Mapping[str, Any]] | str | os.PathLike | None,
    images: str | os.PathLike | None,
    labels: str | os.PathLike | None,
    image_key: str,
    label_key: str | None,
) -> Listing:
    if (source is None) == (images is None) or (images is None and labels is not None):
        raise ValueError("check: expected a data set or --images with or without --labels; give one of the two.")
    if images is not None:
        return list_folders(images, labels)
    if isinstance(source, (str, os.PathLike)):
        return list_task(source)
    return list_dictionaries(source, image_key, label_key)


def _named(num_classes: int, names: Mapping[int, str] | None) -> dict[int, str]:
    return {value: (names or {}).get(value, "") for value in range(num_classes)}


def _read_all(files: Sequence[File], workers: int, progress: bool) -> Iterator[tuple[File, VolumeFacts]]:
    bar = tqdm(total=len(files), desc="check", unit="file", disable=None if progress and files else True, leave=False)
    workers = min(workers, len(files))
    with bar:
        read = _read_in_pool(files, workers) if workers > 1 else _read_here(files)
        for file, found in read:
            bar.update()
            yield file, found


def _read_here(files: Sequence[File]) -> Iterator[tuple[File, VolumeFacts]]:
    for file in files:
        yield file, read_facts(*file)


def _read_in_pool(files: Sequence[File], workers: int) -> Iterator[tuple[File, VolumeFacts]]:
    # New interpreters would import PyTorch first, which takes longer than reading many a data set.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting = {pool.submit(read_facts, *file): file for file in files}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise RuntimeError("a reading process was ended from outside, perhaps for memory; set workers to 1.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
