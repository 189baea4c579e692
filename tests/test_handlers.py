"""Distances in millimetres, equivariance, the progress bar, and care for earlier checkpoints."""

from __future__ import annotations

import math
import re
import sys

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, IterableDataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, MeanDice, StatsHandler, ValidationHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.metrics import HausdorffDistanceMetric
from monai.transforms import AsDiscreted
from torch import nn

from monai_scaleequiv import (
    EngineProgressBar,
    EquivarianceHandler,
    ResumableCheckpointSaver,
    SpacingHausdorffDistanceMetric,
    claim_checkpoint_dir,
    consistency_dice,
    equivariance_error,
    rescale,
)


def one_hot(foreground: torch.Tensor, spacing=(1.0, 1.0, 1.0)) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.stack([~foreground, foreground]).float(), affine=affine)


def voxel(*position: int, shape=(12, 12, 12)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[position] = True
    return mask


def blob(centre, radius, shape=(16, 14, 12)) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), dim=-1)
    return (grid - torch.tensor(centre)).square().sum(-1) < radius**2


@pytest.mark.parametrize(
    ("spacing", "offset", "millimetres"),
    [
        ((1.0, 1.0, 1.0), (0, 0, 3), 3.0),
        ((1.0, 1.0, 3.0), (0, 0, 3), 9.0),
        ((0.5, 1.0, 3.0), (4, 0, 0), 2.0),
        ((0.5, 1.5, 3.0), (0, 4, 0), 6.0),
        ((2.0, 1.5, 1.0), (2, 2, 0), 5.0),
        ((2.0, 3.0, 6.0), (1, 1, 1), 7.0),
    ],
)
def test_distance_of_two_voxels_is_in_millimetres(spacing, offset, millimetres):
    prediction = one_hot(voxel(5, 5, 5), spacing)
    label = one_hot(voxel(*(5 + o for o in offset)), spacing)
    distance = SpacingHausdorffDistanceMetric(include_background=False)([prediction], [label])
    torch.testing.assert_close(distance, torch.tensor([[millimetres]]))


def test_spacing_follows_permuted_and_turned_axes():
    affine = torch.tensor([[0, 3.0, 0, 5], [0, 0, -0.5, 1], [2.0, 0, 0, -7], [0, 0, 0, 1]], dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    prediction, label = one_hot(voxel(5, 5, 5)), one_hot(voxel(5, 8, 5))
    label.affine = turn @ affine  # the second axis is the one of 3 mm
    distance = SpacingHausdorffDistanceMetric(include_background=False)([prediction], [label])
    torch.testing.assert_close(distance, torch.tensor([[9.0]]))


@pytest.mark.parametrize("percentile", [None, 95, 70])
@pytest.mark.parametrize("directed", [False, True])
def test_equals_monai_at_one_millimetre(percentile, directed):
    options = {"include_background": True, "percentile": percentile, "directed": directed}
    prediction, label = one_hot(blob((7, 7, 6), 4)), one_hot(blob((8, 6, 5), 3))
    expected = HausdorffDistanceMetric(**options)(prediction.as_tensor()[None], label.as_tensor()[None])
    assert expected.max() > 0
    actual = SpacingHausdorffDistanceMetric(**options)([prediction], [label])
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(SpacingHausdorffDistanceMetric(**options)([prediction.as_tensor()], [label]), expected)


def test_plain_label_is_refused():
    mask = one_hot(voxel(5, 5, 5))
    with pytest.raises(ValueError, match="expected labels as MetaTensor, for their voxel size, got Tensor"):
        SpacingHausdorffDistanceMetric()([mask], [mask.as_tensor()])


def test_as_many_labels_as_predictions():
    mask = one_hot(voxel(5, 5, 5))
    with pytest.raises(ValueError, match="zip"):
        SpacingHausdorffDistanceMetric()([mask, mask], [mask])


@pytest.mark.parametrize("at_once", [False, True])
def test_aggregates_cases_of_different_shape_and_spacing(at_once):
    cases = [((12, 12, 12), (1.0, 1.0, 2.0), 6.0), ((9, 15, 10), (1.0, 1.0, 1.0), 3.0), ((8, 8, 20), (4, 4, 5), 15.0)]
    predictions = [one_hot(voxel(5, 5, 5, shape=shape), spacing) for shape, spacing, _ in cases]
    labels = [one_hot(voxel(5, 5, 8, shape=shape), spacing) for shape, spacing, _ in cases]
    expected = torch.tensor([[distance] for _, _, distance in cases])
    metric = SpacingHausdorffDistanceMetric(include_background=False, reduction="mean")
    if at_once:
        torch.testing.assert_close(metric(predictions, labels), expected)
    else:
        for prediction, label in zip(predictions, labels, strict=True):
            metric([prediction], [label])
    torch.testing.assert_close(metric.get_buffer(), expected)
    torch.testing.assert_close(metric.aggregate(), torch.tensor([8.0]))
    metric.reset()
    metric(predictions[:1], labels[:1])
    assert metric.aggregate().item() == 6.0


def evaluator(predictions, labels, **metrics):
    """An evaluator whose network gives back the images, here the predictions."""
    cases = [{"image": prediction, "label": label} for prediction, label in zip(predictions, labels, strict=True)]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(cases, batch_size=1),
        network=nn.Identity(),
        key_val_metric=metrics,
    )


