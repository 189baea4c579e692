"""Weights, records and folders at the start of a run; the best network; distances and equivariance of an evaluator."""

import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, IterableDataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MeanDice, StatsHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.metrics import HausdorffDistanceMetric
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted
from torch import nn

from monai_scaleequiv.data import definition_of, read_record, write_record
from monai_scaleequiv.handlers import (
    EquivarianceHandler,
    LateSummaryWriter,
    OutputDirHandler,
    RequireWeightsHandler,
    ResumableCheckpointSaver,
    TrainingRecordHandler,
    WeightsCheckpointLoader,
)
from monai_scaleequiv.maths import rescale
from monai_scaleequiv.metrics import SpacingHausdorffDistanceMetric, consistency_dice, equivariance_error


def one_hot(foreground: torch.Tensor, spacing=(1.0, 1.0, 1.0)) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.stack([~foreground, foreground]).float(), affine=affine)


def voxel(*position: int, shape=(12, 12, 12)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[position] = True
    return mask


def distances(**options):
    return SpacingHausdorffDistanceMetric(include_background=False, **options)


def test_distance_of_two_voxels_is_in_millimetres():
    for spacing, offset, millimetres in [
        ((1.0, 1.0, 3.0), (0, 0, 3), 9.0),
        ((0.5, 1.0, 3.0), (4, 0, 0), 2.0),
        ((0.5, 1.5, 3.0), (0, 4, 0), 6.0),
        ((2.0, 3.0, 6.0), (1, 1, 1), 7.0),
    ]:
        label = one_hot(voxel(*(5 + o for o in offset)), spacing)
        distance = distances()([one_hot(voxel(5, 5, 5), spacing)], [label])
        torch.testing.assert_close(distance, torch.tensor([[millimetres]]))


def test_spacing_follows_permuted_and_turned_axes():
    affine = torch.tensor([[0, 3.0, 0, 5], [0, 0, -0.5, 1], [2.0, 0, 0, -7], [0, 0, 0, 1]], dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    prediction, label = one_hot(voxel(5, 5, 5)), one_hot(voxel(5, 8, 5))
    label.affine = turn @ affine  # the second axis is the one of 3 mm
    torch.testing.assert_close(distances()([prediction], [label]), torch.tensor([[9.0]]))


@pytest.mark.parametrize("percentile", [None, 70])
@pytest.mark.parametrize("directed", [False, True])
def test_equals_monai_at_one_millimetre(percentile, directed):
    options = {"include_background": True, "percentile": percentile, "directed": directed}
    prediction, label = one_hot(torch.rand(9, 8, 7) < 0.1), one_hot(torch.rand(9, 8, 7) < 0.05)
    expected = HausdorffDistanceMetric(**options)(prediction.as_tensor()[None], label.as_tensor()[None])
    assert expected.max() > 0
    for given in (prediction, prediction.as_tensor()):
        torch.testing.assert_close(SpacingHausdorffDistanceMetric(**options)([given], [label]), expected)


def test_labels_without_voxel_size_or_prediction():
    mask = one_hot(voxel(5, 5, 5))
    with pytest.raises(ValueError, match="expected labels as MetaTensor, for their voxel size, got Tensor"):
        distances()([mask], [mask.as_tensor()])
    with pytest.raises(ValueError, match="zip"):
        distances()([mask, mask], [mask])


def test_cases_of_different_shape_and_spacing():
    cases = [((12, 12, 12), (1.0, 1.0, 2.0), 6.0), ((9, 15, 10), (1.0, 1.0, 1.0), 3.0), ((8, 8, 20), (4, 4, 5), 15.0)]
    predictions = [one_hot(voxel(5, 5, 5, shape=shape), spacing) for shape, spacing, _ in cases]
    labels = [one_hot(voxel(5, 5, 8, shape=shape), spacing) for shape, spacing, _ in cases]
    metric = distances(reduction="mean")
    torch.testing.assert_close(metric(predictions, labels), torch.tensor([[value] for *_, value in cases]))
    metric.reset()
    handler = IgniteMetricHandler(metric_fn=metric, output_transform=from_engine(["pred", "label"]))
    engine = evaluator(predictions, labels, distance=handler)
    engine.run()
    assert engine.state.metrics["distance"] == 8.0


def evaluator(predictions, labels, **metrics):
    """An evaluator whose network gives back the images, here the predictions."""
    cases = [{"image": prediction, "label": label} for prediction, label in zip(predictions, labels, strict=True)]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(cases, batch_size=1),
        network=nn.Identity(),
        key_val_metric=metrics,
    )


def validator(share):
    """An evaluator whose key metric is known: the share of cases that are right."""
    right, wrong = one_hot(voxel(1, 1, 1, shape=(3, 3, 3))), one_hot(voxel(0, 0, 0, shape=(3, 3, 3)))
    labels = [right if i < 4 * share else wrong for i in range(4)]
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    return evaluator([right] * 4, labels, val_mean_dice=metric)


def started(*handlers, resumes=False):
    """An engine after the handlers' work at the start of a run."""
    engine = Engine(lambda engine, batch: None)
    for handler in handlers:
        handler.attach(engine)
    if resumes:
        engine.load_state_dict({"iteration": 1, "max_epochs": 2, "epoch_length": 1})
    engine.run([0])
    return engine


# --- weights ---


def saved(path, network, record=None):
    torch.save(network.state_dict(), path)
    if record is not None:
        write_record(path.with_suffix(".json"), {"network_def": definition_of(network), **record})
    return str(path)


def test_weights_are_loaded_unless_the_training_goes_on(tmp_path):
    source, network = nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1)
    path = saved(tmp_path / "a.pt", source)
    started(WeightsCheckpointLoader(path, {"net": network}), resumes=True)
    assert not torch.equal(network.weight, source.weight)
    for wrapped in (nn.DataParallel(nn.Conv3d(1, 2, 1)), network):
        started(WeightsCheckpointLoader(path, {"net": wrapped}, record={"spacing": [1]}))
        assert torch.equal(next(wrapped.parameters()), source.weight)


