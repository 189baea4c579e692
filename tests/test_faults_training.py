"""Faults in a training and its data, made for real.

Rows of the table of faults: "Non-finite loss", "Both ground truth and prediction empty", "One flipped byte in .nii.gz",
"Truncated .nii.gz", "Spacing 1000 mm", "Empty label / label class outside the list", "DDP: a rank dies".
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
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
from torch import nn

from monai_scaleequiv import (
    AbsentClassDiceMetric,
    NonFiniteLossHandler,
    ResumableCheckpointSaver,
    make_phantom_dataset,
)
from tests.conftest import BUNDLES
from tests.test_bundles import QUICK, SIZE, TINY, metrics, per_case, probe_thresholds, root_cause, rows, run
from tests.test_resume import assert_same

BUNDLE = BUNDLES / "seunet_hippocampus_segmentation"
TINY_QUICK = {**TINY["SEUNet"], **QUICK}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def phantoms(tmp_path):
    return make_phantom_dataset(tmp_path / "phantoms", cases=5, size=SIZE).parent


# --- Non-finite loss ---


def test_non_finite_loss_stops_with_the_cases(phantoms, tmp_path):
    with pytest.raises(RuntimeError) as stopped:
        run(BUNDLE, "train", dataset_dir=phantoms, output_dir=tmp_path / "out", **TINY_QUICK, learning_rate=1e30)
    told = str(root_cause(stopped.value))
    assert told.startswith("epoch 1, iteration 2: expected a finite loss, got ")
    assert sum(str(path) in told for path in (phantoms / "imagesTr").iterdir()) == 2  # the batch
    assert "there is no checkpoint yet" in told
    assert told.endswith("lower learning_rate or try amp=false.")


def small_trainer(folder, images, max_epochs=9):
    cases = [
        {"image": MetaTensor(image, meta={"filename_or_obj": f"case_{i}.nii.gz"}), "label": torch.zeros(1, 1)}
        for i, image in enumerate(images)
    ]
    network = nn.Linear(1, 1)
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        max_epochs,
        DataLoader(Dataset(cases), batch_size=2),
        network,
        torch.optim.SGD(network.parameters(), lr=0.01),
        nn.MSELoss(),
        train_handlers=[NonFiniteLossHandler(folder)],
    )
    saver = ResumableCheckpointSaver(str(folder), {"network": network, "trainer": trainer}, save_interval=1, n_saved=3)
    saver.attach(trainer)
    return trainer, network


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_loss_of_one_batch_leaves_the_weights(tmp_path, value):
    trainer, network = small_trainer(tmp_path, [torch.full((1, 1), x) for x in (1.0, 2.0, 3.0, value)])
    told = r"epoch 1, iteration 2: .* got (nan|inf); cases case_2.nii.gz, case_3.nii.gz; there is no checkpoint yet"
    with pytest.raises(ValueError, match=told):
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


@pytest.mark.parametrize(
    ("found", "true", "dice"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], [1.0, np.nan]),  # neither has class 2
        ([0, 2, 1, 1], [0, 0, 1, 1], [1.0, 0.0]),  # found where there is none
        ([0, 0, 1, 1], [0, 2, 1, 1], [1.0, 0.0]),  # missed
        ([0, 0, 0, 0], [0, 0, 0, 0], [np.nan, np.nan]),
    ],
)
def test_absent_class_does_not_count(found, true, dice):
    metric = AbsentClassDiceMetric()
    values = metric([one_hot(found)], [one_hot(true)])
    np.testing.assert_array_equal(values[0].numpy(), dice)
    np.testing.assert_array_equal(metric.aggregate().item(), np.nanmean(dice) if np.isfinite(dice).any() else np.nan)


def test_absent_class_in_an_engine():
    labels = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    found = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]]
    cases = [{"image": one_hot(a), "label": one_hot(b)} for a, b in zip(found, labels, strict=True)]
    metric = IgniteMetricHandler(AbsentClassDiceMetric(), output_transform=from_engine(["pred", "label"]))
    engine = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(cases, batch_size=1), nn.Identity(), key_val_metric={"dice": metric}
    )
    engine.run()
    assert engine.state.metrics["dice"] == 0.75  # of the first and the last case, and their class 1
    assert int(torch.isnan(engine.state.metric_details["dice"]).all(dim=1).sum()) == 1


def test_dice_of_different_grids_is_refused():
    with pytest.raises(
        ValueError, match=r"expected prediction and label of one shape, got \(1, 3, 2\) and \(1, 3, 3\)"
    ):
        AbsentClassDiceMetric()([one_hot([0, 1])], [one_hot([0, 1, 2])])


def test_empty_ground_truth_and_prediction_are_counted_in_the_summary(phantoms, tmp_path):
    # The network tells classes by brightness alone; in every other case class 2 is neither in the label nor found.
    layer = nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(20 * torch.arange(3).reshape(-1, 1, 1, 1, 1))
        layer.bias.copy_(-20 * torch.tensor([0.0, *probe_thresholds(3)]).cumsum(0))
    torch.save(layer.state_dict(), tmp_path / "probe.pt")
    without = [f"phantom_{i:03d}.nii.gz" for i in (0, 2, 4)]
    half = np.zeros(SIZE, np.int16)
    half[: SIZE[0] // 2] = 1
    for name in without:
        for folder in ("imagesTr", "labelsTr"):
            path = phantoms / folder / name
            source = nib.load(path)
            nib.save(nib.Nifti1Image(half.astype(source.get_data_dtype()), source.affine), path)
    run(
        BUNDLE,
        "train",
        "evaluate",
        dataset_dir=phantoms,
        output_dir=tmp_path / "out",
        network_def={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        ckpt_path=tmp_path / "probe.pt",
        roi_size=list(SIZE),
        **{"split#ratios": [0.4, 0.6]},
    )
    dice = per_case(tmp_path / "out", "val_mean_dice")
    absent = [name for name, values in dice if np.isnan(values[1])]
    assert absent == [name for name, _ in dice if name in without]
    assert 0 < len(absent) < len(dice) == 3
    assert all(values[0] > 0.99 for name, values in dice if name in absent)
    table = rows(tmp_path / "out" / "val_mean_dice_summary.csv")
    counts = [int(float(row[table[0].index("notnans")])) for row in table[1:]]
    assert counts[:2] == [3, 3 - len(absent)]
    means = [np.nanmean(values[:2]) for _, values in dice]
    assert metrics(tmp_path / "out")["val_mean_dice"] == pytest.approx(np.mean(means), abs=1e-4)


# --- data that would spoil the training ---


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


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


NO_DATA_CHECK = {"initialize": ["$monai.utils.set_determinism(seed=@seed)"]}


@pytest.mark.parametrize("checked_before", [True, False])
@pytest.mark.parametrize(
    ("folder", "damage"),
    [("imagesTr", flip_a_byte), ("imagesTr", truncate), ("imagesTr", add_nan), ("labelsTr", add_a_class)],
)
def test_bad_file_is_named_before_the_training(phantoms, tmp_path, folder, damage, checked_before):
    bad = phantoms / folder / "phantom_002.nii.gz"
    damage(bad)
    options = {**TINY_QUICK, **({} if checked_before else NO_DATA_CHECK)}
    with pytest.raises(RuntimeError) as refused:
        run(BUNDLE, "train", dataset_dir=phantoms, output_dir=tmp_path / "out", **options)
    told = str(root_cause(refused.value))
    assert str(bad) in told
    assert "expected" in told
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_spacing_that_would_fill_the_memory_is_refused(phantoms, tmp_path):
    options = {**TINY_QUICK, "spacing": [0.01, 0.01, 0.01]}
    with pytest.raises(RuntimeError) as refused:
        run(BUNDLE, "train", dataset_dir=phantoms, output_dir=tmp_path / "out", **options)
    told = str(root_cause(refused.value))
    assert "voxels after resampling" in told
    assert str(phantoms) in told


def test_damage_is_real(phantoms):
    path = phantoms / "imagesTr" / "phantom_002.nii.gz"
    flip_a_byte(path)
    with pytest.raises((OSError, EOFError, gzip.zlib.error)):
        gzip.decompress(path.read_bytes())


# --- DDP: a rank dies ---


def torchrun(folder, phantoms, output, restarts=0, **overrides):
    configs = [str(folder / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    options = {"bundle_root": str(folder), "dataset_dir": str(phantoms), "output_dir": str(output), "resume": "auto"}
    options = {**options, **TINY_QUICK, "split#ratios": [0.6, 0.4], **overrides}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(f"--max-restarts={restarts}", "-m", "monai.bundle", "run", f"--config_file={configs}"),
            *(f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()),
        ],
        # The last one is for restarts: https://github.com/pytorch/pytorch/issues/135712.
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        cwd=output.parent,
        stdout=subprocess.DEVNULL,
        stderr=(output.parent / f"{output.name}.log").open("w"),
        text=True,
    )


def process_of_rank(job, rank):
    """The process id, from what the kernel tells of the launcher's children."""
    wanted = f"RANK={rank}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == job.pid and wanted in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def wait_for(path, job, seconds=180):
    end = time.monotonic() + seconds
    while not path.exists():
        assert job.poll() is None, f"ended with {job.returncode}"
        assert time.monotonic() < end, f"no {path.name} in {seconds} s"
        time.sleep(0.02)


