"""Faults in a training and its data, made for real."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import Lambda
from torch import nn

from monai_scaleequiv.data import JoinedCacheDataset, make_phantom_dataset, write_record
from monai_scaleequiv.handlers import NonFiniteLossHandler, ResumableCheckpointSaver
from monai_scaleequiv.metrics import AbsentClassDiceMetric
from tests.bundle_runs import QUICK, SIZE, TINY, error_of, metrics, per_case, rows, run, torchrun, write_probe
from tests.conftest import BUNDLES, ROOT
from tests.fault_files import cut, flip_stored_byte
from tests.test_resume import assert_same, wait_for

BUNDLE = BUNDLES / "seunet_hippocampus_segmentation"
TINY_QUICK = {**TINY["SEUNet"], **QUICK}


@pytest.fixture
def cases(tmp_path):
    """Volumes that a test may damage."""
    return make_phantom_dataset(tmp_path / "cases", cases=5, size=SIZE).parent


# --- Non-finite loss ---


def test_non_finite_loss_stops_with_the_cases(phantoms, tmp_path):
    given = {"dataset_dir": phantoms, "output_dir": tmp_path / "out", **TINY_QUICK, "learning_rate": 1e30}
    message = error_of(run, BUNDLE, "train", **given)
    assert message.startswith("epoch 1, iteration 2: expected a finite loss, got ")
    assert sum(str(path) in message for path in (phantoms / "imagesTr").iterdir()) == 2  # the batch
    assert "there is no checkpoint yet" in message
    assert message.endswith("lower learning_rate or try amp=false.")


def small_trainer(folder, images, max_epochs=9):
    cases = [
        {"image": MetaTensor(image, meta={"filename_or_obj": f"case_{i}.nii.gz"}), "label": torch.zeros(1, 1)}
        for i, image in enumerate(images)
    ]
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    loader, loss = DataLoader(Dataset(cases), batch_size=2), nn.MSELoss()
    trainer = SupervisedTrainer(
        torch.device("cpu"), max_epochs, loader, network, optimizer, loss, train_handlers=[NonFiniteLossHandler(folder)]
    )
    saver = ResumableCheckpointSaver(str(folder), {"network": network, "trainer": trainer}, save_interval=1, n_saved=3)
    saver.attach(trainer)
    return trainer, network


def test_non_finite_loss_of_one_batch_leaves_the_weights(tmp_path):
    message = r"epoch 1, iteration 2: .* got (nan|inf); cases case_2.nii.gz, case_3.nii.gz; there is no checkpoint yet"
    for value in (torch.nan, torch.inf):
        trainer, network = small_trainer(tmp_path, [torch.full((1, 1), x) for x in (1.0, 2.0, 3.0, value)])
        with pytest.raises(ValueError, match=message):
            trainer.run()
        assert all(torch.isfinite(weight).all() for weight in network.parameters())


def test_non_finite_loss_names_the_last_checkpoint_with_finite_numbers(tmp_path):
    trainer, network = small_trainer(tmp_path, [torch.ones(1, 1)] * 2)
    finite = tmp_path / "checkpoint_epoch=2.pt"

    def overflow(engine, batch):
        # The step after the third epoch's loss, which is finite, takes the weights out of range.
        outcome = SupervisedTrainer._iteration(engine, engine, batch)
        if engine.state.iteration == 3:
            with torch.no_grad():
                network.weight.mul_(1e30).mul_(1e30)
        return outcome

    trainer._process_function = overflow
    (tmp_path / "checkpoint_epoch=99.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="epoch 4, iteration 4") as stopped:
        trainer.run()
    assert f"the last checkpoint with finite numbers is {finite};" in str(stopped.value)
    assert (tmp_path / "checkpoint_epoch=3.pt").is_file()


# --- Both ground truth and prediction empty ---


def one_hot(labels, classes=3):
    return nn.functional.one_hot(torch.tensor(labels), classes).movedim(-1, 0).float()


def test_dice_is_that_of_monai_where_labels_have_every_class():
    torch.manual_seed(0)
    found, true = (torch.randint(0, 3, (4, 6, 5, 7)) for _ in range(2))
    pairs = [[one_hot(x.tolist()) for x in labels] for labels in (found, true)]
    for include in (False, True):
        ours, theirs = AbsentClassDiceMetric(include), DiceMetric(include_background=include)
        torch.testing.assert_close(ours(*pairs), theirs(*pairs), atol=0, rtol=0)
        torch.testing.assert_close(ours.aggregate(), theirs.aggregate(), atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"of one shape, got \(1, 3, 2\) and \(1, 3, 3\)"):
        AbsentClassDiceMetric()([one_hot([0, 1])], [one_hot([0, 1, 2])])


def test_absent_class_does_not_count():
    tables = [
        ([0, 0, 1, 1], [0, 0, 1, 1], [1.0, np.nan]),  # neither has class 2
        ([0, 2, 1, 1], [0, 0, 1, 1], [1.0, 0.0]),  # found where there is none
        ([0, 0, 1, 1], [0, 2, 1, 1], [1.0, 0.0]),  # missed
        ([0, 0, 0, 0], [0, 0, 0, 0], [np.nan, np.nan]),
    ]
    for found, true, dice in tables:
        metric = AbsentClassDiceMetric()
        values = metric([one_hot(found)], [one_hot(true)])
        np.testing.assert_array_equal(values[0].numpy(), dice)
        np.testing.assert_array_equal(metric.aggregate().item(), np.nanmean(dice) if 1.0 in dice else np.nan)
    cases = [{"image": one_hot(found), "label": one_hot(true)} for found, true, _ in tables]
    metric = IgniteMetricHandler(AbsentClassDiceMetric(), output_transform=from_engine(["pred", "label"]))
    loader = DataLoader(cases, batch_size=1)
    engine = SupervisedEvaluator(torch.device("cpu"), loader, nn.Identity(), key_val_metric={"dice": metric})
    engine.run()
    assert engine.state.metrics["dice"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert int(torch.isnan(engine.state.metric_details["dice"]).all(dim=1).sum()) == 1


def test_empty_ground_truth_and_prediction_are_counted_in_the_summary(cases, tmp_path):
    # The network tells classes by brightness alone; in every other case class 2 is neither in the label nor found.
    probe = write_probe(tmp_path / "probe.pt")
    write_record(tmp_path / "probe.json", {"training_cases": {}})
    without = [f"phantom_{i:03d}.nii.gz" for i in (0, 2, 4)]
    half = np.zeros(SIZE, np.int16)
    half[: SIZE[0] // 2] = 1
    for path in [cases / folder / name for name in without for folder in ("imagesTr", "labelsTr")]:
        source = nib.load(path)
        nib.save(nib.Nifti1Image(half.astype(source.get_data_dtype()), source.affine), path)
    run(BUNDLE, "train", "evaluate", dataset_dir=cases, output_dir=tmp_path / "out", **probe)
    dice = per_case(tmp_path / "out", "val_mean_dice")
    absent = [name for name, values in dice if np.isnan(values[1])]
    assert absent == without
    assert len(dice) == 5
    assert all(values[0] > 0.99 for name, values in dice if name in absent)
    table = rows(tmp_path / "out" / "val_mean_dice_summary.csv")
    counts = [int(float(row[table[0].index("notnans")])) for row in table[1:]]
    assert counts[:2] == [5, 2]
    means = [np.nanmean(values[:2]) for _, values in dice]
    assert metrics(tmp_path / "out")["val_mean_dice"] == pytest.approx(np.mean(means), abs=1e-4)


# --- data that would spoil the training ---


def add_a_class(path):
    source = nib.load(path)
    values = np.asarray(source.dataobj).copy()
    values[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(values, source.affine), path)


def add_nan(path):
    source = nib.load(path)
    values = source.get_fdata(dtype=np.float32)
    values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, source.affine), path)


@pytest.mark.parametrize("case", range(5))  # in either part of the split
def test_bad_file_is_named_before_the_training(cases, tmp_path, case):
    folder, damage = [
        ("imagesTr", flip_stored_byte),
        ("imagesTr", cut),
        ("imagesTr", add_nan),
        ("labelsTr", add_a_class),
    ][case % 4]
    bad = cases / folder / f"phantom_{case:03d}.nii.gz"
    damage(bad)
    message = error_of(run, BUNDLE, "train", dataset_dir=cases, output_dir=tmp_path / "out", **TINY_QUICK)
    assert message.startswith(str(bad))
    assert "expected" in message
    assert not (tmp_path / "out").exists()


def test_spacing_that_would_fill_the_memory_is_an_error(phantoms, tmp_path):
    given = {"dataset_dir": phantoms, "output_dir": tmp_path, **TINY_QUICK, "spacing": [0.01, 0.01, 0.01]}
    message = error_of(run, BUNDLE, "train", **given)
    assert message.startswith(str(phantoms))
    assert "voxels after resampling" in message


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_cases_to_train_on(tmp_path, count):
    cases = make_phantom_dataset(tmp_path / "cases", cases=count, size=SIZE).parent
    given = {"dataset_dir": cases, "output_dir": tmp_path / "out"}
    for message in (
        error_of(run, BUNDLE, "train", **given, **TINY_QUICK),
        error_of(run, BUNDLE, "train", "evaluate", **given, **write_probe(tmp_path / "probe.pt")),
    ):
        assert "cases to train on and to validate on, got" in message
    assert not (tmp_path / "out").exists()


def test_no_thread_outlives_an_error_of_the_cache():
    started, ended = [], []

    def load(number):
        started.append(number)
        if number == 3:
            raise ValueError("of the item")
        time.sleep(0.2)
        ended.append(number)

    with pytest.raises(RuntimeError):
        JoinedCacheDataset(range(40), Lambda(load), num_workers=2, progress=False)
    assert sorted([*ended, 3]) == sorted(started)
    assert len(started) < 10


# A training in a process of its own, as a user has it.
STOPPED_BY_DATA = """
import sys
from tests.bundle_runs import run
from tests.test_faults_training import BUNDLE, TINY_QUICK
run(BUNDLE, "train", dataset_dir=sys.argv[1], output_dir=sys.argv[2], **TINY_QUICK)
"""


@pytest.mark.slow
def test_training_that_its_data_stops_ends_with_status_1(cases, tmp_path):
    add_nan(cases / "imagesTr" / "phantom_000.nii.gz")
    command = [sys.executable, "-c", STOPPED_BY_DATA, str(cases), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "expected finite values" in done.stderr


# --- DDP: a rank dies ---


def job(cases, output, restarts=0, **overrides):
    options = {**TINY_QUICK, "resume": "auto", "split#ratio": 0.6, **overrides}
    return torchrun(BUNDLE, cases, output, "train", "multi_gpu_train", restarts=restarts, **options)


def process_of_rank(launcher, rank):
    """The process id, from what the kernel lists of the launcher's children."""
    wanted = f"RANK={rank}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher.pid and wanted in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def finish(launcher, seconds):
    """The exit status of a job that has to end in time."""
    try:
        return launcher.wait(seconds)
    finally:
        if launcher.poll() is None:
            launcher.terminate()  # and so its processes
            launcher.wait()