@pytest.mark.parametrize(
    ("network", "current", "message"),
    [
        (nn.Conv3d(1, 2, 1), {"spacing": [2.0, 2.0, 2.0]}, r"spacing=\[1.0, 1.0, 1.0\].*got \[2.0, 2.0, 2.0\]"),
        (nn.Conv3d(1, 2, 1, dilation=2), {}, r"network_def#dilation=\[1, 1, 1\].*got \[2, 2, 2\]"),
    ],
)
def test_weights_of_another_training_are_an_error(tmp_path, network, current, message):
    path = saved(tmp_path / "a.pt", nn.Conv3d(1, 2, 1), {"spacing": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match=rf"a\.pt: expected {message}"):
        started(WeightsCheckpointLoader(path, {"net": network}, record=current))
    if "dilation" not in message:  # what nobody compares is loaded
        started(WeightsCheckpointLoader(path, {"net": network}))


def test_weights_under_a_new_head(tmp_path, caplog):
    source, network = (nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, classes, 1)) for classes in (2, 5))
    head = network[1].weight.clone()
    recorded = {"spacing": [1.0], "num_classes": 2, "coordinates": [], "normalization": {"nonzero": True}}
    path = saved(tmp_path / "a.pt", source, {**recorded, "training_cases": ["a"], "label_values": [1, 2]})
    record = {"spacing": [1.0], "num_classes": 5, "coordinates": [0], "normalization": {"nonzero": False}}
    record |= {"training_cases": ["b"], "label_values": [1, 3]}
    started(WeightsCheckpointLoader(path, {"net": network}, record=record, new_head=True))
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(network[1].weight, head)
    assert caplog.messages == [
        f"{path}: trained with coordinates=[], this training has [0].",
        f"{path}: trained with normalization#nonzero=True, this training has False.",
        f"{path}: new values for 1.weight, 1.bias, whose number of classes differs.",
    ]
    with pytest.raises(ValueError, match=r"a\.pt"):
        started(WeightsCheckpointLoader(path, {"net": network}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_random_weights_end_the_run(tmp_path):
    network, path = nn.Conv3d(1, 2, 1), saved(tmp_path / "a.pt", nn.Conv3d(1, 2, 1))
    with pytest.raises(ValueError, match="expected weights, got the random ones of a new Conv3d"):
        started(RequireWeightsHandler(network))
    require = RequireWeightsHandler(network)
    started(WeightsCheckpointLoader(path, {"net": network}), require)
    started(require)  # and again, as in a loop over volumes
    for assign in (False, True):  # by a program
        require = RequireWeightsHandler(network := nn.Conv3d(1, 2, 1))
        network.load_state_dict(nn.Conv3d(1, 2, 1).state_dict(), assign=assign)
        started(require)
    for without in (torch.jit.trace(network, torch.rand(1, 1, 4, 4, 4)), nn.Identity()):
        started(RequireWeightsHandler(without))


# --- record and folders ---


def record_of(folder, network, cases=(), weights="", **values):
    return TrainingRecordHandler(folder / "model.json", network, {"spacing": [1, 1, 1], **values}, cases, weights)


def test_record_of_a_training(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"abc")
    network = nn.Conv3d(1, 2, 3)
    started(record_of(tmp_path, network, [{"image": str(tmp_path / "a.nii")}]))
    record = read_record(tmp_path / "model.pt")
    assert record["training_cases"] == {"a.nii": 3}
    assert record["spacing"] == [1, 1, 1]
    assert record["network_def"] == definition_of(network)
    # Cases of the weights that another training starts from have been seen as well.
    (tmp_path / "b.nii").write_bytes(b"ab")
    (tmp_path / "tuned").mkdir()
    weights = str(tmp_path / "model.pt")
    started(record_of(tmp_path / "tuned", network, [{"image": str(tmp_path / "b.nii")}], weights))
    assert read_record(tmp_path / "tuned" / "model.pt")["training_cases"] == {"a.nii": 3, "b.nii": 2}


def test_record_knows_the_classes_of_a_network_that_does_not_keep_them(tmp_path):
    started(record_of(tmp_path, SegResNet(2, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)), num_classes=3))
    assert read_record(tmp_path / "model.pt")["network_def"]["out_channels"] == 3


def test_record_of_a_resumed_training_is_compared_and_extended(tmp_path):
    (tmp_path / "b.nii").write_bytes(b"ab")
    write_record(tmp_path / "model.json", {"spacing": [1, 1, 1], "training_cases": {"a.nii": 3}})
    started(record_of(tmp_path, nn.Conv3d(1, 2, 3), [{"image": str(tmp_path / "b.nii")}]), resumes=True)
    assert read_record(tmp_path / "model.pt")["training_cases"] == {"a.nii": 3, "b.nii": 2}
    with pytest.raises(ValueError, match=r"expected spacing=\[1, 1, 1\] as in its training, got \[2, 2, 2\]"):
        started(record_of(tmp_path, nn.Conv3d(1, 2, 3), spacing=[2, 2, 2]), resumes=True)


def test_record_of_another_training_stays(tmp_path):
    write_record(tmp_path / "model.json", {"spacing": [2, 2, 2]})
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"model\.json: expected spacing=\[2, 2, 2\] as in its training"):
        started(record_of(tmp_path, nn.Conv3d(1, 2, 3)))
    assert read_record(tmp_path / "model.pt") == {"spacing": [2, 2, 2]}
    (tmp_path / "model.pt").unlink()  # of a training that left no network there is nothing to lose
    started(record_of(tmp_path, nn.Conv3d(1, 2, 3)))
    (tmp_path / "model.pt").touch()  # and a training that was killed before its first checkpoint starts anew
    started(record_of(tmp_path, nn.Conv3d(1, 2, 3)))


