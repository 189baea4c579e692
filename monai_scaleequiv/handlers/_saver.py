"""Checkpoints that are whole at any time, in trainings that may be killed."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers import CheckpointSaver

from monai_scaleequiv.handlers._checkpoint_files import UNFINISHED, epoch_files, epoch_of


class _WholeFileSaver(BaseSaveHandler):
    """Writes under another name first; what a new file replaces is removed after it is there."""

    def __init__(self, dirname: str, filename: str | None) -> None:
        self.dirname = Path(dirname)
        self.filename = filename
        self._outdated: set[str] = set()

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if idist.get_rank() == 0:
            path = self.dirname / (self.filename or filename)
            _write(checkpoint, path)
            for name in self._outdated - {path.name}:
                (self.dirname / name).unlink(missing_ok=True)
            self._outdated.clear()

    def remove(self, filename: str) -> None:
        self._outdated.add(self.filename or filename)


class ResumableCheckpointSaver(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` for trainings that may be killed: its files are whole at any time.

    Older files, those of the training that was resumed included, are removed after the new one is in place. With
    ``save_key_metric=True`` the saver can stand in the ``save_dict`` of another one: then a resumed training replaces
    the best network only by a better one; NaN is the worst score.

    Args:
        save_dir: folder of the checkpoints, made with the first one.
        save_dict: what to save.
        options: other arguments of ``CheckpointSaver``.

    Raises:
        OSError: when a checkpoint cannot be written; the previous one stays.

    Example::

        >>> saver = ResumableCheckpointSaver("models", {"net": torch.nn.Linear(1, 1)}, save_key_metric=True)
        >>> dict(saver.state_dict())
        {'_saved': []}
    """

    def __init__(self, save_dir: str | os.PathLike, save_dict: dict[str, Any], **options: Any) -> None:
        super().__init__(os.curdir, save_dict, **options)  # MONAI's would create the folder
        self.save_dir = os.fspath(save_dir)
        self._best: Any = self._key_metric_checkpoint
        checkpoints: list[Any] = [self._final_checkpoint, self._best, self._interval_checkpoint]
        for checkpoint in checkpoints:
            if checkpoint is not None:
                checkpoint.save_handler = _WholeFileSaver(self.save_dir, checkpoint.save_handler.filename)
        if self._best is not None:
            self._best.score_function = _nan_is_worst(self._best.score_function)

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer or evaluator."""
        if self._interval_checkpoint is not None and self.epoch_level:
            engine.add_event_handler(Events.STARTED, self._take_over_files)
        super().attach(engine)

    def exception_raised(self, engine: Engine, e: Exception) -> None:
        """Raises it again: a training that failed has no last weights, while there may be an earlier one's."""
        raise e

    def state_dict(self) -> Mapping:
        """Scores and names of the best files saved so far."""
        return self._best.state_dict()

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Takes over the scores of files that are in this saver's folder; in a new folder the best starts anew."""
        fixed_name = self._best.save_handler.filename
        here = [item for item in state_dict["_saved"] if Path(self.save_dir, fixed_name or item[1]).is_file()]
        self._best.load_state_dict({"_saved": here})

    def _take_over_files(self, engine: Engine) -> None:
        """Counts what an earlier process saved among the newest files to keep."""
        saver: Any = self._interval_checkpoint
        if saver.n_saved is not None and not saver.filename_prefix:
            found = [Checkpoint.Item(epoch_of(path), path.name) for path in epoch_files(Path(self.save_dir))]
            saver._saved = [item for item in found if item.priority <= engine.state.epoch][: saver.n_saved][::-1]


def _write(checkpoint: Mapping, path: Path) -> None:
    # Not by Ignite's atomic=True: what that leaves of a killed process has no name to know it by.
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps the first in the second
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"{path}: expected room and permission for a checkpoint, got {error}; "
            "the previous one stays; make room and go on with resume=auto."
        ) from error


def _nan_is_worst(score: Any) -> Callable[[Engine], float]:
    return lambda engine: -math.inf if math.isnan(value := score(engine)) else value