@pytest.mark.slow
def test_ddp_job_ends_when_a_rank_dies(phantoms, tmp_path):
    models = tmp_path / "out" / "models"
    launcher = job(phantoms, tmp_path / "out", epochs=10_000)
    wait_for(models / "checkpoint_epoch=2.pt", launcher)
    os.kill(process_of_rank(launcher, 0), signal.SIGKILL)
    assert finish(launcher, 60) == 1
    assert "Signal 9 (SIGKILL) received by PID" in (tmp_path / "out.log").read_text()
    newest = max(models.glob("checkpoint_epoch=*.pt"), key=lambda path: int(path.stem.split("=")[1]))
    assert torch.load(newest, weights_only=True)["trainer"]["iteration"] >= 2


@pytest.mark.slow
def test_ddp_job_restarts_from_the_last_checkpoint(phantoms, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(job(phantoms, whole, epochs=12), 300) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    launcher = job(phantoms, broken, restarts=1, epochs=12)
    wait_for(broken / "models" / "checkpoint_epoch=3.pt", launcher)
    os.kill(process_of_rank(launcher, 1), signal.SIGKILL)
    status, log = finish(launcher, 300), (tmp_path / "broken.log").read_text()
    assert status == 0, log[-3000:]
    assert "SIGKILL" in log or "exitcode: -9" in log
    for name in ("checkpoint_epoch=12.pt", "model.pt"):
        assert_same(*(torch.load(folder / "models" / name, weights_only=True) for folder in (whole, broken)))


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_all(phantoms, tmp_path):
    launcher = job(phantoms, tmp_path / "out", epochs=10_000)
    wait_for(tmp_path / "out" / "models" / "checkpoint_epoch=2.pt", launcher)
    os.kill(process_of_rank(launcher, 1), signal.SIGTERM)
    finish(launcher, 60)
    log = (tmp_path / "out.log").read_text()
    assert log.count("stopped by SIGTERM in epoch") == 1
    assert "exitcode  : 143" in log
    assert "Connection closed" not in log
