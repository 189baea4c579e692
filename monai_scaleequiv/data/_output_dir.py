"""Whether results can be written, found out before the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["claim_output_dir"]

TRIAL = 4096  # bytes


def claim_output_dir(
    folder: str | os.PathLike, name: str = "output_dir", files: Sequence[str] = (), overwrite: bool = False
) -> None:
    """Creates a folder for results, and writes to it for a trial.

    Args:
        folder: where results will be written; what it holds stays as it is.
        name: of the argument, for the error.
        files: names or patterns of results, which may not be there already.
        overwrite: whether they may.

    Raises:
        FileExistsError: when one of ``files`` is there already and ``overwrite`` is false.
        OSError: when the folder cannot be made or written to, or the disk is full.

    Example::

        >>> claim_output_dir("output")
    """
    for file in () if overwrite else sorted(path for pattern in files for path in Path(folder).glob(pattern)):
        raise FileExistsError(f"{name}: {file} exists already; choose another folder, or set overwrite=true.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(TRIAL))
            trial.flush()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OSError(
            f"{name}: expected a folder that can be written to, got {folder} ({reason}); choose another."
        ) from None
