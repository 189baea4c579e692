"""MONAI's cache in memory, which leaves no thread behind."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from monai.data import CacheDataset
from tqdm import tqdm


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
        with ThreadPoolExecutor(self.num_workers) as pool:
            loaded = pool.map(self._load_cache_item, items)
            return list(tqdm(loaded, total=len(items), desc="Loading dataset", disable=None if self.progress else True))
