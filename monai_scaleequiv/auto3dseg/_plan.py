"""From the statistics of Auto3DSeg's ``DataAnalyzer`` to values of the bundle's configs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.auto3dseg import datafold_read

PATCH = 96**3  # voxels at most
CACHE = 8 << 30  # bytes of preprocessed volumes that a training keeps in memory
CROPS = 40_000  # that a training sees, within the limits
EPOCHS = (100, 1000)
SPREAD = 2.5  # 99 % of a normal distribution lie within so many standard deviations, in which intensities change


def planned_values(stats: Mapping[str, Any], source: Mapping[str, Any], fold: int) -> dict[str, Any]:
    """Values by their ids in the configs, most of them in ``train.json`` alone.

    Args:
        stats: what ``DataAnalyzer`` found.
        source: Auto3DSeg's input, with ``modality``, ``datalist`` and ``dataroot``.
        fold: number of the fold to validate on.

    Raises:
        ValueError: when the task has regions that overlap, labels with gaps, or no case in or outside the fold.
    """
    summary = stats["stats_summary"]
    images, labels = summary["image_stats"], summary["label_stats"]["labels"]
    _check_task(labels, source)
    spacing = [round(float(mm), 4) for mm in images["spacing"]["median"]]
    size = [math.ceil(mm / step) for mm, step in zip(images["sizemm"]["median"], spacing, strict=True)]
    channels, cases, patch = int(images["channels"]["max"]), summary["n_cases"], _patch(size)
    volumes = 4 * (channels + 1) * math.prod(size) * cases
    epochs = min(max(math.ceil(CROPS / cases), EPOCHS[0]), EPOCHS[1])
    return {
        "spacing": spacing,
        "in_channels": channels,
        "num_classes": len(labels),
        "normalization": _normalization(source["modality"], summary["image_foreground_stats"]["intensity"]),
        "patch_size": patch,
        "roi_size": patch,
        "network_def#filters#spacing": [round(mm / min(spacing), 3) for mm in spacing],
        "fold": fold,
        "split": _split(source, fold),
        "resume": "auto",
        "cache_rate": min(1.0, round(CACHE / volumes, 2)),
        # By the names that the parameters of MONAI's own algorithms have.
        "num_epochs": epochs,
        "epochs": "@num_epochs",
        "num_epochs_per_validation": max(1, epochs // 50),
        "val_interval": "@num_epochs_per_validation",
        "num_images_per_batch": 2,
        "batch_size": "@num_images_per_batch",
        "crop_by_class": any(2 * edge < n for edge, n in zip(patch, size, strict=True)),
    }


def _check_task(labels: list[Any], source: Mapping[str, Any]) -> None:
    names = source.get("class_names") or []
    if source.get("sigmoid") or not all(isinstance(name, str) for name in names):
        hint = "leave out sigmoid and the indices of class_names"
        raise ValueError(f"seunet: expected classes that exclude each other, got regions; {hint}.")
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        raise ValueError(f"seunet: expected labels 0, 1, ... without gaps, got {labels}; number them anew.")


def _patch(size: list[int]) -> list[int]:
    """The median image, in multiples of 8, its longest edges cut down to ``PATCH``."""
    patch = [8 * math.ceil(n / 8) for n in size]
    while math.prod(patch) > PATCH:
        patch[patch.index(max(patch))] -= 8
    return patch


def _normalization(modality: str, foreground: Mapping[str, float]) -> dict[str, Any]:
    """By each image's own mean and deviation, but in CT, whose numbers have a meaning, by the organs' range."""
    if not modality.lower().startswith("ct"):
        return {"nonzero": False, "channel_wise": True}
    bounds = {"a_min": foreground["percentile_00_5"], "a_max": foreground["percentile_99_5"]}
    return {**bounds, "b_min": -SPREAD, "b_max": SPREAD, "clip": True}


def _split(source: Mapping[str, Any], fold: int) -> dict[str, Any]:
    datalist, root = (str(Path(source[key]).absolute()) for key in ("datalist", "dataroot"))
    training, validation = datafold_read(datalist, root, fold)
    if not training or not validation:
        found = f"expected cases in fold {fold} and outside it, got {len(validation)} and {len(training)}"
        raise ValueError(f"{datalist}: {found}; give the cases of training a key 'fold'.")
    return {"_target_": "monai.auto3dseg.datafold_read", "datalist": datalist, "basedir": root, "fold": "@fold"}
