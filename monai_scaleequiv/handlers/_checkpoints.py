"""Writing checkpoints so that a killed process leaves a whole one, and going on from them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from monai.handlers import CheckpointSaver

from monai_scaleequiv.data import read_weights
from monai_scaleequiv.handlers._checkpoint_files import epoch_files, epoch_of, resume_file

__all__ = ["ResumableCheckpointSaver", "ResumeHandler"]

logger = logging.getLogger(__name__)


class AtomicDiskSaver(DiskSaver):
    """Writes under another name first; what a new file replaces is removed after it is there."""

    def __init__(self, dirname: str, filename: str | None) -> None:
        super().__init__(dirname, require_empty=False)
        self.filename = filename
        self._outdated: list[str] = []

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if idist.get_rank() != self.save_on_rank:
            return
        path = self.dirname / (self.filename or filename)
        _write(checkpoint, path)
        for name in set(self._outdated) - {path.name}:
            (self.dirname / name).unlink(missing_ok=True)
        self._outdated = []

    def remove(self, filename: str) -> None:
        self._outdated.append(self.filename or filename)


class ResumableCheckpointSaver(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` with files that are whole at any time, for trainings that may be killed.

    A file is written under another name and then put in place; only then are older ones removed, those of a training
    that was gone on from included. With ``n_saved=2`` the previous checkpoint stays beside the last one.

    With ``save_key_metric=True`` the best score can itself be saved: put the saver of the best network into the
    ``save_dict`` of the saver of the last checkpoint and into the ``load_dict`` of the loader. Then a resumed training
    replaces the best network only by a better one. A score of NaN is worse than any other. Arguments are those of
    ``CheckpointSaver``.

    Raises:
        OSError: when a checkpoint cannot be written; the previous one stays.
        ValueError: when the score is asked for without ``save_key_metric=True``.

    Example::

        >>> saver = ResumableCheckpointSaver("models", {"net": torch.nn.Linear(1, 1)}, save_key_metric=True)
        >>> dict(saver.state_dict())
        {'_saved': []}
    """

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer or evaluator."""
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                checkpoint.save_handler = AtomicDiskSaver(self.save_dir, checkpoint.save_handler.filename)
        if self._key_metric_checkpoint is not None:
            self._key_metric_checkpoint.score_function = _nan_is_worst(self._key_metric_checkpoint.score_function)
        if self._interval_checkpoint is not None and self.epoch_level:
            engine.add_event_handler(Events.STARTED, self._take_over_files)
        super().attach(engine)

    def state_dict(self) -> Mapping:
        """Scores and names of the files saved so far."""
        return self._best().state_dict()

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Takes over the scores of files that are in this saver's folder; in a new folder the best starts anew."""
        fixed_name = self._best().save_handler.filename
        here = [item for item in state_dict["_saved"] if (Path(self.save_dir) / (fixed_name or item[1])).is_file()]
        self._best().load_state_dict({"_saved": here})

    def _take_over_files(self, engine: Engine) -> None:
        """Counts what an earlier process saved among the newest files to keep."""
        saver = self._interval_checkpoint
        if saver.n_saved is not None and not saver.filename_prefix:
            found = [Checkpoint.Item(epoch_of(path), path.name) for path in epoch_files(Path(self.save_dir))]
            saver._saved = [item for item in found if item.priority <= engine.state.epoch][: saver.n_saved][::-1]

    def _best(self) -> Checkpoint:
        if self._key_metric_checkpoint is None:
            raise ValueError("expected save_key_metric=True, got False; only the best network's score can be saved.")
        return self._key_metric_checkpoint


class ResumeHandler:
    """Goes on from an earlier training's checkpoint, like MONAI's ``CheckpointLoader`` that finds a whole one itself.

    Args:
        resume: a checkpoint; a folder, for the newest whole ``checkpoint_epoch=N.pt`` in it; ``"auto"``, for the newest
            whole one in ``save_dir`` or a new start without any; or ``""`` for a new start. A damaged checkpoint in a
            folder is passed over with a warning.
        save_dir: folder where this training writes its checkpoints.
        load_dict: what to load, as for ``CheckpointLoader``.
        map_location: where to load tensors to, as for ``torch.load``.

    Raises:
        FileNotFoundError: at the start of the run, when ``resume`` is a path with no checkpoint.
        ValueError: at the start of the run, when no checkpoint is whole, or it does not fit the training: parts are
            missing, it has more epochs than asked for, or its epochs have another number of iterations.

    Example::

        >>> trainer = Engine(lambda engine, batch: None)
        >>> ResumeHandler("auto", "models", {"trainer": trainer}).attach(trainer)
        >>> trainer.run([0, 1], max_epochs=1).epoch
        1
    """

    def __init__(
        self,
        resume: str,
        save_dir: str | os.PathLike,
        load_dict: Mapping[str, Any],
        map_location: str | torch.device | None = None,
    ) -> None:
        self.resume = resume
        self.save_dir = Path(save_dir)
        self.load_dict = load_dict
        self.map_location = map_location

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Loads, unless there is nothing to go on from."""
        path, faults = resume_file(self.resume, self.save_dir)
        if path is None:
            return
        if faults and idist.get_rank() == 0:
            logger.warning("%s; going on from %s.", faults[0], path)
        checkpoint = read_weights(path, self.map_location)
        missing = [key for key in self.load_dict if key not in checkpoint]
        if missing:
            raise ValueError(f"{path}: expected {missing[0]!r} in it, got {list(checkpoint)}; give another checkpoint.")
        epochs, length = engine.state.max_epochs, engine.state.epoch_length
        self._load(checkpoint, path)
        if epochs is not None and engine.state.epoch > epochs:
            raise ValueError(
                f"{path}: expected at most {epochs} epochs, got {engine.state.epoch}; ask for more epochs."
            )
        if length is not None and engine.state.epoch_length != length:
            raise ValueError(
                f"{path}: expected {length} iterations per epoch, got {engine.state.epoch_length}; "
                "go on with the data, the batch size and the number of processes of the earlier training."
            )
        engine.state.max_epochs = epochs

    def _load(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        try:
            Checkpoint.load_objects(self.load_dict, checkpoint)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path}: expected the states of this training's {', '.join(self.load_dict)}, got others ({told}); "
                "go on with the config of the earlier training."
            ) from None


def _write(checkpoint: Mapping, path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
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


def _nan_is_worst(score: Callable[[Engine], float]) -> Callable[[Engine], float]:
    def replaced(engine: Engine) -> float:
        value = score(engine)
        return -math.inf if math.isnan(value) else value

    return replaced
