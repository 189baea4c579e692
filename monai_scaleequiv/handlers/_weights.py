"""The weights that a run starts from: loaded, fitting, and there at all."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from monai_scaleequiv.data import compare_records, definition_of, load_weights, read_record, record_differences
from monai_scaleequiv.handlers._output import AtStart

OF_THE_HEAD = ("num_classes", "out_channels", "label_values")  # which a fine-tuning is free to change
logger = logging.getLogger(__name__)


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for a network's weights, which compares what they were trained with.

    Args:
        load_path: a file as for :py:func:`load_weights`.
        load_dict: the network under any key.
        map_location: as for ``torch.load``.
        record: this run's spacing and other values that a training records; the network's definition is added. None,
            or weights without a record, compare nothing.
        new_head: whether parameters that differ in the number of classes keep their new values, as in fine-tuning.
            Recorded values that differ are warned of then, in place of an error.

    Raises:
        ValueError: when the file holds anything but weights of this network, or, without ``new_head``, the record
            disagrees.

    Example::

        >>> WeightsCheckpointLoader("no.pt", {"net": torch.nn.Conv3d(1, 1, 1)}).attach(Engine(print))
    """

    def __init__(
        self,
        load_path: str | os.PathLike,
        load_dict: dict[str, torch.nn.Module],
        map_location: Any = None,
        record: Mapping[str, Any] | None = None,
        new_head: bool = False,
    ) -> None:
        super().__init__(os.fspath(load_path), load_dict, map_location=map_location)
        self.map_location: Any
        self.record = record
        self.new_head = new_head

    def __call__(self, engine: Engine) -> None:
        """Compares and loads, but not into a training that goes on."""
        if engine.state.iteration:
            return
        (network,) = self.load_dict.values()
        recorded = read_record(self.load_path)
        if self.record is not None and recorded is not None:
            current = {"network_def": definition_of(network), **self.record}
            if self.new_head:
                self._warn(recorded, current)
            else:
                compare_records(recorded, current, self.load_path)
        if new := load_weights(network, self.load_path, self.map_location, self.new_head):
            logger.warning("%s: new values for %s, whose number of classes differs.", self.load_path, ", ".join(new))

    def _warn(self, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        for place, old, new in record_differences(recorded, current):
            if place.split("#")[-1] not in OF_THE_HEAD:
                logger.warning("%s: trained with %s=%s, this training has %s.", self.load_path, place, old, new)


class RequireWeightsHandler(AtStart):
    """Stops a run whose network has the random weights of its construction.

    Stands behind the handler that loads weights; those that a program gives after the config is parsed count as well.
    TorchScript brings its weights along.

    Args:
        network: the network.

    Raises:
        ValueError: when nothing has been written to any parameter since this handler was made.

    Example::

        >>> engine = Engine(lambda engine, batch: None)
        >>> RequireWeightsHandler(torch.nn.Linear(1, 1)).attach(engine)
        >>> engine.run([0])
        Traceback (most recent call last):
        ValueError: network: expected weights, got the random ones of a new Linear; load some, as by ckpt_path.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self._before = [(p, p._version) for p in network.parameters()]

    def __call__(self, engine: Engine) -> None:
        """Looks whether any parameter has been written to, or exchanged."""
        now = list(self.network.parameters())
        same = [p is old and p._version == version for p, (old, version) in zip(now, self._before, strict=False)]
        if now and all(same) and not isinstance(self.network, torch.jit.ScriptModule):
            got = f"the random ones of a new {type(self.network).__name__}"
            raise ValueError(f"network: expected weights, got {got}; load some, as by ckpt_path.")