def newest(folder):
    return max(folder.glob("checkpoint_epoch=*.pt"), key=lambda path: int(path.stem.split("=")[1]))


def finish(job, seconds):
    """Seconds until the job ends, which must be fewer than given."""
    start = time.monotonic()
    try:
        job.wait(seconds)
    finally:
        if job.poll() is None:
            job.terminate()  # and so its processes
            job.wait()
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ddp_job_ends_when_a_rank_dies(phantoms, tmp_path, rank):
    output = tmp_path / "out"
    job = torchrun(BUNDLE, phantoms, output, epochs=10_000)
    wait_for(output / "models" / "checkpoint_epoch=2.pt", job)
    os.kill(process_of_rank(job, rank), signal.SIGKILL)
    assert finish(job, 60) < 60
    assert job.returncode == 1
    log = (tmp_path / "out.log").read_text()
    assert "Signal 9 (SIGKILL) received by PID" in log
    last = torch.load(newest(output / "models"), weights_only=True)
    assert last["trainer"]["iteration"] >= 2
    assert not list((output / "models").glob("*.tmp")) or rank == 0


@pytest.mark.slow
def test_ddp_job_restarts_from_the_last_checkpoint(phantoms, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job = torchrun(BUNDLE, phantoms, whole, epochs=12)
    finish(job, 300)
    assert job.returncode == 0, (tmp_path / "whole.log").read_text()[-3000:]
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    job = torchrun(BUNDLE, phantoms, broken, restarts=1, epochs=12)
    wait_for(broken / "models" / "checkpoint_epoch=3.pt", job)
    os.kill(process_of_rank(job, 1), signal.SIGKILL)
    finish(job, 300)
    log = (tmp_path / "broken.log").read_text()
    assert job.returncode == 0, log[-3000:]
    assert "SIGKILL" in log or "exitcode: -9" in log
    for name in ("checkpoint_epoch=12.pt", "model.pt", "checkpoint_best.pt"):
        assert_same(*(torch.load(folder / "models" / name, weights_only=True) for folder in (whole, broken)))


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_all(phantoms, tmp_path):
    output = tmp_path / "out"
    job = torchrun(BUNDLE, phantoms, output, epochs=10_000)
    wait_for(output / "models" / "checkpoint_epoch=2.pt", job)
    os.kill(process_of_rank(job, 1), signal.SIGTERM)
    assert finish(job, 60) < 60
    log = (tmp_path / "out.log").read_text()
    assert log.count("stopped by SIGTERM in epoch") == 1
    assert "exitcode  : 143" in log
    assert "Connection closed" not in log
