"""The data check at the start of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_scaleequiv.data import check_dataset

__all__ = ["DataCheckHandler"]

LONGEST = 900  # what Ignite sends to other processes at most is 1024 bytes


class DataCheckHandler:
    """Checks the data when a training starts, with :py:func:`check_dataset`; errors stop it.

    Files that have not changed since an earlier check are not read again. Of several processes the first one checks,
    and all stop. Datasets that load everything at construction read the files before; where that takes long, call
    ``check_dataset(...).raise_errors()`` ahead of it instead.

    Args:
        source: folder or ``dataset.json`` of a task of the Medical Segmentation Decathlon, or data dictionaries.
        num_classes: as for ``check_dataset``, like all that follow.
        channels: number of channels of each image.
        spatial_dims: number of spatial dimensions.
        image_key: key of the image in data dictionaries.
        label_key: key of the label map, None without one.
        workers: number of processes that read.

    Raises:
        ValueError: at the start of the run, in one line with the first error and the number of errors.

    Example::

        >>> trainer = Engine(lambda engine, batch: None)
        >>> DataCheckHandler([{"image": "no.nii.gz"}], label_key=None).attach(trainer)
        >>> trainer.run([0])
        Traceback (most recent call last):
        ValueError: data: 1 error; no.nii.gz: expected a file, got none; restore it.
    """

    def __init__(
        self,
        source: Sequence[Mapping[str, Any]] | str | os.PathLike,
        num_classes: int | None = None,
        channels: int | None = None,
        spatial_dims: int | None = None,
        image_key: str = "image",
        label_key: str | None = "label",
        workers: int | None = None,
    ) -> None:
        self.source = source
        self.options = {
            "num_classes": num_classes,
            "channels": channels,
            "spatial_dims": spatial_dims,
            "image_key": image_key,
            "label_key": label_key,
            "workers": workers,
        }

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Checks; warnings are told of as such."""
        error = ""
        if idist.get_rank() == 0:
            try:
                check_dataset(self.source, **self.options).raise_errors()
            except Exception as caught:
                if idist.get_world_size() == 1:
                    raise
                error = f"{caught}"[:LONGEST] or type(caught).__name__
        if idist.get_world_size() > 1:
            error = idist.broadcast(error, src=0)
        if error:
            raise ValueError(error)
