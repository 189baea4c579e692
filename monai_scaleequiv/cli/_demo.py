"""The whole way on made-up volumes: train, evaluate, segment, and show the outcome in a table and a picture."""

import csv
import json
import logging
from pathlib import Path

import numpy as np

from monai_scaleequiv.cli._bundles import DEFAULT_BUNDLE, find_bundle, run_bundle, say
from monai_scaleequiv.cli._pictures import save_overlay
from monai_scaleequiv.data import make_phantom_dataset

# Enough for a mean Dice above 0.85, little enough for a few minutes on two CPU cores.
TRAINING = {"epochs": 18, "val_interval": 6}
TRAINING_CASES, HELD_OUT_CASES = 20, 4


def make_demo(folder: Path) -> None:
    """Trains the default bundle on phantoms, evaluates it on others and segments one of them.

    In the new folder, ``overlay.png``, ``metrics.csv`` and a label map end up at the top.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--output: {folder} exists and is not empty; choose a new folder.")
    bundle, weights = find_bundle(DEFAULT_BUNDLE), folder / "train" / "models" / "model.pt"
    say(f"1/4 making phantoms: {TRAINING_CASES} to train on, {HELD_OUT_CASES} held out\n")
    make_phantom_dataset(folder / "phantom", cases=TRAINING_CASES, seed=0)
    task = json.loads(make_phantom_dataset(folder / "held_out", cases=HELD_OUT_CASES, seed=1).read_text("utf-8"))
    image, truth = (folder / "held_out" / task["training"][0][key] for key in ("image", "label"))
    classes = [task["labels"][key] for key in sorted(task["labels"], key=int) if int(key)]
    logging.disable(logging.INFO)  # the progress bars and the table say enough here
    try:
        say(f"2/4 training for {TRAINING['epochs']} epochs, which takes some minutes on a CPU\n")
        paths = {"dataset_dir": str(folder / "phantom"), "output_dir": str(folder / "train")}
        run_bundle("train", bundle, {**paths, **TRAINING})
        say("3/4 evaluating on the held-out phantoms\n")
        paths = {"dataset_dir": str(folder / "held_out"), "output_dir": str(folder / "evaluate")}
        run_bundle("evaluate", bundle, {**paths, "ckpt_path": str(weights)})
        say("4/4 segmenting a held-out phantom\n")
        paths = {"dataset_dir": str(image), "output_dir": str(folder)}
        run_bundle("infer", bundle, {**paths, "ckpt_path": str(weights)})
    finally:
        logging.disable(logging.NOTSET)
    prediction = folder / image.name.replace(".nii", "_seg.nii")
    save_overlay(image, truth, prediction, classes, folder / "overlay.png")
    say(_write_metrics(folder, classes))
    say("".join(f"{path}\n" for path in (folder / "overlay.png", prediction, folder / "metrics.csv", weights)))


def _write_metrics(folder: Path, classes: list[str]) -> str:
    """From the evaluation's tables, a column per class, to ``metrics.csv``, a row per case and class; the means."""
    tables = [folder / "evaluate" / f"{metric}_raw.csv" for metric in ("val_mean_dice", "val_hd95")]
    cells = np.stack([np.loadtxt(table, str, comments=None, delimiter=",", skiprows=1) for table in tables], axis=-1)
    values = cells[:, 1 : 1 + len(classes)].astype(float)  # by case, class and metric
    means = dict(zip([*classes, "all"], [*values.mean(axis=0), values.mean(axis=(0, 1))], strict=True))
    cases = [Path(name).name.split(".")[0] for name in cells[:, 0, 0]]
    by_case = zip(cases, (dict(zip(classes, row, strict=True)) for row in values), strict=True)
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(("case", "class", "dice", "hd95_mm"))
        for case, found in (*by_case, ("mean", means)):
            csv.writer(file).writerows((case, name, f"{dice:.4f}", f"{mm:.2f}") for name, (dice, mm) in found.items())
    lines = [f"{name:<20}{dice:>8.3f}{distance:>12.2f}" for name, (dice, distance) in means.items()]
    return "\n".join(["", f"{'held-out phantoms':<20}{'Dice':>8}{'HD95 (mm)':>12}", *lines, "", ""])
