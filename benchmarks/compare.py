"""Two runs of the benchmarks beside each other.

python -m benchmarks compare benchmarks/results /tmp/new --tolerance=0.1
"""

import json
import sys
from pathlib import Path


def rows_of(path: Path) -> dict[str, dict]:
    """The measured rows of a JSON file, or of all in a folder, by name."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not path.exists():
        raise SystemExit(f"expected a JSON file of results or a folder of such, got {path}, which is not there.")
    stored = [json.loads(file.read_text()) for file in files]
    rows = [row for content in stored if isinstance(content, dict) for row in content.get("rows", [])]
    return {row["name"]: row for row in rows if isinstance(row.get("ours"), float | int) and "name" in row}


def cost(row: dict, relative: bool) -> float:
    return row["ours"] / row["baseline"] if relative and row.get("baseline") else row["ours"]


def main(old: str, new: str, tolerance: float = 0.1, relative: bool = False) -> None:
    """Prints what every row costs against an earlier run; the exit status is 1 if one has become dearer.

    Args:
        old: JSON file of results, or a folder of such.
        new: the same, of another run.
        tolerance: a row is a regression if it costs more than this share above what it did.
        relative: whether to compare costs in units of each run's own baseline, for runs under unequal load.
    """
    before, after = rows_of(Path(old)), rows_of(Path(new))
    names = [name for name in after if name in before]
    if not names:
        raise SystemExit(f"expected files with rows of the same names, got {old} and {new} with none in common.")
    worse = 0
    for name in names:
        a, b = cost(before[name], relative), cost(after[name], relative)
        is_worse = b > a * (1 + tolerance)
        worse += is_worse
        unit = "baselines" if relative and after[name].get("baseline") else after[name].get("unit", "")
        sys.stdout.write(f"{b / a:6.2f}  {a:.4g} -> {b:.4g} {unit}  {name}{'  REGRESSION' if is_worse else ''}\n")
    for name in before.keys() ^ after.keys():
        sys.stdout.write(f"     -  only in {old if name in before else new}  {name}\n")
    sys.stdout.write(f"{len(names)} rows, {worse} more than {tolerance:.0%} dearer\n")
    if worse:
        raise SystemExit(1)
