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
from monai_scaleequiv.data._files import whole_file
from monai_scaleequiv.data._writer import own_error

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
    own = [
        inspect.Parameter("failures", keyword, default=None, annotation="str | os.PathLike | None"),
        inspect.Parameter("pretrained", keyword, default=True, annotation="bool"),
    ]
    return inspect.Signature([*own, *(p.replace(kind=keyword) for p in inherited)])


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator``, which goes on after a volume that fails, and raises a summary at the end.

    Each failure is logged in one line; all of them are written to a JSON file, from volume to reason. What that file
    holds of earlier runs stays, but for volumes that have succeeded since; without any left it is removed. A full or
    read-only disk stops the run, and so does the failure of a single volume, whose own error is raised. Volumes come
    one at a time, from a ``TolerantDataset``.

    Args:
        failures: JSON file to write; None for none. A file of that name with other content is left alone.
        pretrained: whether the network has weights, by a handler or of its own. Label maps from random ones look like
            others, and are refused; TorchScript has its weights in any case.
        options: arguments of ``SupervisedEvaluator``.

    Raises:
        RuntimeError: after all volumes, when some have failed.
        ValueError: when ``pretrained`` is false.

    Example::

        >>> evaluator = TolerantEvaluator(val_data_loader=[], network=torch.nn.Identity(), device="cpu")
        >>> evaluator.failures
        {}
    """

    __signature__ = _signature()

    def __init__(self, *, failures: str | os.PathLike | None = None, pretrained: bool = True, **options: Any) -> None:
        if not pretrained and not _is_exported(options.get("network")):
            raise ValueError(
                "load_pretrain: expected true, got false, which leaves random weights; leave it out, or add "
                "evaluator#pretrained=true if the network brings its own."
            )
        super().__init__(**options)
        self.file = None if failures is None else Path(failures)
        self.failures: dict[str, str] = {}
        self.succeeded: set[str] = set()
        self.listed = False
        self.log = get_logger(f"{__name__}.{type(self).__name__}")

    def run(self) -> None:
        """Runs over all volumes.

        Raises:
            RuntimeError: when some of them have failed.
        """
        self.failures.clear()
        self.succeeded.clear()
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
            output = super()._iteration(engine, batchdata)
        except Exception as error:
            self._raise_if_last(error)
            text = one_line(own_error(root_cause(error)))
        else:
            self.succeeded.add(file)
            return output
        # Outside of the except clause, so that nothing of this volume stays in memory.
        return self._note(file, _naming(file, text))

    def _raise_if_last(self, error: Exception) -> None:
        cause = own_error(root_cause(error))
        if self.state.epoch_length > 1 and getattr(cause, "errno", None) not in HOPELESS:
            return
        if cause is root_cause(error):
            raise error
        raise cause from error

    def _note(self, file: str, text: str) -> dict:
        self.failures[file] = text
        self.state.batch = None
        self.log.error(text)
        return {}

    def _summary(self) -> str:
        texts = list(self.failures.values())
        rest = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        listed = f", listed in {self.file}" if self.file and self.listed else ""
        return (
            f"{len(texts)} of {self.state.epoch_length} volumes failed{listed}; mend them and run again with "
            f"skip_existing=true: {' | '.join(texts[:SHOWN])}{rest}"
        )

    def _write(self) -> None:
        """Brings the JSON file up to date; what hinders that is logged, for there is an error or a summary to come."""
        self.listed = False
        if self.file is None:
            return
        try:
            earlier = _failures_in(self.file)
            left = {file: text for file, text in earlier.items() if file not in self.succeeded} | self.failures
            if left != earlier:
                _replace(self.file, left)
            self.listed = True
        except (OSError, ValueError) as error:
            told = error.strerror if isinstance(error, OSError) else error
            if self.failures or isinstance(error, OSError):
                self.log.error(f"{self.file}: expected a list of failed volumes that can be written to, got {told}.")


def _failures_in(path: Path) -> dict[str, str]:
    """What an earlier run wrote: from each volume to a text that names it. ValueError for a file of another kind."""
    if not os.path.lexists(path):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(t, str) and f in t for f, t in found.items()):
        raise ValueError("a file of another kind, which is left alone")
    return found


def _replace(path: Path, failures: Mapping[str, str]) -> None:
    if not failures:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(failures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _file_of(image: torch.Tensor) -> str:
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(ensure_tuple(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "volume"))[0])


def _is_exported(network: Any) -> bool:
    return isinstance(network, torch.nn.Module) and any(
        isinstance(m, torch.jit.ScriptModule) for m in network.modules()
    )


def _naming(file: str, text: str) -> str:
    return text if not file or file in text else f"{file}: {text}"
