"""What a training shows while it runs: its curve, and a case as it is segmented at each validation."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import from_engine
from monai.utils import CommonKeys, ImageMetaKey

from monai_scaleequiv.data import class_names, whole_file
from monai_scaleequiv.handlers._overlay import (
    case_slice,
    colour_of,
    columns_of,
    draw_overlay,
    frame,
    label_maps,
    legend_lines,
    no_harm,
)
from monai_scaleequiv.metrics import AbsentClassDiceMetric

CURVE = "curve.png"
OVERLAY = "overlay_epoch={}.png"


class TrainingCurve:
    """Draws ``curve.png`` at each validation: the mean training loss of each epoch, and the validation's key metric.

    In the ``save_dict`` of a checkpoint it lets a resumed training go on with the curve of the earlier epochs. Values
    and file are those of the first process; TensorBoard has them by MONAI's ``TensorBoardStatsHandler``.

    Args:
        save_dir: folder of the picture, made with it.
        validator: the evaluator; this handler stands behind the one that runs it.
        loss_transform: from the engine's output to the loss.

    Example::

        >>> from monai.engines import SupervisedEvaluator
        >>> validator = SupervisedEvaluator(torch.device("cpu"), [], torch.nn.Identity())
        >>> TrainingCurve("models", validator).state_dict()
        {'loss': {}, 'metric': {}}
    """

    def __init__(
        self,
        save_dir: str | os.PathLike,
        validator: Any,
        loss_transform: Callable[[Any], Any] = from_engine(CommonKeys.LOSS, first=True),  # noqa: B008 - has no state
    ) -> None:
        self.save_dir = Path(save_dir)
        self.validator = validator
        self.loss_transform = loss_transform
        self.loss: dict[int, float] = {}  # by epoch, as are those of the metric
        self.metric: dict[int, float] = {}
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Notes the epoch, and draws if it has been validated."""
        if not self._losses:  # stopped before the first batch
            return
        epoch, name = engine.state.epoch, self.validator.state.key_metric_name
        self.loss[epoch] = sum(self._losses) / len(self._losses)
        if self.validator.state.epoch == epoch and name:
            self.metric[epoch] = float(self.validator.state.metrics[name])
            if idist.get_rank() == 0:
                with no_harm(CURVE):
                    self.save_dir.mkdir(parents=True, exist_ok=True)
                    with whole_file(self.save_dir / CURVE) as unfinished:
                        self._figure(name).savefig(unfinished, dpi=120)

    def state_dict(self) -> dict[str, dict[int, float]]:
        """Loss and metric by epoch."""
        return {"loss": dict(self.loss), "metric": dict(self.metric)}

    def load_state_dict(self, state_dict: Mapping[str, Mapping[int, float]]) -> None:
        """Goes on with the epochs of an earlier training."""
        self.loss, self.metric = dict(state_dict["loss"]), dict(state_dict["metric"])

    def _start(self, engine: Engine) -> None:
        self._losses = []
        if engine.state.epoch == 1:
            self.load_state_dict({"loss": {}, "metric": {}})

    def _note(self, engine: Engine) -> None:
        self._losses.append(float(self.loss_transform(engine.state.output)))

    def _figure(self, name: str) -> Any:
        from matplotlib.figure import Figure  # slow to import
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(9, 3.6))
        figure.subplots_adjust(left=0.07, right=0.98, top=0.9, bottom=0.15)
        best = max(self.metric, key=lambda epoch: (self.metric[epoch] == self.metric[epoch], self.metric[epoch]))
        shown = {
            "training loss, mean of the epoch": (self.loss, colour_of(6)),
            f"{name}, best {self.metric[best]:.3f} at epoch {best}": (self.metric, colour_of(4)),
        }
        for axes, (title, (values, colour)) in zip(figure.subplots(1, 2), shown.items(), strict=True):
            axes.plot(values.keys(), values.values(), "o-", color=colour, markersize=3 if len(values) < 100 else 0)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="#e8e8e8")
            axes.spines[["top", "right"]].set_visible(False)
        return figure


class ValidationOverlay:
    """Draws the first case of each validation, always in the slice with most of its label, as it is segmented.

    ``overlay_epoch=N.png`` is kept for every validation. The engine's output has ``image``, and ``label`` and ``pred``
    one-hot or as regions, as MetaTensors; its data are not shuffled.

    Args:
        save_dir: folder of the pictures, made with the first.
        summary_writer: TensorBoard's ``SummaryWriter``, which gets the same picture under the tag ``overlay``, if any.
        source: the data set, whose ``dataset.json`` names the classes if there is one.
        names: those of the classes, from 1 on, in place of these.

    Example::

        >>> ValidationOverlay("models").attach(Engine(lambda engine, batch: None))
    """

    def __init__(
        self,
        save_dir: str | os.PathLike,
        summary_writer: Any = None,
        source: str | os.PathLike = "",
        names: Sequence[str] = (),
    ) -> None:
        self.save_dir = Path(save_dir)
        self.summary_writer = summary_writer
        self.source = source
        self.names = names

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draws the first case."""
        if engine.state.iteration > 1:
            return
        output: Any = engine.state.output  # decollated
        epoch = engine.state.epoch
        with no_harm(OVERLAY.format(epoch)):
            figure = _overlay(output[0], epoch, self._names)
            self.save_dir.mkdir(parents=True, exist_ok=True)
            with whole_file(self.save_dir / OVERLAY.format(epoch)) as unfinished:
                figure.savefig(unfinished)
            if self.summary_writer is not None:
                self.summary_writer.add_figure("overlay", figure, epoch)

    @cached_property
    def _names(self) -> dict[int, str]:
        given = dict(enumerate(self.names, start=1))
        return given or (class_names(self.source) if self.source else {})


def _overlay(case: Mapping[str, Any], epoch: int, names: Mapping[int, str]) -> Any:
    from matplotlib.figure import Figure

    shown = case_slice(case, worst=False)
    dice: Any = AbsentClassDiceMetric()([case[CommonKeys.PRED]], [case[CommonKeys.LABEL]])
    name = Path(str(case[CommonKeys.IMAGE].meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))).name.split(".nii")[0]
    width, height = 7.6, 4.8  # inches
    figure = Figure(figsize=(width, height), dpi=100)
    for column, (labels, truth) in enumerate(((shown.truth, None), (shown.prediction, shown.truth))):
        axes = figure.add_axes((0.02 + 0.49 * column, 0.14, 0.47, 0.47 * width / height))
        draw_overlay(axes, shown.image, shown.size, labels, truth)
        frame(axes, shown.truth > 0, shown.size, shown.ends)
        axes.set_xlabel(("label", "prediction, label dotted")[column], fontsize=10, labelpad=2)
    title = f"epoch {epoch}: Dice {dice.nanmean().item():.3f}, {name}, {shown.place}"
    figure.text(0.02, 0.94, title, fontsize=11, parse_math=False)
    lines = legend_lines(label_maps(case)[1], names)
    letters, points = (100, 9) if len(lines) < 7 else (150, 6)
    style = {"ncols": columns_of(lines, letters), "fontsize": points}
    figure.legend(handles=lines, loc="lower center", frameon=False, **style)
    return figure
