"""The data check on the command line: a table, one line per finding, and a report as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai_scaleequiv.data import check_dataset, check_output_dir, whole_file

__all__ = ["make_check"]


def make_check(output: str, tell: Callable[[str], object], **options: Any) -> None:
    """Checks a data set, tells what was found and writes it to a file.

    Args:
        output: JSON file to write; empty for none.
        tell: is given the table and the findings.
        options: arguments of ``check_dataset``.

    Raises:
        FileExistsError: when the file is there already.
        OSError: when it cannot be written.
        ValueError: when the data set has errors, after everything has been told.

    Example::

        >>> make_check("", print, source="no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder does not exist; give a folder with dataset.json, or --images and --labels.
    """
    target = Path(output) if output else None
    if target is not None:
        _claim(target)
    report = check_dataset(progress=True, **options)
    tell(report.table() + "".join(f"{line}\n" for line in report.lines))
    if target is not None:
        _write(target, json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n")
        tell(f"{target}\n")
    if report.errors:
        number, source = len(report.errors), report.source
        raise ValueError(f"{source}: expected no errors, got {number}; mend what the lines above name.")


def _claim(target: Path) -> None:
    """Finds out before the work whether the report can be written after it."""
    if target.exists():
        raise FileExistsError(f"--output: {target} exists already; choose another file or remove it.")
    check_output_dir(target.parent, "--output")


def _write(target: Path, text: str) -> None:
    try:
        with whole_file(target, replace=False) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except FileExistsError:
        raise FileExistsError(f"--output: {target} exists by now; choose another file.") from None
