"""What the data check has found: findings in lines, a table, and all of it as JSON."""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._facts import VolumeFacts
from monai_scaleequiv.data.rules import ERROR, WARNING, Finding


@dataclass(frozen=True)
class DatasetReport:
    """Outcome of :py:func:`check_dataset`.

    Example::

        >>> report = DatasetReport("data", 1, None, {}, (("a.nii", Finding("file", "a file", "none", "restore it")),))
        >>> report.lines
        ['error a.nii: expected a file, got none; restore it.']
        >>> report.raise_errors()
        Traceback (most recent call last):
        ValueError: data: 1 error; a.nii: expected a file, got none; restore it.
    """

    source: str
    cases: int
    classes: dict[int, str] | None  # names by label
    facts: dict[tuple[str, bool], VolumeFacts]  # by file and whether it is a label map
    findings: tuple[tuple[str, Finding], ...]  # by file, errors first

    @property
    def errors(self) -> list[str]:
        """One line per error."""
        return [f"{file}: {finding}" for file, finding in self.findings if finding.severity == ERROR]

    @property
    def warnings(self) -> list[str]:
        """One line per warning."""
        return [f"{file}: {finding}" for file, finding in self.findings if finding.severity == WARNING]

    @property
    def lines(self) -> list[str]:
        """One line per finding, with its severity."""
        return [f"{finding.severity} {file}: {finding}" for file, finding in self.findings]

    def raise_errors(self) -> None:
        """Raises a ValueError of one line, with the first error, if there is any; else warns of the first warning."""
        if self.errors:
            raise ValueError(f"{self.source}: {_count(len(self.errors), 'error')}; {self.errors[0]}")
        if self.warnings:
            text = f"{self.source}: {_count(len(self.warnings), 'warning')}; {self.warnings[0]}"
            warnings.warn(text, stacklevel=2)

    def table(self) -> str:
        """What the data set is like, in a few lines."""
        rows = [("", "files", "shape", "voxel size (mm)", "stored as"), self._row(False), self._row(True)]
        lines = [f"{self.source}: {_count(self.cases, 'case')}, {_count(len(self.facts), 'file')}", "", *_columns(rows)]
        classes = self._class_rows()
        lines += ["", *_columns([("label", "cases", "voxels"), *classes])] if classes else []
        lines += ["", f"{_count(len(self.errors), 'error')}, {_count(len(self.warnings), 'warning')}"]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready to be written as JSON: numbers that are not finite become text."""
        report = {"source": self.source, "cases": self.cases, "classes": self.classes}
        report |= {"errors": len(self.errors), "warnings": len(self.warnings)}
        report["findings"] = [{"file": file, **vars(finding)} for file, finding in self.findings]
        report["files"] = [
            {"file": file, "role": "label" if label else "image"}
            | {k: v for k, v in vars(f).items() if k != "findings"}
            for (file, label), f in self.facts.items()
        ]
        return _for_json(report)

    def _row(self, label: bool) -> tuple[str, ...]:
        facts = [f for (_, is_label), f in self.facts.items() if is_label is label]
        read = [f for f in facts if f.shape]
        sound = [rules.spacing_of(f.affine) for f in read if rules.affine(f.affine, math.inf) is None]
        kinds = ", ".join(f"{kind} ({n})" for kind, n in Counter(f.dtype for f in read).most_common()) or "-"
        return "labels" if label else "images", str(len(facts)), _ranges([f.shape for f in read]), _ranges(sound), kinds

    def _class_rows(self) -> list[tuple[str, str, str]]:
        cases: Counter[Any] = Counter()
        voxels: dict[float, float] = defaultdict(float)
        for value, count in (pair for (_, label), facts in self.facts.items() if label for pair in facts.labels):
            cases[value] += 1
            voxels[value] += count
        names: Any = self.classes or {}
        total = sum(voxels.values()) or 1
        values = sorted({*names, *cases})
        rows = [(f"{v:g} {names.get(v, '')}", str(cases[v]), f"{100 * voxels[v] / total:.2f} %") for v in values[:50]]
        return rows + [("...", "", "")] * (len(values) > 50)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ranges(rows: Sequence[Sequence[float]]) -> str:
    """Smallest to largest along each axis."""
    if not rows or len({len(row) for row in rows}) > 1:
        return "various" if rows else "-"
    spans = ((f"{min(axis):.4g}", f"{max(axis):.4g}") for axis in zip(*rows, strict=True))
    return " x ".join(low if low == high else f"{low}..{high}" for low, high in spans)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _for_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
