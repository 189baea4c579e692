"""The check of a whole data set before anything is trained on it, and its report in lines, as a table, as JSON."""

import math
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.config import PathLike
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._listing import list_dictionaries, list_folders, list_task
from monai_scaleequiv.data._read import read_facts
from monai_scaleequiv.data._record import plain
from monai_scaleequiv.data._set_rules import Facts, all_findings
from monai_scaleequiv.data.rules import Finding

LITTLE = 64 << 20  # bytes that are read sooner than a pool of processes has started and passed on what it found


@dataclass(frozen=True)
class DatasetReport:
    """Outcome of :py:func:`check_dataset`.

    Example::

        >>> report = DatasetReport("data", 1, None, {}, (("a.nii", Finding("file", "a file", "none", "restore it")),))
        >>> report.lines
        ['error a.nii: expected a file, got none; restore it.']
        >>> report.raise_errors()
        Traceback (most recent call last):
        ValueError: data: 1 error; a.nii: expected a file, got none; restore it.
    """

    source: str
    cases: int
    classes: dict[int, str] | None  # names by label
    facts: Facts  # by file and whether it is a label map
    findings: tuple[tuple[str, Finding], ...]  # by file, errors first

    @property
    def lines(self) -> list[str]:
        """One line per finding, with its severity."""
        return [f"{finding.severity} {file}: {finding}" for file, finding in self.findings]

    @property
    def errors(self) -> list[str]:
        """One line per error."""
        return [line.removeprefix("error ") for line in self.lines if line.startswith("error ")]

    @property
    def warnings(self) -> list[str]:
        """One line per warning."""
        return [line.removeprefix("warning ") for line in self.lines if line.startswith("warning ")]

    def raise_errors(self) -> None:
        """Raises a ValueError of one line, with the first error, if there is any; else warns of the first warning."""
        if self.errors:
            raise ValueError(f"{self.source}: {_count(len(self.errors), 'error')}; {self.errors[0]}")
        if found := self.warnings:
            warnings.warn(f"{self.source}: {_count(len(found), 'warning')}; {found[0]}", stacklevel=2)

    def table(self) -> str:
        """What the data set is like, in a few lines."""
        rows = [("", "files", "shape", "voxel size (mm)", "stored as"), self._row(False), self._row(True)]
        lines = [f"{self.source}: {_count(self.cases, 'case')}, {_count(len(self.facts), 'file')}", "", *_columns(rows)]
        classes = self._class_rows()
        lines += ["", *_columns([("label", "cases", "voxels"), *classes])] if classes else []
        lines += ["", f"{_count(len(self.errors), 'error')}, {_count(len(self.warnings), 'warning')}"]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready to be written as JSON: numbers that are not finite become text."""
        report = {"source": self.source, "cases": self.cases, "classes": self.classes}
        report |= {"errors": len(self.errors), "warnings": len(self.warnings)}
        report["findings"] = [{"file": file, **vars(finding)} for file, finding in self.findings]
        roles = {False: "image", True: "label"}
        files = [{"file": file, "role": roles[label], **vars(facts)} for (file, label), facts in self.facts.items()]
        return plain({**report, "files": [{k: v for k, v in file.items() if k != "findings"} for file in files]})

    def _row(self, label: bool) -> tuple[str, ...]:
        facts = [f for (_, is_label), f in self.facts.items() if is_label is label]
        read = [f for f in facts if f.shape]
        sound = [rules.spacing_of(f.affine) for f in read if rules.affine(f.affine, math.inf) is None]
        kinds = ", ".join(f"{kind} ({n})" for kind, n in Counter(f.dtype for f in read).most_common()) or "-"
        return "labels" if label else "images", str(len(facts)), _ranges([f.shape for f in read]), _ranges(sound), kinds

    def _class_rows(self) -> list[tuple[str, str, str]]:
        cases: Counter[Any] = Counter()
        voxels: dict[float, float] = defaultdict(float)
        for value, count in (pair for (_, label), facts in self.facts.items() if label for pair in facts.labels):
            cases[value] += 1
            voxels[value] += count
        names: Any = self.classes or {}
        total = sum(voxels.values()) or 1
        values = sorted({*names, *cases})
        rows = [(f"{v:g} {names.get(v, '')}", str(cases[v]), f"{100 * voxels[v] / total:.2f} %") for v in values[:50]]
        return rows + [("...", "", "")] * (len(values) > 50)


def check_dataset(
    source: Sequence[Mapping[str, Any]] | PathLike | None = None,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    num_classes: Sequence[int] | int | None = None,
    channels: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> DatasetReport:
    """Reads every file of a data set to its end and looks for whatever would spoil a training or its figures.

    Args:
        source: a Decathlon task or an nnU-Net v2 raw folder, or its ``dataset.json``; or data dictionaries with paths
            under ``image`` and ``label``.
        images: instead of ``source``, a folder of images.
        labels: folder of their label maps, with the same file names.
        num_classes: labels are whole numbers from 0 to ``num_classes - 1``, or these numbers; by default as in
            ``dataset.json``.
        channels: of each image; by default as in ``dataset.json``, else what most images have.
        workers: number of processes that read; by default one per CPU core if there is much to read.
        progress: whether to show a progress bar, if standard error is a terminal.

    Returns:
        report with all errors and warnings; nothing is raised for them.

    Raises:
        FileNotFoundError: when ``source``, ``images`` or ``labels`` does not exist.
        RuntimeError: when a reading process was ended from outside.
        ValueError: when an argument or the list itself is not what it should be.

    Example::

        >>> from monai_scaleequiv.data import make_phantom_dataset
        >>> check_dataset(make_phantom_dataset("checked", cases=2, size=(16, 16, 16))).errors
        []
    """
    coded = isinstance(num_classes, (list, tuple))
    counts = {"num_classes": None if coded else num_classes, "channels": channels, "workers": workers}
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    if (source is None) == (images is None) or (images is None and labels is not None):
        raise ValueError("check: expected a data set or --images with or without --labels; give one of the two.")
    if images is not None:
        listing = list_folders(images, labels)
    else:
        listing = list_task(source) if isinstance(source, (str, os.PathLike)) else list_dictionaries(source or ())
    if num_classes is not None:
        values = range(num_classes) if isinstance(num_classes, int) else num_classes
        listing.classes = {value: (listing.classes or {}).get(value, "") for value in values}
        listing.coded = coded
    listing.channels = channels or listing.channels
    facts = _read_all(listing.files, workers, progress)
    findings = tuple(all_findings(listing, facts))
    return DatasetReport(listing.source, len(listing.cases), listing.classes, facts, findings)


def _read_all(files: Sequence[tuple[str, bool]], workers: int | None, progress: bool) -> Facts:
    if workers is None:
        size = sum(Path(path).stat().st_size for path, _ in files if Path(path).is_file())
        workers = len(os.sched_getaffinity(0)) if size > LITTLE and sys.platform == "linux" else 1
    bar: dict[str, Any] = {"desc": "check", "unit": "file", "disable": None if progress else True, "leave": False}
    if min(workers, len(files)) < 2:
        return {file: read_facts(*file) for file in tqdm(files, **bar)}
    try:
        facts = process_map(read_facts, *zip(*files, strict=True), max_workers=workers, chunksize=1, **bar)
    except BrokenProcessPool:
        raise RuntimeError("a reading process was ended from outside, perhaps for memory; set workers to 1.") from None
    return dict(zip(files, facts, strict=True))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ranges(rows: Sequence[Sequence[float]]) -> str:
    """Smallest to largest along each axis."""
    if not rows or len({len(row) for row in rows}) > 1:
        return "various" if rows else "-"
    spans = ((f"{min(axis):.4g}", f"{max(axis):.4g}") for axis in zip(*rows, strict=True))
    return " x ".join(low if low == high else f"{low}..{high}" for low, high in spans)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
