"""Care for what an earlier training left behind."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["claim_checkpoint_dir"]


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
