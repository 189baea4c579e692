"""Files that are there whole or not at all, and folders that can be written to."""

import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from monai.config import PathLike
from monai.utils import str2bool

STALE = 3600.0  # seconds without a change, after which no writer is at work any more


@contextmanager
def whole_file(target: Path, replace: bool = True) -> Iterator[Path]:
    """A path to write to, which gets the target's name when the block ends without an error, and else is removed.

    What writers that were killed left of the same file is removed when it is an hour old.

    Args:
        target: the file to be.
        replace: whether one of that name that exists by then is replaced; an empty one is in any case.

    Raises:
        FileExistsError: when there is one and ``replace`` is false.

    Example::

        >>> with whole_file(Path("report.json")) as unfinished:
        ...     _ = unfinished.write_text("{}")
        >>> Path("report.json").read_text()
        '{}'
    """
    leftover = re.compile(rf"\.[^/]*-\d+-[0-9a-f]{{8}}-{re.escape(target.name)}")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        with suppress(OSError):  # another writer may have removed it
            if leftover.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE:
                path.unlink()
    # Process numbers repeat on other nodes and in containers. The target's ending tells nibabel the format.
    writer = f"{platform.node()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{writer}-{target.name}")
    try:
        yield temporary
        if replace:
            temporary.replace(target)
        else:
            _move_to_a_free_name(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def has_content(path: Path) -> bool:
    """Whether there is something to lose: an empty file is none."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_size > 0)


def _move_to_a_free_name(temporary: Path, target: Path) -> None:
    if not has_content(target):
        target.unlink(missing_ok=True)
    try:
        os.link(temporary, target)  # unlike a move, never in the place of a file that has come in the meantime
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(target):
            raise FileExistsError(f"{target} exists by now; choose another file.") from None
        temporary.replace(target)  # on a file system without such links


def check_output_dir(
    folder: PathLike, name: str = "output_dir", files: Sequence[str] = (), overwrite: bool = False
) -> None:
    """Creates a folder for results and writes to it for a trial; what it holds stays as it is.

    Args:
        folder: where results will be written.
        name: of the argument, for the error.
        files: names or patterns of results, which may not be there already.
        overwrite: whether they may.

    Raises:
        FileExistsError: when one of ``files`` is there already and ``overwrite`` is false.
        OSError: when the folder cannot be made or written to, or the disk is full.
        ValueError: when ``overwrite`` is neither true nor false.

    Example::

        >>> check_output_dir("output")
    """
    may_replace = str2bool(str(overwrite))  # MONAI's command line gives "false"
    for file in () if may_replace else sorted(path for pattern in files for path in Path(folder).glob(pattern)):
        raise FileExistsError(f"{name}: {file} exists already; choose another folder, or set overwrite=true.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder), buffering=0) as trial:
            trial.write(bytes(4096))
    except OSError as error:
        got = f"{folder} ({error.strerror or type(error).__name__})"
        raise OSError(f"{name}: expected a folder that can be written to, got {got}; choose another.") from None
