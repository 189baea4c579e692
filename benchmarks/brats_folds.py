"""Cross-validation of a BraTS bundle: every case held out once, by the bundle's own commands.

    python benchmarks/brats_folds.py --output=folds --folds=1,2

A fold takes about 40 minutes of one core. A training that was stopped goes on where it was, and a fold that is in the
results is not done again.
"""

import csv
import json
import os
import sys
from pathlib import Path
from subprocess import run

import fire

from monai_scaleequiv.data import split_datalist

BUNDLE = "seunet_brats_segmentation"
FOLDS = 5
OPTIONS = ("--spacing=[2,2,2]", "--patch_size=[48,48,48]", "--roi_size=[64,64,64]")
TRAINING = ("--cache_rate=1.0", "--epochs=450", "--val_interval=450", "--learning_rate=0.01", "--resume=auto")
REGIONS = ("tumour core", "whole tumour", "enhancing tumour")
RESULTS = "benchmarks/results/brats_folds"


def parts_of(data: str) -> list[list[str]]:
    """Folders of the cases of each fold: the first is what the bundle holds out by itself, the rest by name."""
    training, first = (sorted(Path(case["label"]).parent.name for case in part) for part in split_datalist(data))
    return [first, *(training[i :: FOLDS - 1] for i in range(FOLDS - 1))]


def listed(data: str, folder: Path) -> None:
    """A data set of links to the cases, whose ``dataset.json`` says which fold each is in."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for fold, names in enumerate(parts_of(data)):
        for name in names:
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to((Path(data) / name).resolve())
            files = [f"{name}/{name}_{m}.nii.gz" for m in ("flair", "t1", "t1ce", "t2")]
            entries.append({"image": files, "label": f"{name}/{name}_seg.nii.gz", "fold": fold})
    facts = {
        "modality": dict(enumerate(("FLAIR", "T1", "T1ce", "T2"))),
        "labels": {"1": "necrotic core", "2": "oedema", "4": "enhancing tumour"},
    }
    (folder / "dataset.json").write_text(json.dumps(facts | {"training": entries}, indent=1))


def main(
    output: str,
    folds: int | tuple[int, ...] = tuple(range(FOLDS)),
    data: str = "../shared/data/BraTS18_2mm",
    results: str = RESULTS,
) -> None:
    """Trains and evaluates folds, each of which leaves ``fold_N.json`` with Dice and HD95 of each case and region.

    Args:
        output: folder for the list of cases, trainings and evaluations.
        folds: numbers of the folds.
        data: folder with the cases.
        results: folder for the results.
    """
    place = Path(output)
    listed(data, place / "cases")
    Path(results).mkdir(parents=True, exist_ok=True)
    for fold in (folds,) if isinstance(folds, int) else folds:
        result = Path(results) / f"fold_{fold}.json"
        if result.exists():
            continue
        shared = [f"--bundle={BUNDLE}", f"--input={place / 'cases'}", f"--fold={fold}", *OPTIONS]
        training, evaluation = place / f"training_{fold}", place / f"evaluation_{fold}"
        start = _cpu_seconds()
        _call("train", *shared, f"--output={training}", *TRAINING)
        seconds = _cpu_seconds() - start
        _call(
            "evaluate",
            *shared,
            f"--output={evaluation}",
            f"--ckpt_path={training / 'models' / 'model.pt'}",
            "--overwrite=true",
        )
        measured = {metric: _table(evaluation / f"val_{metric}_raw.csv") for metric in ("mean_dice", "hd95")}
        facts = {"fold": fold, "options": [*OPTIONS, *TRAINING], "cpu_seconds_since_resumed": round(seconds)}
        result.write_text(json.dumps({**facts, "regions": REGIONS, **measured}, indent=1) + "\n")
        whole = [values[1] for values in measured["mean_dice"].values()]
        sys.stdout.write(f"fold {fold}: whole tumour {sum(whole) / len(whole):.3f}\n")


def _table(file: Path) -> dict[str, list[float]]:
    """Values of the regions by case."""
    with file.open() as lines:
        return {Path(row[0]).parent.name: [round(float(x), 4) for x in row[1:4]] for row in list(csv.reader(lines))[1:]}


def _call(*arguments: str) -> None:
    run([sys.executable, "-m", "monai_scaleequiv", *arguments], check=True)


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


if __name__ == "__main__":
    fire.Fire(main)
