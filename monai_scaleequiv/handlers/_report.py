"""An evaluation's report for people, beside its tables."""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine
from monai.handlers import MetricsSaver
from monai.utils import string_list_all_gather

import monai_scaleequiv
from monai_scaleequiv import data
from monai_scaleequiv.handlers._overlay import CaseSlice, case_slice, no_harm
from monai_scaleequiv.handlers._report_pages import save_report
from monai_scaleequiv.handlers._report_tables import Report
from monai_scaleequiv.metrics import AbsentClassDiceMetric

REPORT = "report.pdf"


class MetricsReportSaver(MetricsSaver):
    """MONAI's ``MetricsSaver``, which leaves ``report.pdf`` beside its tables.

    It has means with 95 % intervals (bootstrap over cases), the distribution of each metric, the cases of the lowest
    mean Dice as overlays, and a table of all cases. Of volumes, only the slices to show are kept during the run. The
    engine's output has ``image``, and ``label`` and ``pred`` on one grid, one-hot or as overlapping regions, as
    MetaTensors.

    Args:
        save_dir: as for ``MetricsSaver``.
        worst: number of cases with overlays.
        source: the data set, whose ``dataset.json`` names the classes if there is one.
        names: those of the classes that are measured, in place of these.
        weights: file of the weights, to be named in the report.
        metadata: the bundle's, for its name and version.
        options: other arguments of ``MetricsSaver``; the first of ``metric_details`` ranks the cases.

    Example::

        >>> saver = MetricsReportSaver("output", metric_details=["val_mean_dice"], summary_ops="*")
    """

    def __init__(
        self,
        save_dir: str | os.PathLike,
        worst: int = 4,
        source: str | os.PathLike = "",
        names: Sequence[str] = (),
        weights: str | os.PathLike = "",
        metadata: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(os.fspath(save_dir), **options)
        self.worst = worst
        self.source = source
        self.names = names
        self.weights = weights
        self.metadata = metadata or {}
        self._kept: list[tuple[float, str, CaseSlice]] = []

    def _started(self, engine: Engine) -> None:
        super()._started(engine)
        self._kept = []

    def _get_filenames(self, engine: Engine) -> None:
        super()._get_filenames(engine)
        cases: Any = engine.state.output  # decollated
        for name, case in zip(self._filenames[-len(cases) :], cases, strict=True):
            dice: Any = AbsentClassDiceMetric()([case["pred"]], [case["label"]])
            score = float(dice.nanmean())
            limit = self._kept[-1][0] if len(self._kept) >= self.worst > 0 else math.inf
            if self.worst and score < limit:  # no NaN
                with no_harm(f"{REPORT}, {name}"):
                    kept = [*self._kept, (score, name, case_slice(case, worst=True))]
                    self._kept = sorted(kept, key=lambda item: item[0])[: self.worst]

    def __call__(self, engine: Engine) -> None:
        """Writes tables and report, in the first of several processes."""
        super().__call__(engine)
        names = string_list_all_gather(self._filenames)
        kept: Any = idist.all_gather(self._kept) if idist.get_world_size() > 1 else [self._kept]
        if idist.get_rank() == self.save_rank:
            worst = sorted((item for part in kept for item in part), key=lambda item: item[:2])
            with no_harm(REPORT), data.whole_file(Path(self.save_dir) / REPORT) as unfinished:
                save_report(self._report(engine, names, [item[1:] for item in worst[: self.worst]]), unfinished)

    def _report(self, engine: Engine, names: list[str], worst: list[tuple[str, CaseSlice]]) -> Report:
        state: Any = engine.state
        details = state.metric_details
        values = {name: details[name].cpu().numpy().astype(float) for name in self.metric_details or details}
        labels = range(1, next(iter(values.values())).shape[1] + 1)
        known = dict(enumerate(self.names, start=1)) or (data.class_names(self.source) if self.source else {})
        packages = (monai_scaleequiv, monai, torch)
        facts = [
            f"{len(names)} case{'s' * (len(names) != 1)} of {self.source or 'unnamed data'}",
            f"weights: {self.weights or 'as given'}",
            f"{date.today()}: {', '.join(f'{package.__name__} {package.__version__}' for package in packages)}",
            "Means and ranges are over the cases that have a value; intervals by bootstrap over cases.",
        ]
        title = " ".join(["Evaluation of", *(str(self.metadata.get(key, "")) for key in ("name", "version"))])
        short = _short_names(names)
        return Report(
            title if self.metadata.get("name") else "Evaluation",
            facts,
            [short[name] for name in names],
            values,
            [known.get(label, f"class {label}") for label in labels],
            [(short[name], one) for name, one in worst],
        )


def _short_names(names: list[str]) -> dict[str, str]:
    """Names of files without ending, with their folder where they alone do not tell cases apart."""
    files = {name: Path(name.removesuffix(".gz").removesuffix(".nii")) for name in names}
    alone = len({file.name for file in files.values()}) == len(files)
    return {name: file.name if alone else "/".join(file.parts[-2:]) for name, file in files.items()}
