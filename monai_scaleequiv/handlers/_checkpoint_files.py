"""Checkpoints as files: which are whole, which one a training resumes from, and whose folder it is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_scaleequiv.data import check_output_dir, file_finding

AUTO = "auto"
PATTERN = "checkpoint_epoch=*.pt"
UNFINISHED = ".tmp"  # appended to the name of a file that is being written


def check_checkpoint_dir(folder: Path, start: Path | None, resume: str) -> None:
    """Creates the folder, unless checkpoints in it would be overwritten; removes what a killed process left unfinished."""
    earlier = sorted(folder.glob("*.pt"))
    if earlier and resume != AUTO and (start is None or start.resolve().parent != folder.resolve()):
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
    for path in folder.glob(f"*.pt{UNFINISHED}"):
        path.unlink(missing_ok=True)


def epoch_files(folder: Path) -> list[Path]:
    """Checkpoints of whole epochs, the newest first."""
    return sorted((path for path in folder.glob(PATTERN) if epoch_of(path) >= 0), key=epoch_of, reverse=True)


def resume_file(resume: str, folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, None for a new start, and what is wrong with newer ones."""
    if not resume:
        return None, []
    if resume != AUTO and Path(resume).is_file():
        if finding := file_finding(resume):
            raise ValueError(f"{resume}: {finding}; go on with resume=auto, which takes the newest whole checkpoint.")
        return Path(resume), []
    if resume != AUTO and not Path(resume).is_dir():
        raise FileNotFoundError(f"resume={resume} does not exist; give a {PATTERN} of an earlier training.")
    findings: list[str] = []
    for path in epoch_files(folder if resume == AUTO else Path(resume)):
        finding = file_finding(path)
        if not finding:
            return path, findings
        findings.append(f"{path}: {finding}")
    if findings:
        raise ValueError(f"{findings[0]}, and no earlier one is whole; start anew in another output_dir.")
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
    return isinstance(part, str) or not isinstance(part, Sequence) or all(map(_finite, part))


def epoch_of(path: Path) -> int:
    """The epoch in the name; -1 for a file of any other name."""
    found = re.fullmatch(r"checkpoint_epoch=(\d+)\.pt", path.name)
    return int(found[1]) if found else -1