def test_output_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    handler = OutputDirHandler(folder, ["*.csv"])
    assert not folder.exists()
    started(handler)
    (folder / "metrics.csv").write_bytes(b"mine")
    started(handler)  # what a run has written it may replace
    with pytest.raises(FileExistsError, match=r"output_dir: .*metrics.csv exists already"):
        started(OutputDirHandler(folder, ["*.csv"]))
    started(OutputDirHandler(folder, ["*.csv"], overwrite=True))
    assert (folder / "metrics.csv").read_bytes() == b"mine"
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir: expected a folder that can be written to, got .*Not a dir"):
        started(OutputDirHandler(tmp_path / "file" / "out"))


def test_summary_writer_leaves_nothing_before_there_is_something(tmp_path):
    writer = LateSummaryWriter(str(tmp_path / "board"))
    assert not list(tmp_path.iterdir())
    writer.add_scalar("loss", 0.5, 1)
    writer.flush()
    assert len(list((tmp_path / "board").iterdir())) == 1


# --- checkpoints ---


def best_after(folder, share, earlier=None):
    """The saver of the best network after a validation, and what it has then written."""
    options = {"save_key_metric": True, "key_metric_filename": "model.pt"}
    saver, engine = ResumableCheckpointSaver(str(folder), {"network": nn.Linear(1, 1)}, **options), validator(share)
    if earlier is not None:
        torch.save(earlier.state_dict(), folder.parent / "state.pt")
        saver.load_state_dict(torch.load(folder.parent / "state.pt", weights_only=True))
    saver.attach(engine)
    engine.run()
    return saver, (folder / "model.pt").read_bytes()


