"""Equivariance during validation, beside the metrics that need labels."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.metrics import DiceMetric
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys

from monai_scaleequiv.maths import rescale
from monai_scaleequiv.metrics import EquivarianceError, check_ratios, consistency_dice, inner_part


class EquivarianceHandler:
    """Measures at each validation how far the network is from scale-equivariant.

    Predictions of rescaled images, by the engine's own inferer, are compared with the prediction of the image as it is.
    ``engine.state.metrics`` gets ``equivariance_error_0.80`` and ``consistency_dice_0.80`` for a ratio of 0.8, NaN if
    nothing could be measured. Where the loader has no length, this handler stands before those that log.

    Args:
        ratios: magnifications; an axis of n voxels gets ``round(n * ratio)``.
        interval: measure the first of every so many batches.
        margin: share of each axis that the error leaves out at either end; label maps are compared as a whole.

    Raises:
        ValueError: when an argument is out of range, or the engine is no ``SupervisedEvaluator`` in mode "eval".

    Example::

        >>> engine = SupervisedEvaluator(torch.device("cpu"), [{"image": torch.rand(1, 1, 8, 8)}], torch.nn.Identity())
        >>> EquivarianceHandler(ratios=(1.5,)).attach(engine)
        >>> engine.run()
        >>> engine.state.metrics["equivariance_error_1.50"]
        0.0
    """

    def __init__(self, ratios: Sequence[float] = (0.8, 1.25), interval: int = 1, margin: float = 0.1) -> None:
        check_ratios(ratios)
        if len({f"{ratio:.2f}" for ratio in ratios}) < len(ratios):
            raise ValueError(f"ratios must differ in their first two decimals, which name them, got {tuple(ratios)}.")
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval must be a whole number of at least 1, got {interval!r}.")
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be from 0 to below 0.5, got {margin}.")
        self.ratios = tuple(ratios)
        self.interval = interval
        self.margin = margin
        # MONAI's buffers know how many cases count, and gather those of all processes.
        self._metrics: dict[str, Any] = {}
        for ratio in ratios:
            self._metrics[f"equivariance_error_{ratio:.2f}"] = EquivarianceError(get_not_nans=True)
            self._metrics[f"consistency_dice_{ratio:.2f}"] = DiceMetric(get_not_nans=True)

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attaches to an evaluator."""
        if not isinstance(engine, SupervisedEvaluator):
            raise ValueError(f"expected a SupervisedEvaluator, got {type(engine).__name__}; attach to the validation.")
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._measure)
        # Before handlers that log at the end of the epoch; and then, for loaders whose length Ignite learns there.
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_after_the_last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: SupervisedEvaluator) -> None:
        # Not before, because the evaluator attaches its handlers in the midst of its construction.
        if engine.mode is not eval_mode:
            raise ValueError("expected an evaluator in mode 'eval', got one in mode 'train', whose predictions vary.")
        for metric in self._metrics.values():
            metric.reset()

    def _measure(self, engine: SupervisedEvaluator) -> None:
        if (engine.state.iteration - 1) % self.interval:
            return
        image, prediction = (_plain(engine.state.output[key]) for key in (CommonKeys.IMAGE, CommonKeys.PRED))
        for ratio in self.ratios:
            size = [max(1, round(n * ratio)) for n in image.shape[2:]]
            expected = _predict(engine, rescale(image, size))
            inner = (inner_part(x, self.margin, image.dim() - 2) for x in (expected, rescale(prediction, size)))
            self._metrics[f"equivariance_error_{ratio:.2f}"](*inner)
            self._metrics[f"consistency_dice_{ratio:.2f}"].extend(consistency_dice(expected, prediction))

    def _write_after_the_last(self, engine: SupervisedEvaluator) -> None:
        length = engine.state.epoch_length
        if length is not None and engine.state.iteration % length == 0:
            self._write(engine)

    def _write(self, engine: SupervisedEvaluator) -> None:
        for name, metric in self._metrics.items():
            value, count = metric.aggregate()
            engine.state.metrics[name] = value.item() if count > 0 else math.nan


def _predict(engine: SupervisedEvaluator, image: torch.Tensor) -> torch.Tensor:
    precision = torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else contextlib.nullcontext()
    with eval_mode(engine.network), precision:
        return _plain(engine.inferer(image, engine.network))


def _plain(x: Any) -> torch.Tensor:
    """In float32, and without the metadata that a rescaled image would not fit."""
    if isinstance(x, torch.Tensor):
        return x.as_subclass(torch.Tensor).detach().float()
    raise ValueError(f"expected image and prediction as tensors, got {type(x).__name__}; use an inferer with one.")
