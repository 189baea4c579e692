"""A folder of volumes, of which a bad one does not stop the others."""

from __future__ import annotations

import errno
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.apps import get_logger
from monai.data import Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey, ensure_tuple

from monai_scaleequiv.data._errors import one_line, root_cause

__all__ = ["TolerantDataset", "TolerantEvaluator"]

FAILURE = "failure"
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no later volume could be written either
SHOWN = 3


class TolerantDataset(Dataset):
    """MONAI's ``Dataset`` for ``TolerantEvaluator``: a volume that cannot be prepared is told of instead of raised.

    Such an item is ``{"image": FILE, "failure": TEXT}``. The error of a single volume is raised as it is.

    Args:
        data: dictionaries with paths.
        transform: see ``Dataset``.
        key: key of the path that names a volume.

    Example::

        >>> def fail(item): raise ValueError("bad header")
        >>> TolerantDataset([{"image": "a.nii"}, {"image": "b.nii"}], fail)[1]
        {'image': 'b.nii', 'failure': 'b.nii: bad header'}
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable | Sequence | None = None, key: str = "image"
    ) -> None:
        super().__init__(data, transform)
        self.key = key

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            if len(self.data) == 1:
                raise
            file = str(self.data[index][self.key])
            return {self.key: file, FAILURE: _naming(file, one_line(error))}


def _signature() -> inspect.Signature:
    """That of the evaluator, written out, so that a misspelt argument in a config is found before anything runs."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    inherited = inspect.signature(SupervisedEvaluator).parameters.values()
    own = inspect.Parameter("failures", keyword, default=None, annotation="str | os.PathLike | None")
    return inspect.Signature([own, *(p.replace(kind=keyword) for p in inherited)])


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator``, which goes on after a volume that fails, and raises a summary at the end.

    Each failure is logged in one line; all of them are written to a JSON file, from volume to reason. That file is
    removed by a run without failures. A full or read-only disk stops the run, and so does the failure of a single
    volume, whose own error is raised. Volumes come one at a time, from a ``TolerantDataset``.

    Args:
        failures: JSON file to write; None for none.
        options: arguments of ``SupervisedEvaluator``.

    Raises:
        RuntimeError: after all volumes, when some have failed.

    Example::

        >>> evaluator = TolerantEvaluator(val_data_loader=[], network=torch.nn.Identity(), device="cpu")
        >>> evaluator.failures
        {}
    """

    __signature__ = _signature()

    def __init__(self, *, failures: str | os.PathLike | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.file = None if failures is None else Path(failures)
        self.failures: dict[str, str] = {}
        self.log = get_logger(f"{__name__}.{type(self).__name__}")

    def run(self) -> None:
        """Runs over all volumes.

        Raises:
            RuntimeError: when some of them have failed.
        """
        self.failures.clear()
        if self.state.epoch_length == 0:
            self.log.info("nothing to do: there is no volume without a result")
            return
        try:
            super().run()
        finally:
            self._write()
        if self.failures:
            raise RuntimeError(self._summary())

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict:
        if FAILURE in batchdata:
            return self._note(batchdata["image"][0], batchdata[FAILURE][0])
        file = _file_of(batchdata["image"])  # before decollating, which takes the batch apart
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            if self.state.epoch_length == 1 or getattr(root_cause(error), "errno", None) in HOPELESS:
                raise
            text = one_line(error)
        # Outside of the except clause, so that nothing of this volume stays in memory.
        return self._note(file, _naming(file, text))

    def _note(self, file: str, text: str) -> dict:
        self.failures[file] = text
        self.state.batch = None
        self.log.error(text)
        return {}

    def _summary(self) -> str:
        texts = list(self.failures.values())
        rest = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        listed = f", listed in {self.file}" if self.file else ""
        return (
            f"{len(texts)} of {self.state.epoch_length} volumes failed{listed}; mend them and run again with "
            f"skip_existing=true: {' | '.join(texts[:SHOWN])}{rest}"
        )

    def _write(self) -> None:
        if self.file is None:
            return
        if not self.failures:
            self.file.unlink(missing_ok=True)
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{os.getpid()}-{self.file.name}")
        try:
            temporary.write_text(json.dumps(self.failures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(self.file)
        finally:
            temporary.unlink(missing_ok=True)


def _file_of(image: torch.Tensor) -> str:
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(ensure_tuple(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "volume"))[0])


def _naming(file: str, text: str) -> str:
    return text if not file or file in text else f"{file}: {text}"