def test_as_metric_of_an_engine():
    labels = [one_hot(voxel(5, 5, 8), (1, 1, 2.5)), one_hot(voxel(5, 8, 5, shape=(12, 10, 11)), (1, 1.5, 1))]
    predictions = [torch.roll(label, -2, dims=dim) for label, dim in zip(labels, (3, 2), strict=True)]
    handler = IgniteMetricHandler(
        metric_fn=SpacingHausdorffDistanceMetric(include_background=False),
        output_transform=from_engine(["pred", "label"]),
    )
    engine = evaluator(predictions, labels, distance=handler)
    engine.run()
    assert engine.state.metrics["distance"] == pytest.approx((5.0 + 3.0) / 2)


def trainer(validator=None):
    network = nn.Conv3d(1, 2, 1)
    image = torch.rand(1, 1, 4, 4, 4)
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=[{"image": image, "label": (image > 0.5).long()}] * 3,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda prediction, label: nn.functional.cross_entropy(prediction, label[:, 0]),
    )
    if validator is not None:
        ValidationHandler(interval=1, validator=validator).attach(engine)
    return engine


def validator(share):
    """An evaluator whose key metric is known: the share of cases that are right."""
    right, wrong = one_hot(voxel(1, 1, 1, shape=(3, 3, 3))), one_hot(voxel(0, 0, 0, shape=(3, 3, 3)))
    labels = [right if i < 4 * share else wrong for i in range(4)]
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    return evaluator([right] * 4, labels, val_mean_dice=metric)


