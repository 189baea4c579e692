"""Checkpoints as files: which are whole, which one a training goes on from, and whose folder it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_scaleequiv.data import check_output_dir, file_finding

__all__ = ["claim_checkpoint_dir", "epoch_files", "epoch_of", "newest_finite", "resume_file"]

AUTO = "auto"
PATTERN = "checkpoint_epoch=*.pt"
UNFINISHED = "*.pt.tmp"  # what a killed process was writing


def claim_checkpoint_dir(folder: str | os.PathLike, resume: str = "") -> None:
    """Creates the folder for checkpoints, and refuses one that holds those of another training.

    What a killed process left half-written is removed.

    Args:
        folder: where checkpoints will be written.
        resume: as for :py:class:`ResumeHandler`; with it the folder may hold earlier checkpoints.

    Raises:
        FileExistsError: when the folder holds checkpoints and ``resume`` names none of them, or when it holds a whole
            one of an epoch after the one that ``resume`` names.
        FileNotFoundError: when ``resume`` does not exist, or is a folder without checkpoints.
        OSError: when the folder cannot be made or written to.
        ValueError: when there is no whole checkpoint to go on from.

    Example::

        >>> claim_checkpoint_dir("output/models")
    """
    folder = Path(folder)
    start, _ = resume_file(resume, folder)
    earlier = sorted(folder.glob("*.pt"))
    is_own = resume == AUTO or (start is not None and start.resolve().parent == folder.resolve())
    if earlier and not is_own:
        raise FileExistsError(
            f"{earlier[0]} is left from an earlier training and would be overwritten; "
            "choose another output_dir, or go on with resume=auto."
        )
    later = [] if start is None else [path for path in epoch_files(folder) if epoch_of(path) > epoch_of(start)]
    later = [path for path in later if not file_finding(path)]
    if later:
        raise FileExistsError(
            f"{later[0]} is left from an earlier training that went on beyond resume={resume}; "
            "choose another output_dir, or go on with resume=auto."
        )
    check_output_dir(folder, "ckpt_dir")
    for path in folder.glob(UNFINISHED):
        path.unlink(missing_ok=True)


def epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, the newest first."""
    return sorted((path for path in folder.glob(PATTERN) if epoch_of(path) >= 0), key=epoch_of, reverse=True)


def resume_file(resume: str, folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, None for a new start, and what is wrong with newer ones."""
    if not resume:
        return None, []
    if resume != AUTO and Path(resume).is_file():
        fault = file_finding(Path(resume))
        if fault:
            raise ValueError(f"{resume}: {fault}; go on with resume=auto, which takes the newest whole checkpoint.")
        return Path(resume), []
    source = folder if resume == AUTO else Path(resume)
    if resume != AUTO and not source.is_dir():
        raise FileNotFoundError(f"resume={resume} does not exist; give a {PATTERN} of an earlier training.")
    faults: list[str] = []
    for path in epoch_files(source):
        fault = file_finding(path)
        if not fault:
            return path, faults
        faults.append(f"{path}: {fault}")
    if faults:
        raise ValueError(f"{faults[0]}, and no earlier one is whole; start anew in another output_dir.")
    if resume != AUTO:
        raise FileNotFoundError(f"resume={resume}: expected {PATTERN} in this folder, got none; give another one.")
    return None, []


def newest_finite(folder: Path) -> Path | None:
    """The newest whole checkpoint whose numbers are all finite."""
    for path in epoch_files(folder):
        if not file_finding(path) and _finite(torch.load(path, map_location="cpu", weights_only=True)):
            return path
    return None


def _finite(part: Any) -> bool:
    if isinstance(part, torch.Tensor):
        return not part.is_floating_point() or bool(torch.isfinite(part).all())
    if isinstance(part, Mapping):
        return all(map(_finite, part.values()))
    if isinstance(part, Sequence) and not isinstance(part, str):
        return all(map(_finite, part))
    return True


def epoch_of(path: Path) -> int:
    """The epoch in the name; -1 for a file of any other name."""
    found = re.fullmatch(re.escape(PATTERN).replace(r"\*", r"(\d+)"), path.name)
    return int(found[1]) if found else -1
