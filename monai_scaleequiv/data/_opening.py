"""Opening files for reading: errors in one line with the file, and no waiting for what is no file."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from monai_scaleequiv.data._datalist import NIFTI
from monai_scaleequiv.data._faults import Fault

__all__ = ["BrokenFileError", "is_nifti", "open_file", "told"]


class BrokenFileError(ValueError):
    """A file that cannot be read, with its fault."""

    def __init__(self, path: str | os.PathLike, fault: Fault) -> None:
        super().__init__(f"{os.fspath(path)}: {fault}")
        self.fault = fault


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a name is that of a NIfTI file; like readers do, it takes capitals for small letters.

    Example::

        >>> is_nifti("SCAN.NII.GZ")
        True
    """
    return os.fspath(path).lower().endswith(NIFTI)


def open_file(path: str | os.PathLike) -> IO[bytes]:
    """Opens a file, unpacking ``.gz``; a named pipe, which may never have anything to read, is not opened."""
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a name that no file can have
        raise FileNotFoundError from None
    if not stat.S_ISREG(mode):
        got = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise BrokenFileError(path, Fault("unreadable", "a file", got, "give the file itself"))
    return gzip.open(path) if os.fspath(path).lower().endswith(".gz") else open(path, "rb")  # noqa: PTH123


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
    """Turns what the decompressor and the system raise, which often leave out the file, into one line with it."""
    again = "copy or download the file again"
    try:
        yield
    except EOFError:
        raise BrokenFileError(path, Fault("file", "a whole gzip stream", "one that is cut off", again)) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        got = f"a damaged one ({error})"
        raise BrokenFileError(path, Fault("file", "a sound gzip stream", got, again)) from None
    except FileNotFoundError:
        raise BrokenFileError(path, Fault("missing", "a file", "none", "restore it")) from None
    except OSError as error:
        got = error.strerror or str(error)
        raise BrokenFileError(path, Fault("unreadable", "a file that can be read", got, "allow or repair it")) from None
