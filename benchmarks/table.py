"""Results as a table for a text.

python -m benchmarks table benchmarks/results/speed.json
"""

import json
import sys
from pathlib import Path

SCALE = {"s": (1000, "ms"), "MiB": (1, "MiB")}


def line(row: dict) -> str:
    """One row of the table; of a row without measurements, why there are none."""
    if "ours" not in row:
        return f"| {row['name']} | - | {row.get('skipped') or row.get('error') or 'in the file'} | - | - |"
    factor, unit = SCALE[row["unit"]]
    costs = [f"{factor * row[side]:.4g} {unit}" if row.get(side) else "-" for side in ("baseline", "ours")]
    ratios = [f"{row[key]:.2f}" if row.get(key) else "-" for key in ("gain", "goal")]
    return f"| {' | '.join([row['name'], *costs, *ratios])} |"


def main(file: str) -> None:
    """Prints the rows of a JSON file in Markdown.

    Args:
        file: results of speed, gpu or scaling.
    """
    rows = [row for row in json.loads(Path(file).read_text())["rows"] if "passed" not in row]
    lines = ["| row | baseline | ours | gain | goal |", "|---|---|---|---|---|", *map(line, rows)]
    sys.stdout.write("\n".join(lines) + "\n")
