"""What earlier checks found out about files, so that unchanged ones need not be read again."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections import defaultdict
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from monai_scaleequiv.data._faults import Fault
from monai_scaleequiv.data._files import whole_file
from monai_scaleequiv.data._volume_file import VolumeFacts

__all__ = ["FactsCache", "cache_folder", "state_of"]

LAYOUT = "monai_scaleequiv check 2"  # of the stored facts; another number where their meaning changes


def cache_folder() -> Path | None:
    """Where the facts are kept: below ``XDG_CACHE_HOME`` or ``~/.cache``; None where there is no home.

    Example::

        >>> cache_folder().name  # doctest: +SKIP
        'check'
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # noqa: PTH117  # the standard says to pass over relative ones
        try:
            home = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(home) / "monai_scaleequiv" / "check"


class FactsCache:
    """Facts by file; those of a file count as long as it is the same one, of the same size and times.

    There is one JSON file per folder of data, with a checksum: a damaged one is as good as none. A cache that cannot be
    written is passed over, too.

    Args:
        folder: where it is kept, None for nowhere.

    Example::

        >>> cache = FactsCache(None)
        >>> cache.get("no.nii.gz", label=False) is None
        True
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._stored: dict[str, dict[str, Any]] = {}
        self._new: dict[str, dict[str, Any]] = defaultdict(dict)

    def get(self, path: str, label: bool) -> VolumeFacts | None:
        """Facts of a file, None where it has not been read or has changed since."""
        parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        entry = self._of(parent).get(_key(name, label))
        state = state_of(path)
        if not isinstance(entry, dict) or state is None or entry.get("state") != state:
            return None
        try:
            facts = VolumeFacts(**entry["facts"])
            facts.faults = [Fault(**fault) for fault in facts.faults]
        except (KeyError, TypeError):
            return None
        return facts

    def put(self, path: str, label: bool, facts: VolumeFacts, state: list[int] | None) -> None:
        """Keeps facts, with the file's state from before it was read."""
        # A file that is missing or cannot be read now may well be read next time.
        if self.folder is None or state is None or {f.kind for f in facts.faults} & {"missing", "unreadable"}:
            return
        parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        self._new[parent][_key(name, label)] = {"state": state, "facts": asdict(facts)}

    def save(self) -> None:
        """Writes what is new."""
        for parent, entries in self._new.items():
            self._stored.pop(parent, None)  # others may have written in the meantime
            kept = {k: v for k, v in self._of(parent).items() if (Path(parent) / k.partition(":")[2]).exists()}
            text = json.dumps({**kept, **entries}).encode()
            with contextlib.suppress(OSError):
                _write(self._file(parent), b"%s %d\n%s" % (LAYOUT.encode(), zlib.crc32(text), text))
        self._new.clear()

    def _of(self, parent: str) -> dict[str, Any]:
        if self.folder is None:
            return {}
        if parent not in self._stored:
            self._stored[parent] = _read(self._file(parent))
        return self._stored[parent]

    def _file(self, parent: str) -> Path:
        return Path(self.folder or "") / f"{blake2b(os.fsencode(parent), digest_size=16).hexdigest()}.json"


def state_of(path: str) -> list[int] | None:
    """Size, times and number of a file, None where there is none.

    The time of change of the content can be set back, as many a tool that copies or mends files does; that of the
    entry cannot.

    Example::

        >>> state_of("no.nii.gz") is None
        True
    """
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _key(name: str, label: bool) -> str:
    return f"{'label' if label else 'image'}:{name}"


def _read(file: Path) -> dict[str, Any]:
    try:
        head, _, text = file.read_bytes().partition(b"\n")
        entries = json.loads(text) if head == b"%s %d" % (LAYOUT.encode(), zlib.crc32(text)) else {}
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as unfinished:
        unfinished.write_bytes(content)
