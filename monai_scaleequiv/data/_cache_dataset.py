"""MONAI's cache in memory, which leaves no thread behind."""

from collections.abc import Sequence

from monai.data import CacheDataset
from tqdm.contrib.concurrent import thread_map


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
