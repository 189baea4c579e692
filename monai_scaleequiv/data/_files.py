"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["remove_stale", "whole_file"]


@contextmanager
def whole_file(target: Path, replace: bool = True) -> Iterator[Path]:
    """A path to write to, which gets the target's name when the block ends without an error, and else is removed.

    Args:
        target: the file to be.
        replace: whether one of that name that exists by then is replaced.

    Raises:
        FileExistsError: when there is one and ``replace`` is false.

    Example::

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "report.json"
        >>> with whole_file(file) as unfinished:
        ...     _ = unfinished.write_text("{}")
        >>> [path.name for path in file.parent.iterdir()]
        ['report.json']
    """
    temporary = _temporary(target)
    try:
        yield temporary
        if replace:
            temporary.replace(target)
        else:
            _move_to_a_free_name(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{os.getpid()}-{target.name}")


def _move_to_a_free_name(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a move, never in the place of a file that has come in the meantime
    except FileExistsError:
        raise
    except OSError:  # a file system without such links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists") from None
        temporary.replace(target)


def remove_stale(target: Path) -> None:
    """Removes what a process that was killed left of the same file.

    Example::

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.nii"
        >>> file.with_name(".999999999999-a.nii").touch()
        >>> remove_stale(file)
        >>> list(file.parent.iterdir())
        []
    """
    ours = re.compile(rf"\.(\d+)-{re.escape(target.name)}")
    for path in target.parent.iterdir():
        match = ours.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # where asking would be ending it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it does, as another user
        pass
    return True
