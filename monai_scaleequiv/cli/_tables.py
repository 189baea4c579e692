"""Tables of results, as the command line shows them."""

import json
from collections.abc import Mapping
from pathlib import Path


def sweep_table(folder: Path) -> str:
    """What a sweep has measured: each metric's mean over classes, with its interval, and that of each class."""
    summary = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    shown, width = "", max(10, *(len(name) + 2 for name in summary["classes"].values()))
    for metric in summary["metrics"]:
        classes = [name for name in summary["conditions"][0][metric] if name != "mean"]
        titles = "".join(f"{summary['classes'][name]:>{width}}" for name in classes) if len(classes) > 1 else ""
        shown += f"\n{metric:<18}{'factor':>8}{'mean':>9}{'95 % interval':>20}{'cases':>7}{titles}\n"
        for point in summary["conditions"]:
            mean, by_class = point[metric]["mean"], [point[metric][name] for name in classes if titles]
            interval = "-" if mean["mean"] is None else f"{mean['low']:.3f} to {mean['high']:.3f}"
            cells = f"{_number(mean):>9}{interval:>20}{mean['cases']:>7}"
            shown += f"{point['condition']:<18}{point['factor']:>8g}{cells}"
            shown += "".join(f"{_number(value):>{width}}" for value in by_class) + "\n"
    return shown + "\n" + "".join(f"{folder / f'sweep.{ending}'}\n" for ending in ("csv", "json", "png"))


def _number(value: Mapping[str, float | None]) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.3f}"
