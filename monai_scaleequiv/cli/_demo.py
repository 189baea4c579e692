"""The whole way on made-up volumes: train, evaluate, segment, and show the outcome in a table and a picture."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from monai_scaleequiv.cli._bundles import DEFAULT_BUNDLE, find_bundle, run_bundle
from monai_scaleequiv.cli._overlay import save_overlay
from monai_scaleequiv.data import make_phantom_dataset

__all__ = ["make_demo"]

# Enough for a mean Dice above 0.85, little enough for a few minutes on two CPU cores.
TRAINING = {"epochs": 18, "val_interval": 6}
TRAINING_CASES, HELD_OUT_CASES = 20, 4

Row = tuple[str, str, float, float]


def make_demo(folder: str | Path, tell: Callable[[str], object]) -> None:
    """Trains the default bundle on phantoms, evaluates it on others and segments one of them.

    Args:
        folder: new folder for everything; ``overlay.png``, ``metrics.csv`` and a label map end up at its top.
        tell: is given the lines on what is going on, and the table at the end.

    Raises:
        FileExistsError: when the folder exists and is not empty.

    Example::

        >>> make_demo("scaleequiv_demo", sys.stdout.write)  # doctest: +SKIP
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--output: {folder} exists and is not empty; choose a new folder.")
    bundle = find_bundle(DEFAULT_BUNDLE)
    tell(f"1/4 making phantoms: {TRAINING_CASES} to train on, {HELD_OUT_CASES} held out\n")
    make_phantom_dataset(folder / "phantom", cases=TRAINING_CASES, seed=0)
    held_out = make_phantom_dataset(folder / "held_out", cases=HELD_OUT_CASES, seed=1)
    image, truth = _first_case(held_out)
    with _without_epoch_logs():
        tell(f"2/4 training for {TRAINING['epochs']} epochs, which takes some minutes on a CPU\n")
        paths = {"dataset_dir": str(folder / "phantom"), "output_dir": str(folder / "train")}
        run_bundle("train", bundle, {**paths, **TRAINING})

        tell("3/4 evaluating on the held-out phantoms\n")
        weights = {"ckpt_path": str(folder / "train" / "models" / "model.pt")}
        paths = {"dataset_dir": str(folder / "held_out"), "output_dir": str(folder / "evaluate")}
        # All of them, where validation during training takes a part of the list.
        run_bundle("evaluate", bundle, {**paths, **weights, "validate#dataset#data": "@datalist"})

        tell("4/4 segmenting a held-out phantom\n")
        run_bundle("infer", bundle, {"dataset_dir": str(image), "output_dir": str(folder), **weights})
    prediction = folder / f"{_case_name(image)}_seg.nii.gz"
    classes = _class_names(held_out)
    rows = _rows(folder / "evaluate", classes)
    _write_table(rows, folder / "metrics.csv")
    save_overlay(image, truth, prediction, classes, folder / "overlay.png")
    tell(_summary(rows, classes, (folder / "overlay.png", prediction, folder / "metrics.csv", weights["ckpt_path"])))


@contextlib.contextmanager
def _without_epoch_logs() -> Iterator[None]:
    """The progress bars and the table tell enough here."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _first_case(dataset: Path) -> tuple[Path, Path]:
    case = json.loads(dataset.read_text(encoding="utf-8"))["training"][0]
    return dataset.parent / case["image"], dataset.parent / case["label"]


def _class_names(dataset: Path) -> list[str]:
    labels = json.loads(dataset.read_text(encoding="utf-8"))["labels"]
    return [labels[key] for key in sorted(labels, key=int) if int(key)]


def _case_name(file: str | Path) -> str:
    return Path(file).name.removesuffix(".gz").removesuffix(".nii")


def _rows(folder: Path, classes: list[str]) -> list[Row]:
    """Case, class, Dice and HD95: from the evaluation's two tables, with a column per class, to a row per class."""
    tables = []
    for metric in ("val_mean_dice", "val_hd95"):
        with (folder / f"{metric}_raw.csv").open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    return [
        (_case_name(dice["filename"]), name, float(dice[f"class{i}"]), float(distance[f"class{i}"]))
        for dice, distance in zip(*tables, strict=True)
        for i, name in enumerate(classes)
    ]


def _means(rows: list[Row], classes: list[str]) -> list[Row]:
    groups = [(name, [row for row in rows if row[1] == name]) for name in classes]
    return [
        ("mean", name, statistics.fmean(row[2] for row in group), statistics.fmean(row[3] for row in group))
        for name, group in [*groups, ("all", rows)]
    ]


def _write_table(rows: list[Row], target: Path) -> None:
    classes = list(dict.fromkeys(row[1] for row in rows))
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "class", "dice", "hd95_mm"))
        for case, name, dice, distance in [*rows, *_means(rows, classes)]:
            writer.writerow((case, name, f"{dice:.4f}", f"{distance:.2f}"))


def _summary(rows: list[Row], classes: list[str], paths: tuple) -> str:
    lines = [f"{'held-out phantoms':<20}{'Dice':>8}{'HD95 (mm)':>12}"]
    lines += [f"{name:<20}{dice:>8.3f}{distance:>12.2f}" for _, name, dice, distance in _means(rows, classes)]
    return "\n".join(["", *lines, "", *(str(path) for path in paths)]) + "\n"
