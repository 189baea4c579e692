"""The equivariance report: a table, the numbers behind it, and a picture."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from monai.config import get_config_values
from monai.transforms import CenterSpatialCrop
from monai.utils import convert_to_tensor
from tqdm import tqdm

import monai_scaleequiv
from monai_scaleequiv.cli._curves import save_curves
from monai_scaleequiv.cli._subject import WholeImageNetwork, read_images, read_subject
from monai_scaleequiv.metrics import check_ratios, consistency_dice, equivariance_error

RATIOS = (0.7, 0.8, 0.9, 1.11, 1.25, 1.4)
DIVISOR = 16
ERRORS = ("floor", "interior", "unshifted", "projected")
FILES = ("equivariance.json", "equivariance.png")


def make_report(
    folder: Path,
    source: str | Mapping[str, Any] | Path,
    ckpt_path: str,
    overrides: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> str:
    """Measures a network at several ratios, writes ``equivariance.json`` and ``equivariance.png``, returns the table.

    ``source`` is a bundle's root or a network's definition, ``arguments`` are the command's other ones.
    """
    for name in FILES:
        if (folder / name).exists():
            raise FileExistsError(f"--output: {folder / name} exists already; choose another folder or remove it.")
    for name in ("divisor", "cases"):
        if (value := arguments[name]) is not None and (type(value) is not int or value < 1):
            raise ValueError(f"--{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    network, preprocessing, description = read_subject(source, ckpt_path, arguments["seed"], overrides)
    # Networks of this package take any size, and padding would take from them what is read before the projection.
    network.divisor = arguments["divisor"] or (DIVISOR if network.scales is None else 1)
    ratios = ratios_to_measure(arguments["ratios"], network.scales)
    images = read_images(network, preprocessing, arguments["input"], arguments["cases"], arguments["seed"])
    rows = _rows(network, images, ratios)
    report = {
        "network": {**description, "scales": network.scales},
        "images": list(images),
        "arguments": {**arguments, "overrides": overrides, "ratios": ratios, "divisor": network.divisor},
        "device": str(network.device),
        "versions": {"monai_scaleequiv": monai_scaleequiv.__version__, **get_config_values()},
        "ratios": rows,
    }
    title = f"{description['class']}, images: {len(images)} {'given' if arguments['input'] else 'made up'}"
    folder.mkdir(parents=True, exist_ok=True)
    save_curves(rows, title, folder / FILES[1])
    (folder / FILES[0]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    paths = "".join(f"{folder / name}\n" for name in FILES)
    return f"{title}\nweights: {description['weights']}\n\n{_table(rows)}\n{paths}"


def ratios_to_measure(given: Sequence[float] | float | None, scales: Sequence[float] | None) -> list[float]:
    """The ratios given, else the usual ones with a step of the scale axis either way in place of what is next to it."""
    if given is not None:
        ratios: Any = given if isinstance(given, (list, tuple)) else [given]
        check_ratios(ratios, "--ratios")
        return sorted(set(map(float, ratios)))
    steps = [] if scales is None or len(scales) < 2 else [scales[1] / scales[0], scales[0] / scales[1]]
    return sorted({*steps, *(ratio for ratio in RATIOS if all(abs(ratio / step - 1) > 0.01 for step in steps))})


def whole_sizes(size: Sequence[int], ratio: float) -> tuple[list[int], list[int]]:
    """Sizes of a crop and of the crop rescaled, so that their ratio is met at each axis.

    The crop keeps three quarters of each axis or more; if that cannot be, nothing is cropped, and the new size rounded.
    """
    # First the ratio itself, then its neighbour among simple fractions, at most half a per cent away.
    for largest in (1000, 20):
        fraction = Fraction(ratio).limit_denominator(largest)
        crop = [n // fraction.denominator * fraction.denominator for n in size]
        near = fraction != 1 and abs(fraction / Fraction(ratio) - 1) < 0.005
        if near and all(4 * m >= 3 * n for m, n in zip(crop, size, strict=True)):
            return crop, [int(m * fraction) for m in crop]
    return list(size), [max(1, round(n * ratio)) for n in size]


def _rows(network: WholeImageNetwork, images: Mapping[str, torch.Tensor], ratios: Sequence[float]) -> list[dict]:
    """One row per ratio: means over the images, and each image's readings."""
    rows = []
    for ratio in tqdm(ratios, desc="measure", disable=None, leave=False):
        cases = [{"image": name, **_measure(network, image, ratio)} for name, image in images.items()]
        means = {reading: _mean(case[reading] for case in cases) for reading in (*ERRORS, "consistency_dice")}
        used = statistics.fmean(r for case in cases for r in case["ratio"])
        rows.append({"ratio": ratio, "used": used, **means, "cases": cases})
    return rows


def _measure(network: WholeImageNetwork, image: torch.Tensor, ratio: float) -> dict[str, Any]:
    crop, size = whole_sizes(image.shape[1:], ratio)
    part = convert_to_tensor(CenterSpatialCrop(crop)(image), track_meta=False)[None].to(network.device)
    network.outputs.clear()
    reading = equivariance_error(network, part, size, network.scales)
    readings = {name: getattr(reading, name) for name in ERRORS}
    readings["consistency_dice"] = float(consistency_dice(y_pred=network.outputs[1], y=network.outputs[0]).nanmean())
    # JSON has no NaN: a network that gives nothing has no error, and an image without classes no Dice.
    readings = {name: value if value is not None and value == value else None for name, value in readings.items()}
    return {"size": crop, "rescaled_size": size, "ratio": reading.ratio, **readings}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines: list[tuple[str, ...]] = [("ratio", *ERRORS, "Dice")]
    for row in rows:
        cells = ["-" if row[name] is None else f"{row[name]:.1e}" for name in ERRORS]
        dice = row["consistency_dice"]
        lines.append((f"{row['used']:.3f}", *cells, "-" if dice is None else f"{dice:.3f}"))
    return "".join("".join(f"{cell:>11}" for cell in line) + "\n" for line in lines)
