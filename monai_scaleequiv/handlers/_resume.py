"""Resuming a training where an earlier process ended."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.handlers import Checkpoint
from monai.config import PathLike
from monai.handlers import CheckpointLoader
from monai.networks.utils import get_state_dict

from monai_scaleequiv.data import one_line, read_weights
from monai_scaleequiv.handlers._checkpoint_files import FEDERATED, check_checkpoint_dir, resume_file
from monai_scaleequiv.handlers._training_pictures import TrainingCurve

logger = logging.getLogger(__name__)


class ResumeCheckpointLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` that finds a whole checkpoint itself, as the run starts, and looks after the folder.

    A new start by ``"auto"`` or ``"federated"``, or with the weights of an earlier training, as in MONAI Label, keeps
    that training's files in the folder ``earlier_1`` of ``save_dir``, or ``earlier_2`` and so on.

    Args:
        resume: a checkpoint; a folder, for the newest whole ``checkpoint_epoch=N.pt`` in it; ``"auto"``, for the newest
            whole one in ``save_dir`` or a new start without any; ``"federated"``, for the same in a round of
            ``MonaiAlgo``: the network keeps the weights that the server has sent, and the epochs are further ones; or
            ``""`` for a new start.
        save_dir: where this training writes its checkpoints; is created.
        load_dict: what to load, as for ``CheckpointLoader``; a ``WorkflowState`` in it is attached to the trainer.
        map_location: as for ``torch.load``.

    Raises:
        FileExistsError: when ``save_dir`` holds checkpoints that would be overwritten.
        FileNotFoundError: when ``resume`` is a path with no checkpoint.
        ValueError: when no checkpoint is whole, or it does not fit the training: its parts, epochs or iterations.

    Example::

        >>> trainer = Engine(lambda engine, batch: None)
        >>> ResumeCheckpointLoader("auto", "models", {"trainer": trainer}).attach(trainer)
        >>> trainer.run([0, 1], max_epochs=1).epoch
        1
    """

    def __init__(self, resume: str, save_dir: PathLike, load_dict: dict[str, Any], map_location: Any = None) -> None:
        super().__init__(resume, load_dict, map_location=map_location)
        self.map_location: Any
        self.save_dir = Path(save_dir)

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        for part in self.load_dict.values():
            if isinstance(part, WorkflowState):
                part.attach(engine)
        super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Loads, unless there is nothing to resume from or the engine itself goes on."""
        if engine.state.iteration:
            return
        path, findings = resume_file(self.load_path, self.save_dir)
        networks = {name: part for name, part in self.load_dict.items() if isinstance(part, torch.nn.Module)}
        if idist.get_rank() == 0:
            given = [get_state_dict(network) for network in networks.values()]
            check_checkpoint_dir(self.save_dir, path, self.load_path, given)
            for finding in findings[:1]:
                logger.warning("%s; going on from %s.", finding, path)
        if path is None:
            return
        state, epochs, length = engine.state, engine.state.max_epochs, engine.state.epoch_length
        checkpoint = read_weights(path, self.map_location)
        in_rounds = self.load_path == FEDERATED
        parts = {name: part for name, part in self.load_dict.items() if not (in_rounds and name in networks)}
        # A checkpoint from before there was a curve can be gone on from as well.
        parts = {
            name: part for name, part in parts.items() if name in checkpoint or not isinstance(part, TrainingCurve)
        }
        try:
            Checkpoint.load_objects(parts, checkpoint)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected the states of this training's {', '.join(self.load_dict)}, got others "
                f"({one_line(error)[:200]}); go on with the config of the earlier training."
            ) from None
        if epochs is not None and in_rounds:
            epochs += state.epoch
        if epochs is not None and state.epoch > epochs:
            raise ValueError(f"{path}: expected at most {epochs} epochs, got {state.epoch}; ask for more epochs.")
        if length is not None and state.epoch_length != length:
            raise ValueError(
                f"{path}: expected {length} iterations per epoch, got {state.epoch_length}; "
                "go on with the data, the batch size and the number of processes of the earlier training."
            )
        state.max_epochs = epochs


class WorkflowState:
    """What MONAI's engines remember: iteration, best metrics with their epochs, and the gradient scaler.

    For the ``save_dict`` of a handler of the trainer, which it learns as it is attached, by itself or by a
    ``ResumeCheckpointLoader`` that has it in its ``load_dict``.

    Args:
        validator: the evaluator whose key metric counts, if there is one.

    Example::

        >>> import torch
        >>> from monai.engines import SupervisedEvaluator
        >>> state = WorkflowState()
        >>> state.attach(SupervisedEvaluator(torch.device("cpu"), [0, 0], torch.nn.Identity()))
        >>> state.state_dict()["best"]
        [(-1.0, -1)]
    """

    def __init__(self, validator: Engine | None = None) -> None:
        self.engines: list[Any] = [None] if validator is None else [None, validator]

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        self.engines[0] = engine

    def state_dict(self) -> dict[str, Any]:
        """The trainer's own state, plain numbers, and the scaler's own state."""
        scaler = self.engines[0].scaler
        best = [(float(e.state.best_metric), int(e.state.best_metric_epoch)) for e in self.engines]
        return {**self.engines[0].state_dict(), "best": best, "scaler": scaler.state_dict() if scaler else {}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over all; without mixed precision, before or now, there is no scaler to go on with."""
        self.engines[0].load_state_dict({k: v for k, v in state_dict.items() if k not in ("best", "scaler")})
        for engine, best in zip(self.engines, state_dict["best"], strict=True):
            engine.state.best_metric, engine.state.best_metric_epoch = best
        if self.engines[0].scaler and state_dict["scaler"]:
            self.engines[0].scaler.load_state_dict(state_dict["scaler"])
