"""Ends of a training that are not its own: a signal, and numbers that go wrong."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from monai_scaleequiv.handlers._checkpoint_files import newest_whole

logger = logging.getLogger(__name__)


class StopSignalHandler:
    """Ends a training on SIGTERM, after the iteration in progress; the checkpoint of the last whole epoch counts.

    An epoch that has just ended is validated and saved before. If one of several processes gets the signal, all stop. A
    second SIGTERM ends the process at once. Signals can be caught in the main thread only. Stands before MONAI's
    ``StatsHandler``: Ignite shows an exception to the first handler alone, and this one gives SIGTERM back its meaning.

    Args:
        save_dir: folder of the checkpoints, to name the last one.

    Example::

        >>> trainer = Engine(lambda engine, batch: os.kill(os.getpid(), signal.SIGTERM))
        >>> stop = StopSignalHandler("models")
        >>> stop.attach(trainer)
        >>> trainer.run([0, 1, 2], max_epochs=1).iteration
        1
        >>> stop.exit_if_stopped()
        Traceback (most recent call last):
        SystemExit: 143
    """

    def __init__(self, save_dir: str | os.PathLike) -> None:
        self.save_dir = Path(save_dir)
        self._signalled = False
        self._stopped_in = 0
        self._leads = True
        self._before: Any = signal.SIG_DFL

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._within_an_epoch)
        engine.add_event_handler(Events.COMPLETED, self._restore)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._restore)

    def __call__(self, engine: Engine) -> None:
        """Stops the engine if a signal has come to any process."""
        stops = self._signalled
        if idist.get_world_size() > 1:
            stops = bool(idist.all_reduce(int(stops), "MAX"))
        if stops:
            self._stopped_in = engine.state.epoch
            engine.terminate()

    def exit_if_stopped(self) -> None:
        """Ends the process if a signal has stopped the training, for the end of a program.

        Raises:
            SystemExit: with 143, which is 128 and the number of SIGTERM, after a warning in one line.
        """
        if self._stopped_in and self._leads:
            last = newest_whole(self.save_dir)
            kept = f"{last} holds the last whole epoch; go on with resume=auto" if last else "no epoch was whole yet"
            logger.warning("stopped by SIGTERM in epoch %d: %s.", self._stopped_in, kept)
        if self._stopped_in:
            raise SystemExit(128 + signal.SIGTERM)

    def _within_an_epoch(self, engine: Engine) -> None:
        # After the last iteration the epoch is whole, and about to be validated and saved.
        length = engine.state.epoch_length
        if length is None or engine.state.iteration % length:
            self(engine)

    def _start(self, engine: Engine) -> None:
        self._signalled, self._stopped_in = False, 0
        self._leads = idist.get_rank() == 0  # as long as there is a process group
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._signalled = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore(self, engine: Engine, error: BaseException | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)  # None if not set by Python
        if error is not None:
            raise error


class NonFiniteLossHandler:
    """Stops a training whose loss is not finite, before it reaches the weights, and names the cases in the batch.

    Args:
        save_dir: folder of the checkpoints, to name the newest one whose numbers are all finite.

    Raises:
        ValueError: in one line, when the loss is NaN or infinite.

    Example::

        >>> trainer = Engine(lambda engine, batch: {"loss": torch.tensor(torch.nan)})
        >>> trainer.register_events(*IterationEvents)
        >>> NonFiniteLossHandler("models").attach(trainer)
    """

    def __init__(self, save_dir: str | os.PathLike) -> None:
        self.save_dir = Path(save_dir)

    def attach(self, engine: Engine) -> None:
        """Attaches to a MONAI trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Looks at the loss of the batch."""
        state: Any = engine.state
        loss = state.output["loss"]
        if bool(torch.isfinite(loss).all()):
            return
        names = getattr(state.batch["image"], "meta", {}).get("filename_or_obj", [])
        names = dict.fromkeys([names] if isinstance(names, str) else map(str, names))
        last = newest_whole(self.save_dir, finite=True)
        kept = f"the last checkpoint with finite numbers is {last}" if last else "there is no checkpoint yet"
        raise ValueError(
            f"epoch {state.epoch}, iteration {state.iteration}: expected a finite loss, got {loss.mean().item()}; "
            f"cases {', '.join(names) or 'without names'}; {kept}; "
            "look at these cases, lower learning_rate or try amp=false."
        )
