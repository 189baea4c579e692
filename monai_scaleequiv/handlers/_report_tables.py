"""What an evaluation's report says in numbers: means by class, and each case."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monai_scaleequiv.handlers._overlay import CaseSlice
from monai_scaleequiv.handlers._sweep_report import mean_and_interval

COLUMNS = 4  # classes that have a column each in the table of cases
NONE = "-"
Table = tuple[list[str], list[list[str]]]  # header and rows


class Report(NamedTuple):
    """What was measured: values (cases, classes) by metric, of which the first ranks the cases, lowest as worst."""

    title: str
    facts: Sequence[str]
    cases: Sequence[str]
    values: Mapping[str, np.ndarray]
    classes: Sequence[str]
    worst: Sequence[tuple[str, CaseSlice]]


def summary_table(report: Report) -> Table:
    """Of each metric a row for the mean of the classes, and one per class if there are several."""
    several = len(report.classes) > 1
    names = ["mean of classes", *report.classes] if several else [*report.classes]
    header, columns = [""], [[shortened(name, 24) for name in names]]
    for metric, values in report.values.items():
        header += [label_of(metric), "95 % interval", "median", "range", "cases"]
        found = mean_and_interval(list(values))
        shown = [("mean", case_means(values))] if several else []
        shown += [(str(label), column) for label, column in enumerate(values.T, start=1)]
        cells = []
        for key, column in shown:
            finite = column[np.isfinite(column)]
            low, high = (number(found[key][part], metric) for part in ("low", "high"))
            ends = f"{number(finite.min(), metric)} to {number(finite.max(), metric)}" if len(finite) else NONE
            middle = number(np.median(finite), metric) if len(finite) else NONE
            # One case has no interval.
            interval = f"{low} to {high}" if len(finite) > 1 else NONE
            cells.append([number(found[key]["mean"], metric), interval, middle, ends, str(len(finite))])
        columns += [list(column) for column in zip(*cells, strict=True)]
    return header, [list(row) for row in zip(*columns, strict=True)]


def case_table(report: Report) -> Table:
    """A row per case, the worst first; of many classes the mean, and the worst one with its name."""
    header, columns = ["case"], [[shortened(name, 40) for name in report.cases]]
    ranks = next(iter(report.values))
    for metric, values in report.values.items():
        label = label_of(metric)
        if len(report.classes) > 1:
            header.append(f"{label}\nmean")
            columns.append([number(mean, metric) for mean in case_means(values)])
        if len(report.classes) <= COLUMNS:
            header += [f"{label}\n{shortened(name, 16)}" for name in report.classes]
            columns += [[number(value, metric) for value in column] for column in values.T]
        else:
            header.append(f"{label}\n{'lowest' if metric == ranks else 'highest'}")
            columns.append([_extreme(report, metric, row, -1 if metric == ranks else 1) for row in values])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return header, [rows[i] for i in np.argsort(case_means(report.values[ranks]), kind="stable")]  # NaN last


def _extreme(report: Report, metric: str, row: np.ndarray, sign: int) -> str:
    if np.isnan(row).all():
        return NONE
    at = int(np.nanargmax(sign * row))
    return f"{shortened(report.classes[at], 22)}: {number(row[at], metric)}"


def case_means(values: np.ndarray) -> np.ndarray:
    """Of each case the mean of its classes' values that are finite, or NaN."""
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in values])


def score_of(report: Report, metric: str, case: str) -> str:
    """A case's mean in words, such as "HD95 2.10 mm"."""
    name, _, unit = label_of(metric).partition(" (")
    mean = case_means(report.values[metric])[list(report.cases).index(case)]
    return f"{name} {number(mean, metric)}" + (f" {unit[:-1]}" if unit else "")


def label_of(metric: str) -> str:
    """A metric as people know it."""
    known = {"dice": "Dice", "hd95": "HD95 (mm)"}
    return next((label for part, label in known.items() if part in metric), metric)


def number(value: float | None, metric: str) -> str:
    """With as many digits as mean something: thousandths of a Dice, hundredths of a millimetre."""
    return NONE if value is None or np.isnan(value) else f"{value:.{2 if 'mm' in label_of(metric) else 3}f}"


def shortened(text: str, length: int) -> str:
    """The end of a text that is longer, where names of cases differ."""
    return text if len(text) <= length else f"…{text[1 - length :]}"
