"""An evaluation at many sizes of the anatomy."""

import math
import os
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.apps import get_logger
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple, string_list_all_gather

from monai_scaleequiv import data
from monai_scaleequiv.handlers._sweep_report import FILES, Row, mean_and_interval, summary_of, write_report
from monai_scaleequiv.inferers import RescaledInferer

SCALES = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)


class ScaleSweep:
    """Runs an evaluator once per size of the anatomy, which its network sees larger or smaller at the same voxel size.

    The evaluator's own inferer is wrapped in a :py:class:`RescaledInferer`. Conditions are "scale" and "oracle" at each
    scale, "thickness" and "thickness oracle" at each thickness: an oracle's images are brought back to their own size
    beforehand. ``sweep.csv`` has a row per condition and case, with each metric's values per class, counted from 1;
    ``sweep.json`` the classes' names, means and 95 % intervals (bootstrap over cases), of which ``sweep.png`` shows the
    key metric. Values that are not finite, as of a class that a case does not have, are left out of a mean.

    Args:
        evaluator: has a key metric and gets the names of the cases from their images.
        output_dir: folder for the three files.
        scales: new over old size of the images, in voxels.
        thickness: the last axis of the images gets so many times fewer voxels, as with thicker slices.
        overwrite: whether files of an earlier sweep may be replaced.
        source: the data set, whose ``dataset.json`` names the classes if there is one.
        names: those of the classes that are measured, in place of these.

    Raises:
        ValueError: when scales or thickness are no such numbers, or the evaluator has no key metric.
        FileExistsError: in ``run``, when there are files of an earlier sweep.

    Example::

        >>> evaluator = SupervisedEvaluator(torch.device("cpu"), [], torch.nn.Identity())
        >>> ScaleSweep(evaluator, "sweep", scales=[0.5, 0])
        Traceback (most recent call last):
        ValueError: scales: expected finite numbers above 0, got [0.5, 0]; give some such as [1, 2].
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        output_dir: str | os.PathLike,
        scales: Sequence[float] = SCALES,
        thickness: Sequence[float] = (),
        overwrite: bool = False,
        source: str | os.PathLike = "",
        names: Sequence[str] = (),
    ) -> None:
        self.scales = _factors("scales", scales)
        self.thickness = _factors("thickness", thickness)
        if not self.scales:
            raise ValueError("scales: expected at least one number, got none; give sizes such as [0.5, 1, 2].")
        if not evaluator.state.key_metric_name:
            raise ValueError("evaluator: expected a key metric, got none; give it a key_val_metric.")
        self.evaluator = evaluator
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.class_names = dict(enumerate(names, start=1)) or (data.class_names(source) if source else {})

    def run(self) -> None:
        """Measures and writes the files, in the first of several processes."""
        if idist.get_rank() == 0:
            data.check_output_dir(self.output_dir, "output_dir", FILES, self.overwrite)
        own, key = self.evaluator.inferer, self.evaluator.state.key_metric_name
        rows: list[Row] = []
        try:
            for condition, factor, options in self._conditions():
                self.evaluator.inferer = RescaledInferer(own, **options)
                found = self._measure(condition, factor)
                mean = mean_and_interval([row.values[key] for row in found])["mean"]["mean"]
                if idist.get_rank() == 0:
                    shown = "no value" if mean is None else f"{mean:.4f}"
                    get_logger(__name__).info(f"{condition} {factor:g}: {key} {shown}")
                rows += found
        finally:
            self.evaluator.inferer = own
        if idist.get_rank() == 0:
            write_report(self.output_dir, rows, summary_of(rows, key, self.class_names))

    def _conditions(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        for argument, prefix, factors in (("scale", "", self.scales), ("thickness", "thickness ", self.thickness)):
            for oracle, name in ((False, argument), (True, f"{prefix}oracle")):
                yield from ((name, factor, {argument: factor, "oracle": oracle}) for factor in factors)

    def _measure(self, condition: str, factor: float) -> list[Row]:
        names: list[str] = []

        def note(engine: Engine) -> None:
            batch: Any = engine.state.batch  # decollated
            names.extend(str(case[CommonKeys.IMAGE].meta[ImageMetaKey.FILENAME_OR_OBJ]) for case in batch)

        with self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, note):
            self.evaluator.run()
        details = {name: values.cpu().numpy() for name, values in self.evaluator.state.metric_details.items()}
        cases = string_list_all_gather(names)  # of all processes, as the details are
        by_case = zip(cases, *details.values(), strict=True)
        found = [Row(condition, factor, case, dict(zip(details, values, strict=True))) for case, *values in by_case]
        return sorted(found, key=lambda row: row.case)  # so that draws of cases do not depend on the processes


def _factors(argument: str, given: Any) -> list[float]:
    factors = list(ensure_tuple(given))
    if not all(isinstance(f, Real) and not isinstance(f, bool) and 0 < float(f) < math.inf for f in factors):
        raise ValueError(f"{argument}: expected finite numbers above 0, got {factors}; give some such as [1, 2].")
    return sorted(set(map(float, factors)))
