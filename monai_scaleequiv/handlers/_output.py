"""What a run leaves beside its results, and where."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from monai_scaleequiv import data


class AtStart:
    """A handler that does its work as a run starts."""

    def attach(self, engine: Engine) -> None:
        """Attaches to any engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class OutputDirHandler(AtStart):
    """Creates a folder for results as a run starts, and writes to it for a trial.

    Args:
        output_dir: where results will be written; what it holds stays as it is.
        files: names or patterns of results, which may not be there already, unless this run has written them.
        overwrite: whether they may.

    Raises:
        FileExistsError: when one of ``files`` is there already.
        OSError: when the folder cannot be made or written to, or the disk is full.

    Example::

        >>> engine = Engine(lambda engine, batch: None)
        >>> OutputDirHandler("output", files=["metrics.csv"]).attach(engine)
    """

    output_dir: str | os.PathLike
    files: Sequence[str] = ()
    overwrite: bool = False

    def __call__(self, engine: Engine) -> None:
        """Checks, in the first of several processes."""
        if idist.get_rank() == 0:
            data.check_output_dir(self.output_dir, "output_dir", self.files, self.overwrite)
            self.overwrite = True


@dataclass(eq=False)
class TrainingRecordHandler(AtStart):
    """Writes beside the weights, as a training starts, what a later run with them has to agree with.

    Args:
        path: a JSON file, ``model.json`` for ``model.pt``.
        network: whose definition to record.
        values: further entries, such as spacing and num_classes.
        cases: data dictionaries of the training, of which names and sizes of the images are recorded.
        weights: the weights that the training starts from, whose cases have been seen as well.

    Raises:
        ValueError: when there is the record of an earlier training, with its weights, and it disagrees.

    Example::

        >>> trainer = Engine(lambda engine, batch: None)
        >>> TrainingRecordHandler("new.json", torch.nn.Linear(1, 1), {"num_classes": 3}, []).attach(trainer)
        >>> _ = trainer.run([0])
        >>> data.read_record("new.pt")["num_classes"]
        3
    """

    path: str | os.PathLike
    network: torch.nn.Module
    values: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    weights: str = ""

    def __call__(self, engine: Engine) -> None:
        """Writes, in the first of several processes; behind the handler that resumes."""
        if idist.get_rank() > 0:
            return
        path = Path(self.path)
        record = {"network_def": data.definition_of(self.network, self.values.get("num_classes")), **self.values}
        goes_on = engine.state.iteration > 0 or path.with_suffix(".pt").is_file()
        earlier = data.read_record(path) if goes_on and path.is_file() else None
        if earlier is not None:
            data.compare_records(earlier, record, str(path))
        seen: dict[str, int] = {}
        for source in (earlier, data.read_record(self.weights) if self.weights else None):
            seen |= (source or {}).get("training_cases", {})
        data.write_record(path, {**record, "training_cases": seen | data.case_sizes(self.cases)})


class LateSummaryWriter:
    """TensorBoard's ``SummaryWriter``, made when there is something to write: a run that fails before leaves nothing.

    Args:
        log_dir: as for ``SummaryWriter``.

    Example::

        >>> LateSummaryWriter("tensorboard").add_scalar("loss", 0.5, 1)
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(self.log_dir)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
