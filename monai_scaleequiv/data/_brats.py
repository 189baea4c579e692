"""Cases of the BraTS challenges as they are downloaded: one file per modality, labels with a code of their own."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from monai.config import PathLike

MODALITIES = ("flair", "t1", "t1ce", "t2")  # in the order of the channels in Task01 of the Decathlon
SINCE_2023 = {"t2f": "flair", "t1n": "t1", "t1c": "t1ce", "t2w": "t2"}
PART = re.compile(rf"(.+)([_-])({'|'.join((*MODALITIES, *SINCE_2023, 'seg'))})(\.nii)?(\.gz)?", re.IGNORECASE)
CLASSES = {
    "_": {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
    "-": {0: "background", 1: "necrotic core", 2: "oedema", 3: "enhancing tumour"},
}
TISSUES = {"necrotic core": "necro|ncr|non.?enhanc", "oedema": "edema", "enhancing tumour": "^(?!.*non).*enhanc"}

CHANNELS = ("t2.?f(lair)?|flair", "t1w?|t1.?n", "t1.?(ce|gd|c)w?|t1.?w?.?gd", "t2w?|t2.?w")  # names, in this order

Parts = Mapping[str, Path]  # by modality, or "seg"


def brats_cases(files: Iterable[Path]) -> Mapping[tuple[Path, str, str], Parts]:
    """The cases that files make by folder, name and the sign before the modality; of two modalities or more.

    Raises:
        ValueError: when two files are the same part of a case.
    """
    found: dict[tuple[Path, str, str], dict[str, Path]] = {}
    for file in files:
        if match := PART.fullmatch(file.name):
            name, sign, part = match[1], match[2], match[3].lower()
            parts = found.setdefault((file.parent, name, sign), {})
            first = parts.setdefault(SINCE_2023.get(part, part), file)
            if first != file:
                raise ValueError(f"{file}: expected one file of {part} for {name}, got {first.name}, too; remove one.")
    return {key: parts for key, parts in found.items() if len(parts.keys() & set(MODALITIES)) > 1}


def image_files(key: tuple[Path, str, str], parts: Parts) -> tuple[Path, ...]:
    """A case's images in the order of the channels; where one is missing, the name that it would have."""
    folder, name, sign = key
    spelt = {modality: spelling for spelling, modality in SINCE_2023.items()} if sign == "-" else {}
    ending = re.findall(r"(?:\.nii)?(?:\.gz)?$", next(iter(parts.values())).name, re.IGNORECASE)[0]  # as of its others
    return tuple(parts.get(m, folder / f"{name}{sign}{spelt.get(m, m)}{ending}") for m in MODALITIES)


def missing_modalities(parts: Parts) -> str:
    """Names of the modalities that a case lacks, with commas between."""
    return ", ".join(modality for modality in MODALITIES if modality not in parts)


def check_order(names: Sequence[str], source: PathLike) -> None:
    """ValueError unless the channels of a data set have the order of those of BraTS, by their names."""
    expected = [re.fullmatch(pattern, name, re.IGNORECASE) for pattern, name in zip(CHANNELS, names, strict=False)]
    if len(names) != len(MODALITIES) or not all(expected):
        hint = "bring the channels of the files and their names into this order"
        raise ValueError(f"{source}: expected FLAIR, T1, T1ce, T2, got {', '.join(names):.100}; {hint}.")


def tissue_labels(classes: Mapping[int, str] | None, source: PathLike) -> list[int]:
    """Labels of necrotic core, oedema and enhancing tumour, by the names of the classes.

    Raises:
        ValueError: when a name is missing or fits several labels.
    """
    named = classes or {}
    found = {
        tissue: [label for label, name in named.items() if re.search(pattern, name, re.IGNORECASE)]
        for tissue, pattern in TISSUES.items()
    }
    for tissue, labels in found.items():
        if len(labels) != 1:
            got = ", ".join(f"{label} {name}" for label, name in named.items()) or "no names"
            hint = "give --label_values with those of necrotic core, oedema and enhancing tumour, such as [1,2,4]"
            raise ValueError(f"{source}: expected one label for the {tissue}, got {got:.200}; {hint}.")
    return [labels[0] for labels in found.values()]
