"""The equivariance report: a table, the numbers behind it, and a picture."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import monai
import torch
from monai.transforms import CenterSpatialCrop
from monai.utils import convert_to_tensor
from tqdm import tqdm

import monai_scaleequiv
from monai_scaleequiv.cli._curves import save_curves
from monai_scaleequiv.cli._subjects import Subject, WholeImageNetwork, read_images
from monai_scaleequiv.metrics import consistency_dice, equivariance_error
from monai_scaleequiv.metrics._metric import check_ratios

__all__ = ["make_report", "ratios_to_measure", "whole_sizes"]

DEFAULT_RATIOS = (0.7, 0.8, 0.9, 1.11, 1.25, 1.4)
DEFAULT_DIVISOR = 16
READINGS = ("floor", "interior", "unshifted", "projected", "consistency_dice")
FILES = ("equivariance.json", "equivariance.png")


def make_report(
    subject: Subject,
    folder: Path,
    arguments: Mapping[str, Any],
    tell: Callable[[str], object],
) -> None:
    """Measures a network at several ratios and writes ``equivariance.json`` and ``equivariance.png``.

    Args:
        subject: the network and how its images are made.
        folder: where the two files are written; created if need be.
        arguments: ``input``, ``ratios``, ``cases``, ``divisor`` and ``seed`` of the command.
        tell: is given the table.

    Raises:
        FileExistsError: when one of the files is there already.
        ValueError: when an argument is out of range.

    Example::

        >>> make_report(subject, Path("report"), arguments, sys.stdout.write)  # doctest: +SKIP
    """
    refuse_earlier_report(folder)
    ratios, divisor = ratios_to_measure(arguments["ratios"], subject.scales), arguments["divisor"]
    if divisor is None:
        # Networks of this package take any size, and padding would take from them what is read before the projection.
        divisor = DEFAULT_DIVISOR if subject.scales is None else 1
    for name, value in (("divisor", divisor), ("cases", arguments["cases"])):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"--{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    images = read_images(subject, arguments["input"], arguments["cases"], arguments["seed"])
    network = WholeImageNetwork(subject.network, divisor)
    rows = _rows(network, images, ratios, subject.scales)
    report = {
        "network": {**subject.description, "scales": subject.scales},
        "images": list(images),
        "arguments": {**arguments, "ratios": ratios, "divisor": divisor},
        "device": str(subject.device),
        "versions": {
            "monai_scaleequiv": monai_scaleequiv.__version__,
            "monai": monai.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "ratios": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    kind = "given" if arguments["input"] else "made up"
    title = f"{subject.description['class']}, images: {len(images)} {kind}"
    save_curves(rows, title, folder / FILES[1])
    (folder / FILES[0]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    head = f"{title}\nweights: {subject.description['weights']}\n\n"
    tell(head + _table(rows) + "\n" + "".join(f"{folder / name}\n" for name in FILES))


def refuse_earlier_report(folder: Path) -> None:
    """Raises FileExistsError where a report would be overwritten.

    Example::

        >>> refuse_earlier_report(Path("no/such/folder"))
    """
    for name in FILES:
        if (folder / name).exists():
            raise FileExistsError(f"--output: {folder / name} exists already; choose another folder or remove it.")


def ratios_to_measure(given: Sequence[float] | float | None, scales: Sequence[float] | None) -> list[float]:
    """The ratios given, else the usual ones with a step of the scale axis either way in place of what is next to it.

    Example::

        >>> ratios_to_measure(None, (1.0, 0.8))
        [0.7, 0.8, 0.9, 1.11, 1.25, 1.4]
        >>> [round(ratio, 4) for ratio in ratios_to_measure(None, (1.0, 0.9))]
        [0.7, 0.8, 0.9, 1.1111, 1.25, 1.4]
    """
    if given is not None:
        ratios = list(given) if isinstance(given, (list, tuple)) else [given]
        check_ratios(ratios, "--ratios")
        return sorted(set(map(float, ratios)))
    steps = [] if scales is None or len(scales) < 2 else [scales[1] / scales[0], scales[0] / scales[1]]
    others = [ratio for ratio in DEFAULT_RATIOS if all(abs(ratio / step - 1) > 0.01 for step in steps)]
    return sorted({*others, *steps})


def whole_sizes(size: Sequence[int], ratio: float) -> tuple[list[int], list[int]]:
    """Sizes of a crop and of the crop rescaled, so that their ratio is met at each axis.

    The crop keeps three quarters of each axis or more; if that cannot be, nothing is cropped, and the new size rounded.

    Example::

        >>> whole_sizes((40, 56, 40), 0.9)
        ([40, 50, 40], [36, 45, 36])
        >>> whole_sizes((13, 14), 0.9)
        ([13, 14], [12, 13])
    """
    # First the ratio itself, then its neighbour among simple fractions, at most half a per cent away.
    for largest in (1000, 20):
        fraction = Fraction(ratio).limit_denominator(largest)
        step = fraction.denominator
        crop = [n // step * step for n in size]
        if (
            fraction != 1
            and abs(fraction / Fraction(ratio) - 1) < 0.005
            and all(4 * m >= 3 * n for m, n in zip(crop, size, strict=True))
        ):
            return crop, [int(m * fraction) for m in crop]
    return list(size), [max(1, round(n * ratio)) for n in size]


def _rows(
    network: WholeImageNetwork, images: Mapping[str, torch.Tensor], ratios: Iterable[float], scales: list[float] | None
) -> list[dict[str, Any]]:
    """One row per ratio: means over the images, and each image's readings."""
    rows = []
    with tqdm(total=len(images) * len(list(ratios)), desc="measure", disable=None, leave=False) as progress:
        for ratio in ratios:
            cases = []
            for name, image in images.items():
                cases.append({"image": name, **_measure(network, image, ratio, scales)})
                progress.update()
            means = {reading: _mean(case[reading] for case in cases) for reading in READINGS}
            used = statistics.fmean(r for case in cases for r in case["ratio"])
            rows.append({"ratio": ratio, "used": used, **means, "cases": cases})
    return rows


def _measure(
    network: WholeImageNetwork, image: torch.Tensor, ratio: float, scales: list[float] | None
) -> dict[str, Any]:
    crop, size = whole_sizes(image.shape[1:], ratio)
    part = convert_to_tensor(CenterSpatialCrop(crop)(image), track_meta=False)[None]
    logits: list[torch.Tensor] = []
    hook = network.register_forward_hook(lambda _, args, output: logits.append(output))
    try:
        reading = equivariance_error(network, part, size, scales)
    finally:
        hook.remove()
    dice = consistency_dice(y_pred=logits[1], y=logits[0]).nanmean()
    readings = {name: getattr(reading, name) for name in READINGS[:-1]}
    readings["consistency_dice"] = float(dice)
    # JSON has no NaN: a network that gives nothing has no error, and an image without classes no Dice.
    readings = {name: value if value is not None and value == value else None for name, value in readings.items()}
    return {"size": crop, "rescaled_size": size, "ratio": reading.ratio, **readings}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["".join(f"{head:>11}" for head in ("ratio", "floor", "interior", "unshifted", "projected", "Dice"))]
    for row in rows:
        cells = [f"{row['used']:.3f}"] + [_cell(row[name], ".1e") for name in READINGS[:-1]]
        lines.append("".join(f"{cell:>11}" for cell in (*cells, _cell(row["consistency_dice"], ".3f"))))
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