def run_on_a_terminal(engine, bar, monkeypatch, capsys):
    """What the bar shows while the engine runs."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar.attach(engine)
    engine.run()
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_no_bar_where_nobody_watches(capsys):
    checker = validator(0.75)
    engine = trainer(checker)
    EngineProgressBar(checker, "train").attach(engine)
    engine.run()
    assert engine.state.epoch == 2
    assert capsys.readouterr() == ("", "")


def test_bar_shows_loss_and_then_the_key_metric(monkeypatch, capsys):
    checker = validator(0.75)
    shown = run_on_a_terminal(trainer(checker), EngineProgressBar(checker, "learning"), monkeypatch, capsys)
    first, second = re.split(r"learning \[2/2\]", shown, maxsplit=1)
    assert "learning [1/2]: [2/3]" in first
    assert re.search(r"loss=0\.\d+", first)
    assert "val_mean_dice" not in first  # not known before the first validation
    assert re.search(r"loss=0\.\d+, val_mean_dice=0\.75", second)


def test_bar_without_validator(monkeypatch, capsys):
    shown = run_on_a_terminal(trainer(), EngineProgressBar(), monkeypatch, capsys)
    assert "Epoch [2/2]" in shown
    assert re.search(r"loss=0\.\d+", shown)
    assert "val_mean_dice" not in shown


def test_bar_of_an_evaluator_shows_progress_without_loss(monkeypatch, capsys):
    shown = run_on_a_terminal(validator(1), EngineProgressBar(desc="segment"), monkeypatch, capsys)
    assert "segment" in shown
    assert "/4]" in shown
    assert "loss" not in shown


def test_checkpoint_folder_is_made_with_its_parents(tmp_path):
    claim_checkpoint_dir(tmp_path / "output" / "models")
    assert (tmp_path / "output" / "models").is_dir()


def test_checkpoint_folder_with_other_files_is_taken(tmp_path):
    (tmp_path / "notes.txt").touch()
    claim_checkpoint_dir(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["model.pt", "checkpoint_best.pt", "checkpoint_epoch=5.pt"])
def test_folder_of_an_earlier_training_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(FileExistsError, match=rf"{re.escape(name)} is left from an earlier training"):
        claim_checkpoint_dir(tmp_path)
    assert (tmp_path / name).read_bytes() == b"weights"


def test_folder_of_an_earlier_training_is_taken_to_resume_it(tmp_path):
    checkpoint = tmp_path / "checkpoint_epoch=5.pt"
    torch.save({}, checkpoint)
    before = checkpoint.read_bytes()
    claim_checkpoint_dir(tmp_path, str(checkpoint))
    claim_checkpoint_dir(tmp_path / "new", str(checkpoint))
    assert checkpoint.read_bytes() == before
    assert (tmp_path / "new").is_dir()


def test_folder_of_another_training_is_not_taken_to_go_on_in(tmp_path):
    first, second = (tmp_path / name / "checkpoint_epoch=3.pt" for name in "ab")
    for file in (first, second):
        file.parent.mkdir()
        torch.save({}, file)
    for resume in (first, first.parent):
        with pytest.raises(FileExistsError, match=r"checkpoint_epoch=3.pt is left from an earlier training"):
            claim_checkpoint_dir(second.parent, str(resume))


@pytest.mark.parametrize(("resume", "told"), [("absent.pt", " does not exist"), (".", ": expected checkpoint_epoch")])
def test_checkpoint_to_resume_from_must_be_there(tmp_path, monkeypatch, resume, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"resume={re.escape(resume)}{told}"):
        claim_checkpoint_dir("models", resume)
    assert not (tmp_path / "models").exists()


def best_saver(folder, network):
    return ResumableCheckpointSaver(
        str(folder), {"network": network}, save_key_metric=True, key_metric_filename="model.pt"
    )


@pytest.mark.parametrize(("share", "replaced"), [(0.25, False), (1.0, True)])
def test_best_score_outlives_the_process(tmp_path, share, replaced):
    first = best_saver(tmp_path, nn.Linear(1, 1))
    engine = validator(0.5)
    first.attach(engine)
    engine.run()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    before = (tmp_path / "model.pt").read_bytes()

    second = best_saver(tmp_path, nn.Linear(1, 1))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    engine = validator(share)
    second.attach(engine)
    engine.run()
    assert ((tmp_path / "model.pt").read_bytes() != before) is replaced


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_best_network_is_written_into_a_new_folder(tmp_path, share):
    first = best_saver(tmp_path / "old", nn.Linear(1, 1))
    engine = validator(0.5)
    first.attach(engine)
    engine.run()
    second = best_saver(tmp_path / "new", nn.Linear(1, 1))
    second.load_state_dict(first.state_dict())
    engine = validator(share)
    second.attach(engine)
    engine.run()
    assert (tmp_path / "new" / "model.pt").is_file()
    assert (tmp_path / "old" / "model.pt").is_file()


def test_without_key_metric_there_is_no_best_score(tmp_path):
    with pytest.raises(ValueError, match="expected save_key_metric=True"):
        ResumableCheckpointSaver(str(tmp_path), {"network": nn.Linear(1, 1)}).state_dict()


def images(count, shape=(20, 15, 10)):
    return [MetaTensor(torch.randn(1, *shape)) for _ in range(count)]


def measured(network, cases, handler, loader=None, **options):
    """An evaluator with the handler in the last place, after it ran."""
    if loader is None:
        loader = DataLoader(Dataset([{"image": case} for case in cases]), batch_size=1)
    handlers = [*options.pop("val_handlers", []), handler]
    engine = SupervisedEvaluator(torch.device("cpu"), loader, network, val_handlers=handlers, **options)
    engine.run()
    return engine


@pytest.mark.parametrize("shape", [(20, 15), (20, 15, 10)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equivariance_is_that_of_the_function_whatever_the_postprocessing(shape, channels):
    network = {2: nn.Conv2d, 3: nn.Conv3d}[len(shape)](1, channels, 3, padding=1)
    cases = images(3, shape)
    discrete = AsDiscreted(keys="pred", argmax=True)
    engine = measured(network, cases, EquivarianceHandler((0.8, 1.4), margin=0.2), postprocessing=discrete)
    assert len(engine.state.metrics) == 4
    for ratio in (0.8, 1.4):
        size = [round(n * ratio) for n in shape]
        readings = [equivariance_error(network, x.as_tensor()[None], size, margin=0.2).projected for x in cases]
        assert engine.state.metrics[f"equivariance_error_{ratio:.2f}"] == pytest.approx(sum(readings) / 3, rel=1e-5)
        with torch.no_grad():
            dice = [
                consistency_dice(network(rescale(x, size)), network(x)).nanmean()
                for x in (case.as_tensor()[None] for case in cases)
            ]
        assert engine.state.metrics[f"consistency_dice_{ratio:.2f}"] == pytest.approx(float(sum(dice) / 3), rel=1e-5)


def test_equivariance_of_a_batch_is_the_mean_of_its_cases():
    network, cases = nn.Conv3d(1, 2, 3, padding=1), images(4)
    batched = DataLoader(Dataset([{"image": case} for case in cases]), batch_size=4)
    one, all_ = (measured(network, cases, EquivarianceHandler(), loader).state.metrics for loader in (None, batched))
    assert one.keys() == all_.keys()
    assert list(one.values()) == pytest.approx(list(all_.values()), rel=1e-5)


def test_equivariance_with_sliding_windows():
    class SizeTold(nn.Conv3d):
        def forward(self, x):
            assert x.shape[2:] == (8, 8, 8)
            return super().forward(x)

    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.25)
    engine = measured(SizeTold(1, 1, 1), images(1), EquivarianceHandler((1.25,)), inferer=inferer)
    assert engine.state.metrics["equivariance_error_1.25"] < 1e-9  # a convolution of one voxel commutes


@pytest.mark.parametrize("in_training", [True, False])
def test_equivariance_is_measured_in_evaluation_mode(in_training):
    network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1), nn.Dropout(0.5)).train(in_training)
    statistics = network[1].running_mean.clone()
    engine = measured(network, images(2), EquivarianceHandler((1.25,)))
    assert engine.state.metrics["equivariance_error_1.25"] < 1e-9
    assert network.training == in_training
    assert not engine.state.output[0]["pred"].requires_grad
    torch.testing.assert_close(network[1].running_mean, statistics)


@pytest.mark.parametrize(("interval", "expected"), [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_equivariance_every_few_batches(interval, expected):
    calls = []
    network = nn.Identity()
    network.register_forward_hook(lambda *call: calls.append(call[2].shape[2:]))
    engine = measured(network, images(5), EquivarianceHandler((1.4,), interval=interval))
    assert len([shape for shape in calls if shape == (28, 21, 14)]) == expected
    assert engine.state.metrics["equivariance_error_1.40"] == 0


def test_equivariance_is_logged_by_handlers_before_it():
    logged = []
    stats = StatsHandler(
        iteration_log=False, epoch_print_logger=lambda engine: logged.append(dict(engine.state.metrics))
    )
    engine = measured(nn.Identity(), images(2), EquivarianceHandler((0.8,)), val_handlers=[stats])
    assert logged == [engine.state.metrics]
    assert logged[0].keys() == {"equivariance_error_0.80", "consistency_dice_0.80"}


def test_equivariance_starts_anew_at_each_validation():
    class Growing(nn.Module):
        power = 1

        def forward(self, x):
            return x**self.power

    network = Growing()
    engine = measured(network, images(2), EquivarianceHandler((1.25,)))
    assert engine.state.metrics["equivariance_error_1.25"] == 0
    network.power = 2
    engine.run(global_epoch=5)
    squared = engine.state.metrics["equivariance_error_1.25"]
    assert squared > 0
    engine.run(global_epoch=7)
    assert engine.state.metrics["equivariance_error_1.25"] == pytest.approx(squared)


def test_equivariance_of_a_loader_without_length():
    loader = DataLoader(IterableDataset([{"image": case} for case in images(3)]), batch_size=1)
    engine = measured(nn.Identity(), None, EquivarianceHandler((0.8,)), loader)
    assert engine.state.metrics["equivariance_error_0.80"] == 0


@pytest.mark.parametrize(("output", "name"), [(0.0, "equivariance_error_0.80"), (-1.0, "consistency_dice_0.80")])
def test_what_cannot_be_measured_is_nan(output, name):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.full_like(x, output)

    # No energy in the first case, no foreground in the second.
    engine = measured(Constant(), images(1), EquivarianceHandler((0.8,)))
    assert math.isnan(engine.state.metrics[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": (1.0,)}, "ratios must be numbers above 0 other than 1"),
        ({"ratios": (-0.8,)}, "ratios must be"),
        ({"ratios": ()}, "ratios must be"),
        ({"ratios": (0.8, 0.801)}, "ratios must differ in their first two decimals"),
        ({"interval": 0}, "interval must be a whole number"),
        ({"interval": 1.5}, "interval must be a whole number"),
        ({"margin": 0.5}, "margin must be"),
    ],
)
def test_ill_arguments_of_the_equivariance(arguments, message):
    with pytest.raises(ValueError, match=message):
        EquivarianceHandler(**arguments)


def test_equivariance_is_measured_of_evaluators_alone():
    with pytest.raises(ValueError, match="expected a SupervisedEvaluator, got Engine"):
        EquivarianceHandler().attach(Engine(lambda engine, batch: None))
    with pytest.raises(ValueError, match="in mode 'eval', got one in mode 'train'"):
        measured(nn.Identity(), images(1), EquivarianceHandler(), mode="train")


def test_prediction_that_is_no_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match="got tuple; use an inferer that picks one"):
        measured(Pair(), images(1), EquivarianceHandler(), decollate=False)
