"""Care for what an earlier training left behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ignite.handlers import Checkpoint
from monai.handlers import CheckpointSaver

__all__ = ["ResumableCheckpointSaver", "claim_checkpoint_dir"]


def claim_checkpoint_dir(folder: str | os.PathLike, resume: str = "") -> None:
    """Creates the folder for checkpoints, and refuses one that holds those of an earlier training.

    Args:
        folder: where checkpoints will be written.
        resume: checkpoint that training goes on from; then the folder may hold the earlier ones.

    Raises:
        FileExistsError: when the folder holds checkpoints and ``resume`` is empty.
        FileNotFoundError: when ``resume`` does not exist.

    Example::

        >>> claim_checkpoint_dir("output/models")
    """
    folder = Path(folder)
    if resume and not Path(resume).is_file():
        raise FileNotFoundError(f"resume={resume} does not exist; give a checkpoint_*.pt of an earlier training.")
    earlier = sorted(folder.glob("*.pt"))
    if earlier and not resume:
        raise FileExistsError(
            f"{earlier[0]} is left from an earlier training and would be overwritten; "
            "choose another output_dir, or go on with resume=CHECKPOINT."
        )
    folder.mkdir(parents=True, exist_ok=True)


class ResumableCheckpointSaver(CheckpointSaver):
    """MONAI's ``CheckpointSaver`` for the best network, whose best score can itself be saved.

    Put it into the ``save_dict`` of the saver of the last checkpoint and into the ``load_dict`` of the loader: then a
    resumed training replaces the best network only by a better one. Arguments are those of ``CheckpointSaver``, of
    which ``save_key_metric`` must be true.

    Example::

        >>> saver = ResumableCheckpointSaver("models", {"net": torch.nn.Linear(1, 1)}, save_key_metric=True)
        >>> dict(saver.state_dict())
        {'_saved': []}
    """

    def state_dict(self) -> Mapping:
        """Scores and names of the files saved so far."""
        return self._best().state_dict()

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Takes over the scores of files that are in this saver's folder; in a new folder the best starts anew."""
        fixed_name = self._best().save_handler.filename
        here = [item for item in state_dict["_saved"] if (Path(self.save_dir) / (fixed_name or item[1])).is_file()]
        self._best().load_state_dict({"_saved": here})

    def _best(self) -> Checkpoint:
        if self._key_metric_checkpoint is None:
            raise ValueError("expected save_key_metric=True, got False; only the best network's score can be saved.")
        return self._key_metric_checkpoint
