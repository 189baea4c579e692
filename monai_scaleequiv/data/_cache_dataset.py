"""MONAI's caches: in memory without a thread that is left behind, on disk with a key that changes with the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.utils import ensure_tuple
from tqdm.contrib.concurrent import thread_map


def files_hashing(item: Mapping[str, Any]) -> bytes:
    """MONAI's ``pickle_hashing`` for ``PersistentDataset(hash_func=...)``, which other files of the same names change.

    Args:
        item: data dictionary of paths; size and time of each file count.

    Example::

        >>> len(files_hashing({"image": "no/such/file.nii"}))
        64
    """
    paths = [Path(path) for value in item.values() for path in ensure_tuple(value) if isinstance(path, str)]
    stats = [path.stat() for path in paths if path.is_file()]
    return pickle_hashing({"item": item, "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats]})


class JoinedCacheDataset(CacheDataset):
    """MONAI's ``CacheDataset`` whose threads have ended when an item raises an error.

    MONAI's own pool goes on with the other items. A thread that still works when the interpreter shuts down aborts the
    process with status 134, in place of the error's traceback and status 1. Arguments are those of ``CacheDataset``;
    the bar is shown on a terminal only.

    Example::

        >>> list(JoinedCacheDataset([1, 2], transform=str))
        ['1', '2']
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        items = range(self.cache_num) if indices is None else indices[: self.cache_num]
        hidden = None if self.progress else True
        load, workers = self._load_cache_item, self.num_workers
        return thread_map(load, items, max_workers=workers, desc="Loading dataset", disable=hidden)
