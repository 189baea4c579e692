"""From folders of images and label maps to the cases of a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from monai_scaleequiv.data._audit_listing import Case, Listing
from monai_scaleequiv.data._datalist import nifti_files, stem_of
from monai_scaleequiv.data._faults import Fault

__all__ = ["list_folders"]

CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's files of one channel each


def list_folders(images: str | os.PathLike, labels: str | os.PathLike | None = None) -> Listing:
    """Pairs two folders, with their sub-folders, by the paths of their files; ``_0000`` to ``_9999`` may be channels.

    They are where the label map has the name without them. Where it is missing, they are if there is a ``_0000`` and
    none of them has a label map of its own; else they are the numbers of cases.

    Args:
        images: folder of images.
        labels: folder of label maps, None without them.

    Raises:
        FileNotFoundError: when a folder does not exist or holds no NIfTI file.

    Example::

        >>> list_folders("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder is no folder; give one with .nii or .nii.gz files.
    """
    names = [os.fspath(folder) for folder in (images, labels) if folder is not None]
    listing = Listing(" and ".join(names))
    found = _by_name(Path(images))
    if labels is None:
        listing.cases = [Case((path,), None, name) for name, path in found.items()]
        return listing
    targets, groups = _by_name(Path(labels)), {}
    numbered = {CHANNEL.sub("", name) for name in targets if CHANNEL.search(name)}
    for name, path in found.items():
        groups.setdefault(_case_of(name, found, targets, numbered), []).append(path)
    for name, paths in groups.items():
        listing.cases.append(Case(tuple(paths), targets.pop(name, None), name))
        if listing.cases[-1].label is None:
            got = f"none named {name} in {os.fspath(labels)}"
            listing.faults.append((paths[0], Fault("unpaired", "a label map", got, "add it, or remove the image")))
    for name, path in targets.items():
        got = f"none named {name} in {os.fspath(images)}"
        listing.faults.append((path, Fault("unpaired", "an image", got, "add it, or remove the label map")))
    return listing


def _case_of(name: str, images: Collection[str], labels: Collection[str], numbered: Collection[str]) -> str:
    """The case that an image belongs to: named like it, or without the number of the channel."""
    stem = CHANNEL.sub("", name)
    if name in labels or stem == name:
        return name
    return stem if stem in labels or (f"{stem}_0000" in images and stem not in numbered) else name


def _by_name(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with .nii or .nii.gz files.")
    found: dict[str, str] = {}
    for file in nifti_files(folder):
        name = file.relative_to(folder).as_posix()
        # Beside a.nii.gz, a.nii keeps its whole name and so finds no partner.
        found[name if stem_of(name) in found else stem_of(name)] = str(file)
    if not found:
        raise FileNotFoundError(f"{folder} holds no .nii or .nii.gz file; give another folder.")
    return found