@pytest.mark.parametrize(("share", "replaced"), [(0.25, False), (1.0, True)])
def test_best_score_outlives_the_process(tmp_path, share, replaced):
    saver, before = best_after(tmp_path / "old", 0.5)
    assert best_after(tmp_path / "new", share, saver)[1] != before  # a new folder gets the best of its own
    assert (tmp_path / "old" / "model.pt").read_bytes() == before
    assert (best_after(tmp_path / "old", share, saver)[1] != before) is replaced


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


@pytest.mark.parametrize(("shape", "channels"), [((20, 15), 1), ((20, 15, 10), 3)])
def test_equivariance_is_that_of_the_function_whatever_the_postprocessing(shape, channels):
    network = {2: nn.Conv2d, 3: nn.Conv3d}[len(shape)](1, channels, 3, padding=1)
    cases = images(3, shape)
    discrete = AsDiscreted(keys="pred", argmax=True)
    found = measured(network, cases, EquivarianceHandler((0.8, 1.4), margin=0.2), postprocessing=discrete).state.metrics
    assert len(found) == 4
    for ratio in (0.8, 1.4):
        size = [round(n * ratio) for n in shape]
        plain = [x.as_tensor()[None] for x in cases]
        errors = [equivariance_error(network, x, size, margin=0.2).projected for x in plain]
        assert found[f"equivariance_error_{ratio:.2f}"] == pytest.approx(sum(errors) / 3, rel=1e-5)
        with torch.no_grad():
            dice = [consistency_dice(network(rescale(x, size)), network(x)).nanmean() for x in plain]
        assert found[f"consistency_dice_{ratio:.2f}"] == pytest.approx(float(sum(dice) / 3), rel=1e-5)


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
    loader = DataLoader(IterableDataset([{"image": case} for case in images(3)]), batch_size=1)  # without length
    engine = measured(nn.Identity(), None, EquivarianceHandler((0.8,)), loader)
    assert engine.state.metrics["equivariance_error_0.80"] == 0


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


@pytest.mark.parametrize(("output", "name"), [(0.0, "equivariance_error_0.80"), (-1.0, "consistency_dice_0.80")])
def test_what_cannot_be_measured_is_nan(output, name):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.full_like(x, output)

    # No energy in the first case, no foreground in the second.
    engine = measured(Constant(), images(1), EquivarianceHandler((0.8,)))
    assert math.isnan(engine.state.metrics[name])


def test_ill_arguments_of_the_equivariance():
    for arguments, message in [
        ({"ratios": (1.0,)}, "ratios must be numbers above 0 other than 1"),
        ({"ratios": (0.8, 0.801)}, "ratios must differ in their first two decimals"),
        ({"interval": 0}, "interval must be a whole number"),
        ({"interval": 1.5}, "interval must be a whole number"),
        ({"margin": 0.5}, "margin must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            EquivarianceHandler(**arguments)


def test_equivariance_is_measured_of_evaluators_alone():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match="expected a SupervisedEvaluator, got Engine"):
        EquivarianceHandler().attach(Engine(lambda engine, batch: None))
    with pytest.raises(ValueError, match="in mode 'eval', got one in mode 'train'"):
        measured(nn.Identity(), images(1), EquivarianceHandler(), mode="train")
    with pytest.raises(ValueError, match="got tuple; use an inferer with one"):
        measured(Pair(), images(1), EquivarianceHandler(), decollate=False)
