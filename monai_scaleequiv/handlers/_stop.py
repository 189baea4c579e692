"""Ends of a training that are not its own: a signal, and numbers that go wrong."""

import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys, ImageMetaKey

from monai_scaleequiv.data import file_finding
from monai_scaleequiv.handlers._checkpoint_files import epoch_files, newest_finite

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class StopSignalHandler:
    """Ends a training on SIGTERM, after the iteration in progress; the checkpoint of the last whole epoch counts.

    Nothing of a half-finished epoch is saved. An epoch that has just ended is validated and saved before. If one of
    several processes gets the signal, all stop. A second SIGTERM ends the process at once. Signals can be caught in the
    main thread only. Stands before MONAI's ``StatsHandler``: Ignite shows an exception to the first handler alone, and
    the signal's earlier meaning has to come back then as well.

    Call :py:meth:`exit_if_stopped` at the end, for the message and the process's exit status of 143.

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
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._restore_and_raise)

    def __call__(self, engine: Engine) -> None:
        """Stops the engine if a signal has come to any process."""
        stops = self._signalled
        if idist.get_world_size() > 1:
            stops = idist.all_reduce(int(stops), "MAX") > 0
        if stops:
            self._stopped_in = engine.state.epoch
            engine.terminate()

    def _within_an_epoch(self, engine: Engine) -> None:
        # After the last iteration the epoch is whole, and about to be validated and saved.
        length = engine.state.epoch_length
        if length is None or engine.state.iteration % length:
            self(engine)

    def exit_if_stopped(self) -> None:
        """Ends the process if a signal has stopped the training.

        Raises:
            SystemExit: with 143, which is 128 and the number of SIGTERM, after a warning in one line.
        """
        if not self._stopped_in:
            return
        if self._leads:
            last = next((path for path in epoch_files(self.save_dir) if not file_finding(path)), None)
            kept = f"{last} holds the last whole epoch; go on with resume=auto" if last else "no epoch was whole yet"
            logger.warning("stopped by SIGTERM in epoch %d: %s.", self._stopped_in, kept)
        raise SystemExit(EXIT_CODE)

    def _start(self, engine: Engine) -> None:
        self._signalled, self._stopped_in = False, 0
        self._leads = idist.get_rank() == 0  # as long as there is a process group
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._signalled = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _restore(self, engine: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)  # None if not set by Python

    def _restore_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._restore(engine)
        raise error


class NonFiniteLossHandler:
    """Stops a training whose loss is not finite, before it reaches the weights, and names the cases in the batch.

    Args:
        save_dir: folder of the checkpoints, to name the newest one whose numbers are all finite.
        image_key: key of the images in the batch, whose metadata name the files.

    Raises:
        ValueError: in one line, when the loss is NaN or infinite.

    Example::

        >>> from monai.engines import SupervisedTrainer
        >>> network = torch.nn.Linear(1, 1)
        >>> trainer = SupervisedTrainer(
        ...     device=torch.device("cpu"), max_epochs=1, network=network,
        ...     train_data_loader=[{"image": torch.full((1, 1), torch.inf), "label": torch.zeros(1, 1)}],
        ...     optimizer=torch.optim.SGD(network.parameters()), loss_function=torch.nn.MSELoss(),
        ...     train_handlers=[NonFiniteLossHandler("models")],
        ... )
        >>> trainer.run()
        Traceback (most recent call last):
        ValueError: epoch 1, iteration 1: expected a finite loss, got inf; cases without names; ...
    """

    def __init__(self, save_dir: str | os.PathLike, image_key: str = CommonKeys.IMAGE) -> None:
        self.save_dir = Path(save_dir)
        self.image_key = image_key

    def attach(self, engine: Engine) -> None:
        """Attaches to a MONAI trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Looks at the loss of the batch."""
        loss = engine.state.output[CommonKeys.LOSS]
        if bool(torch.isfinite(loss).all()):
            return
        last = newest_finite(self.save_dir)
        kept = f"the last checkpoint with finite numbers is {last}" if last else "there is no checkpoint yet"
        raise ValueError(
            f"epoch {engine.state.epoch}, iteration {engine.state.iteration}: expected a finite loss, "
            f"got {loss.detach().mean().item()}; {self._cases(engine.state.batch)}; {kept}; "
            "look at these cases, lower learning_rate or try amp=false."
        )

    def _cases(self, batch: Any) -> str:
        images = batch.get(self.image_key) if isinstance(batch, Mapping) else None
        names = getattr(images, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, [])
        names = [names] if isinstance(names, str) else names
        return f"cases {', '.join(dict.fromkeys(map(str, names)))}" if names else "cases without names"
