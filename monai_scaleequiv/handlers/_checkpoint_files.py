"""Checkpoints as files: which are whole, which one a training resumes from, and whose folder it is."""

import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import torch

from monai_scaleequiv.data import check_output_dir, file_finding, read_weights

AUTO = "auto"
FEDERATED = "federated"
PATTERN = "checkpoint_epoch=*.pt"
BESIDE = ("model.json", "curve.png", "overlay_epoch=*.png")  # files that belong to the checkpoints of a training
UNFINISHED = ".tmp"  # at the end of the name of a file that is being written


def check_checkpoint_dir(folder: Path, start: Path | None, resume: str, given: Sequence[Mapping]) -> None:
    """Creates the folder; raises where its checkpoints would be overwritten; removes what a killed process left.

    A new start puts earlier files aside where ``resume`` allows it, or it goes on from the weights of one of them.
    """
    lost: list[Path] = []
    if start is not None and start.resolve().parent == folder.resolve():
        lost = [path for path in epoch_files(folder) if epoch_of(path) > epoch_of(start) and not file_finding(path)]
    else:
        lost = sorted(folder.glob("*.pt"))
        goes_on = start is None and any(_holds(path, weights) for path in lost for weights in given)
        if lost and start is None and (goes_on or resume in (AUTO, FEDERATED)):
            _put_aside(folder, lost, goes_on)
            lost = []
    if lost:
        advice = "choose another output_dir, or go on with resume=auto"
        raise FileExistsError(f"{lost[0]} is left from an earlier training and would be overwritten; {advice}.")
    check_output_dir(folder, "ckpt_dir")
    for path in folder.glob(f"*.pt{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _holds(path: Path, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file holds these weights and nothing else."""
    try:
        stored = read_weights(path, "cpu")
    except ValueError:  # of another kind, or damaged
        return False
    return stored.keys() == weights.keys() and all(
        isinstance(value, torch.Tensor) and torch.equal(value, weights[name].cpu()) for name, value in stored.items()
    )


def _put_aside(folder: Path, files: Sequence[Path], goes_on: bool) -> None:
    """Keeps files of an earlier training in a folder of their own; weights to go on from stay, too, until replaced."""
    earlier = next(path for n in count(1) if not (path := folder / f"earlier_{n}").exists())
    earlier.mkdir()
    for path in [*files, *(path for pattern in BESIDE for path in folder.glob(pattern))]:
        if goes_on and path.suffix != ".png" and epoch_of(path) < 0:
            shutil.copy2(path, earlier)
        else:
            path.rename(earlier / path.name)


def resume_file(resume: str, folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, None for a new start, and what is wrong with newer ones."""
    source = folder if resume in (AUTO, FEDERATED) else Path(resume)
    findings: list[str] = []
    for path in ([source] if source.is_file() else epoch_files(source)) if resume else ():
        if not (finding := file_finding(path)):
            return path, findings
        findings.append(f"{path}: {finding}")
    if findings:
        advice = "no earlier one is whole; start anew in another output_dir"
        raise ValueError(f"{findings[0]}; {'go on with resume=auto' if source.is_file() else advice}.")
    if resume not in ("", AUTO, FEDERATED):
        raise FileNotFoundError(f"resume={resume}: expected a {PATTERN} or a folder with one, got none; give another.")
    return None, []


def newest_whole(folder: Path, finite: bool = False) -> Path | None:
    """The newest whole checkpoint; on request the newest whose weights are all finite."""
    for path in epoch_files(folder):
        if not file_finding(path):
            weights = torch.load(path, "cpu", weights_only=True)["network"].values() if finite else ()
            if all(torch.isfinite(weight).all() for weight in weights):
                return path
    return None


def epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, the newest first."""
    return sorted((path for path in folder.glob(PATTERN) if epoch_of(path) >= 0), key=epoch_of, reverse=True)


def epoch_of(path: Path) -> int:
    """The epoch in the name; -1 for a file of any other name."""
    found = re.fullmatch(r"checkpoint_epoch=(\d+)\.pt", path.name)
    return int(found[1]) if found else -1
