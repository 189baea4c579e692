"""The pages of an evaluation's report: summary, distributions, the worst cases, and a table of all."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_scaleequiv.handlers._overlay import CaseSlice, colour_of, columns_of, draw_overlay, frame, legend_lines
from monai_scaleequiv.handlers._report_tables import Report, case_table, label_of, score_of, shortened, summary_table

SIZE, MARGIN, STEP = (11.7, 8.3), 0.5, 0.2  # of a page (A4), and a line of a table, in inches
TOP = SIZE[1] - 1.0
ROWS, OVERLAYS, FEW = 32, 4, 8  # lines of a table and cases with overlays on a page; classes that the first page lists
GREY = "#777777"


def save_report(report: Report, target: Path) -> None:
    """Writes the pages as PDF."""
    from matplotlib.backends.backend_pdf import PdfPages  # slow to import, and of use here alone

    # Without its own time, so that the same evaluation gives the same file; the day is on the first page.
    with PdfPages(target, metadata={"Title": report.title, "CreationDate": None}) as pdf:
        for page in pages(report):
            pdf.savefig(page)


def pages(report: Report) -> Iterator[Any]:
    """Each page as a figure of matplotlib."""
    header, rows = summary_table(report)
    tables = {"All cases, the worst first": case_table(report)}
    if len(report.classes) > FEW:
        tables["All classes"] = (header, rows)
        rows = rows[:1]
    page = _Page(report.title)
    for line, fact in enumerate(report.facts):
        page.text(MARGIN, TOP - STEP * line, shortened(fact, 150), color="#333333")
    bottom = page.table(TOP - STEP * (len(report.facts) + 0.5), header, rows)
    _draw_distributions(page, report, bottom - 0.4)
    yield page.figure
    for part in _parts(report.worst, OVERLAYS):
        yield _overlay_page(report, part)
    for title, (header, rows) in tables.items():
        for part in _parts(rows, ROWS):
            page = _Page(title)
            page.table(TOP, header, part)
            yield page.figure


def _parts(items: Sequence[Any], length: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + length] for i in range(0, len(items), length))


class _Page:
    """A figure on which things stand at a place in inches, which is faster than matplotlib's layouts."""

    def __init__(self, title: str) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=SIZE)
        self.sheet = self.figure.add_axes((0, 0, 1, 1), xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
        self.sheet.axis("off")
        self.text(MARGIN, SIZE[1] - 0.5, title, fontsize=15, fontweight="bold")

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.sheet.text(x, y, text, **{"fontsize": 9, "va": "center", "parse_math": False, **style})

    def axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        across, up = SIZE
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))

    def table(self, top: float, header: Sequence[str], rows: Sequence[Sequence[str]]) -> float:
        """Writes lines below ``top``, as wide as what they hold; the place of the last one's lower edge."""
        columns = zip(header, *rows, strict=True)
        longest = [max(len(line) for text in column for line in text.split("\n")) for column in columns]
        widths = 0.075 * np.array(longest) + 0.35
        shrink = min(1, (SIZE[0] - 2 * MARGIN) / widths.sum())
        ends = MARGIN + shrink * np.cumsum(widths)
        lines = 1 + max(text.count("\n") for text in header)
        for number, cells in enumerate((header, *rows)):
            y = top - STEP * (number + lines - 1 if number else (lines - 1) / 2)
            style = {"fontsize": 9 * shrink, "fontweight": "normal" if number else "bold"}
            self.text(MARGIN, y, cells[0], **style)
            for end, cell in zip(ends[1:], cells[1:], strict=True):
                self.text(end, y, cell, ha="right", **style)
        edges = top - STEP * (np.arange(len(rows) + 1) + lines - 0.5)
        self.sheet.hlines(edges, MARGIN, ends[-1], color="#dddddd", linewidth=0.8)
        return float(edges[-1])


def _draw_distributions(page: _Page, report: Report, top: float) -> None:
    """A panel per metric with each case's value as a point, by class; beside one another if the names have room."""
    names = [shortened(name, 22) for name in report.classes]
    length = sum(len(name) + 2 for name in names)
    stacked, rotated = length > 50, length > 110
    left, bottom, gap, n = MARGIN + 0.3, 1.8 if rotated else 0.7, 0.4 if stacked else 0.9, len(report.values)
    width, height = SIZE[0] - MARGIN - left, top - bottom
    panel = (width, (height - gap * (n - 1)) / n) if stacked else ((width - gap * (n - 1)) / n, height)
    for i, (metric, values) in enumerate(report.values.items()):
        place = (left, top - panel[1] - i * (panel[1] + gap)) if stacked else (left + i * (panel[0] + gap), bottom)
        axes = page.axes(*place, *panel)
        for at, column in enumerate(values.T, start=1):
            _draw_column(axes, at, column[np.isfinite(column)], len(names) > FEW)
        axes.set(ylabel=label_of(metric), xlim=(0.4, len(names) + 0.6))
        axes.set_xticks(range(1, len(names) + 1), names, fontsize=min(10, 360 / len(names)), parse_math=False)
        axes.tick_params(axis="x", rotation=90 if rotated else 0, labelbottom=not stacked or i == n - 1)
        if label_of(metric) == "Dice":
            lowest = np.min(values, where=np.isfinite(values), initial=0.6)
            axes.set_ylim(max(0, np.floor(10 * lowest - 0.5) / 10), 1.01)
        else:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e8e8e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if not np.isfinite(values).any():
            axes.text(0.5, 0.5, "no case has a value", transform=axes.transAxes, ha="center", color=GREY)


def _draw_column(axes: Any, at: int, values: np.ndarray, small: bool) -> None:
    spread = np.random.default_rng(at).uniform(-0.2, 0.2, len(values))
    style = {"s": 6 if small else 16, "color": colour_of(at), "linewidth": 0, "alpha": 0.8}
    axes.scatter(at + spread, values, **style)
    if len(values) > 1:
        line = {"color": "black", "linewidth": 1}
        lines = {f"{part}props": line for part in ("box", "median", "whisker", "cap")}
        axes.boxplot(values, positions=[at], widths=0.6, showfliers=False, zorder=3, **lines)


def _overlay_page(report: Report, part: Sequence[tuple[str, CaseSlice]]) -> Any:
    page = _Page("The worst cases, in the slice where prediction and label differ most")
    side, gap = 2.5, 0.1
    for number, (name, one) in enumerate(part):
        left, bottom = MARGIN + (number % 2) * (2 * side + gap + 0.5), TOP - 0.35 - side - (number // 2) * (side + 0.75)
        for column, labels in enumerate((one.truth, one.prediction)):
            axes = page.axes(left + column * (side + gap), bottom, side, side)
            draw_overlay(axes, one.image, one.size, labels, one.truth if column else None)
            frame(axes, (one.truth > 0) | (one.prediction > 0), one.size, one.ends)
            axes.set_xlabel(("label", "prediction, label dotted")[column], fontsize=9, labelpad=2)
        page.text(left, bottom + side + 0.33, shortened(name, 60), fontsize=10, fontweight="bold")
        scores = [score_of(report, metric, name) for metric in report.values]
        page.text(left, bottom + side + 0.13, ", ".join([*scores, one.place]), fontsize=10)
    shown = {int(value) for _, one in part for labels in (one.truth, one.prediction) for value in np.unique(labels)}
    lines = legend_lines(shown, dict(enumerate(report.classes, start=1)))
    page.figure.legend(handles=lines, loc="lower center", ncols=columns_of(lines, 130), frameon=False, fontsize=10)
    return page.figure
