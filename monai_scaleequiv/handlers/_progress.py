"""A progress bar with loss and validation metric, where someone is watching."""

from __future__ import annotations

import sys

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

__all__ = ["EngineProgressBar"]


class EngineProgressBar:
    """Ignite's progress bar over the iterations of an engine, shown only on a terminal.

    Args:
        validator: evaluator whose key metric is shown beside the loss as soon as it is known.
        desc: what stands in front of the bar, None for the engine's default.

    Example::

        >>> trainer = Engine(lambda engine, batch: [{"loss": 0.5}])
        >>> EngineProgressBar(desc="train").attach(trainer)
        >>> trainer.run([0, 1], max_epochs=1).epoch
        1
    """

    def __init__(self, validator: Engine | None = None, desc: str | None = None) -> None:
        self.validator = validator
        self.desc = desc
        self._metrics: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer or evaluator; does nothing where standard error is not a terminal."""
        if not sys.stderr.isatty():
            return
        options = {} if self.desc is None else {"desc": self.desc}
        ProgressBar(persist=False, **options).attach(engine, output_transform=self._shown)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._keep_key_metric)

    def _keep_key_metric(self, validator: Engine) -> None:
        name = validator.state.key_metric_name
        self._metrics = {name: validator.state.metrics[name]}

    def _shown(self, output: list[dict] | dict) -> dict[str, float]:
        # A list of cases after MONAI's decollating, which repeats the batch's loss in each, else one batch.
        loss = (output[0] if isinstance(output, list) else output).get("loss")
        return self._metrics if loss is None else {"loss": float(loss), **self._metrics}
