"""Trainings that are killed, told to stop or find a damaged checkpoint go on as if nothing had happened.

Rows of the table of faults: "Kill -9 and resume", "Truncated checkpoint, kill during save", "Disk full", "Malicious
checkpoint".
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised
from torch import nn

from monai_scaleequiv import (
    EpochSeedHandler,
    ResumableCheckpointSaver,
    ResumeHandler,
    StopSignalHandler,
    WorkflowState,
    claim_checkpoint_dir,
    make_phantom_dataset,
)
from tests.conftest import BUNDLES, ROOT
from tests.test_bundles import QUICK, SIZE, TINY, run

FOLDERS = sorted(folder.parent for folder in BUNDLES.glob("*/configs"))
TICKS_AN_EPOCH = 3 * 4 + 2 + 3  # iterations, validated cases, checkpoints


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name.split("_")[0])
def bundle(request):
    return request.param


@pytest.fixture(scope="module")
def seunet():
    return next(folder for folder in FOLDERS if folder.name.startswith("seunet"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Six cases to train with, three iterations an epoch, and two to validate with."""
    return make_phantom_dataset(tmp_path_factory.mktemp("phantoms"), cases=8, size=SIZE).parent


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(bundle, phantoms, output, **overrides):
    network = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]["_target_"]
    paths = {"bundle_root": str(bundle), "dataset_dir": str(phantoms), "output_dir": str(output), "resume": "auto"}
    return {**paths, **TINY[network], **QUICK, "split#ratios": [0.75, 0.25], **overrides}


def job(bundle, phantoms, output, ticks, **overrides):
    """A training in as many child processes as there are ticks, each of which goes on where the one before ended."""
    overrides = {"device": "$torch.device('cpu')", **options(bundle, phantoms, output, **overrides)}
    return {"bundle": str(bundle), "configs": ["train"], "overrides": overrides, "ticks": ticks}


def run_jobs(*jobs):
    """How the children of each job ended, and what they told."""
    output = Path(jobs[-1]["overrides"]["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_training", str(output / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.rindex("[[") :]), done.stderr


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other, where=""):
    """Bit for bit: numbers are compared as they are stored."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        assert one.numpy().tobytes() == other.numpy().tobytes(), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where


def steps(output):
    """Cases and loss of each iteration, and random states after each epoch; what was repeated is the same each time."""
    found = {}
    for line in (output / "steps.txt").read_text().splitlines():
        kind, number, value = line.split(" ", 2)
        assert found.setdefault((kind, int(number)), value) == value, line
    return found


def assert_same_training(whole, broken):
    names = {path.name for path in (whole / "models").iterdir()}
    assert {path.name for path in (broken / "models").iterdir()} == names
    for name in sorted(names):
        assert_same(load(whole / "models" / name), load(broken / "models" / name), name)
    assert steps(whole) == steps(broken)


def kill_and_compare(bundle, phantoms, folder, kills, epochs, **overrides):
    """How many children were killed; the outcome of the last one is compared with that of an unbroken training."""
    chance = random.Random(epochs)
    ticks = [chance.randint(1, TICKS_AN_EPOCH * 3 // 2) for _ in range(kills)]
    ends, log = run_jobs(
        job(bundle, phantoms, folder / "whole", [0], epochs=epochs, **overrides),
        job(bundle, phantoms, folder / "broken", [*ticks, 0], epochs=epochs, **overrides),
    )
    assert ends == [[0], [-signal.SIGKILL] * kills + [0]], log[-3000:]
    assert_same_training(folder / "whole", folder / "broken")
    last = load(folder / "broken" / "models" / f"checkpoint_epoch={epochs}.pt")
    assert set(last) >= {"network", "optimizer", "lr_scheduler", "trainer", "workflow", "epoch_seed"}
    assert last["workflow"]["best"][1][1] > 0  # the epoch of the best validation


def test_kill_9_and_resume(bundle, phantoms, tmp_path):
    kill_and_compare(bundle, phantoms, tmp_path, kills=3, epochs=4)


@pytest.mark.slow
def test_kill_9_and_resume_with_workers(seunet, phantoms, tmp_path):
    kill_and_compare(seunet, phantoms, tmp_path, kills=10, epochs=12, num_workers=2, seed=5)


@pytest.mark.slow
def test_kill_9_and_resume_twenty_times(bundle, phantoms, tmp_path):
    kill_and_compare(bundle, phantoms, tmp_path, kills=20, epochs=24)


def test_kill_during_save_leaves_the_previous_checkpoint(seunet, phantoms, tmp_path):
    # Of the second epoch: iterations of both, the first one's checkpoint, validated cases, the best two networks.
    quick = {"epochs": 2, "val_interval": 2}
    ends, _ = run_jobs(job(seunet, phantoms, tmp_path / "out", [2 * 12 + 1 + 2 + 3], **quick))
    assert ends == [[-signal.SIGKILL]]
    names = {path.name for path in (tmp_path / "out" / "models").iterdir()}
    assert "checkpoint_epoch=2.pt.tmp" in names
    assert "checkpoint_epoch=2.pt" not in names
    assert load(tmp_path / "out" / "models" / "checkpoint_epoch=1.pt")["trainer"]["iteration"] == 3
    claim_checkpoint_dir(tmp_path / "out" / "models", "auto")
    assert not list((tmp_path / "out" / "models").glob("*.tmp"))


def train(bundle, phantoms, output, **overrides):
    """A training in this process; its checkpoints by name."""
    overrides = options(bundle, phantoms, output, **overrides)
    run(bundle, "train", **{key: value for key, value in overrides.items() if key != "bundle_root"})
    return {path.name: load(path) for path in sorted((output / "models").iterdir())}


def test_truncated_checkpoint_is_passed_over_with_a_message(seunet, phantoms, tmp_path, caplog):
    out = tmp_path / "out"
    whole = train(seunet, phantoms, out, epochs=3)
    cut = out / "models" / "checkpoint_epoch=3.pt"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    caplog.clear()
    again = train(seunet, phantoms, out, epochs=3)
    (told,) = [message for message in caplog.messages if "going on from" in message]
    assert told.startswith(f"{cut}: expected a whole checkpoint, got a damaged one (")
    assert told.endswith(f"going on from {out / 'models' / 'checkpoint_epoch=2.pt'}.")
    assert_same(whole, again)


def test_training_that_is_over_is_not_repeated(seunet, phantoms, tmp_path):
    whole = train(seunet, phantoms, tmp_path / "out", epochs=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").iterdir()}
    assert_same(whole, train(seunet, phantoms, tmp_path / "out", epochs=1))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").iterdir()}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_damaged_checkpoint_is_recognised(tmp_path, damage, caplog):
    paths = [checkpoint(tmp_path, epoch, {"network": nn.Linear(50, 50).state_dict()}) for epoch in (2, 3)]
    content = bytearray(paths[1].read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    damaged = {"truncated": content[:-30], "empty": b"", "text": b"no checkpoint"}.get(damage, content)
    paths[1].write_bytes(damaged)
    assert resumed(tmp_path, "auto") == 9
    (told,) = caplog.messages
    assert told.startswith(f"{paths[1]}: expected a whole checkpoint, got ")
    assert told.endswith(f"; going on from {paths[0]}.")


def started(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, f"no {path.name} in {seconds} s"
        time.sleep(0.02)


def as_arguments(given):
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]


@pytest.mark.parametrize("command", [pytest.param("monai.bundle", marks=pytest.mark.slow), "monai_scaleequiv"])
def test_sigterm_leaves_a_whole_epoch_and_one_line(seunet, phantoms, tmp_path, command):
    given = options(seunet, phantoms, tmp_path / "out", epochs=10_000)
    if command == "monai_scaleequiv":
        given = {key: value for key, value in given.items() if key not in ("bundle_root", "dataset_dir", "output_dir")}
        argv = ["train", f"--input={phantoms}", f"--output={tmp_path / 'out'}", *as_arguments(given)]
    else:
        argv = ["run", f"--config_file={seunet / 'configs' / 'train.json'}", *as_arguments(given)]
    process = started(command, *argv)
    folder = tmp_path / "out" / "models"
    wait_for(folder / "checkpoint_epoch=2.pt", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in out + err
    told = [line for line in err.splitlines() if "SIGTERM" in line]
    (last,) = told
    newest = max(folder.glob("checkpoint_epoch=*.pt"), key=lambda path: int(path.stem.split("=")[1]))
    assert last.startswith("stopped by SIGTERM in epoch ")
    assert last.endswith(f"{newest} holds the last whole epoch; go on with resume=auto.")
    assert load(newest)["trainer"]["iteration"] % 3 == 0
    assert not list(folder.glob("*.tmp"))


def engine_that(step, **handlers):
    engine = Engine(step)
    for handler in handlers.values():
        handler.attach(engine)
    return engine


@pytest.mark.parametrize("length", [1, 3])
def test_sigterm_in_the_last_iteration_of_an_epoch_keeps_the_epoch(tmp_path, length):
    def step(engine, batch):
        if engine.state.iteration == length:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one would end the process

    stop = StopSignalHandler(tmp_path)
    engine = engine_that(step, stop=stop)
    before = signal.getsignal(signal.SIGTERM)
    ResumableCheckpointSaver(str(tmp_path), {"trainer": engine, "x": nn.Linear(1, 1)}, save_interval=1).attach(engine)
    engine.run(range(length), max_epochs=5)
    assert engine.state.iteration == length
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch=1.pt"]
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as stopped:
        stop.exit_if_stopped()
    assert stopped.value.code == 143


def test_training_that_ends_by_itself_goes_on_to_the_next_line(tmp_path):
    stop = StopSignalHandler(tmp_path)
    engine_that(lambda engine, batch: None, stop=stop).run([0], max_epochs=1)
    stop.exit_if_stopped()


# --- what is random in an epoch ---


def loader(num_workers=0, **options):
    images = [{"image": torch.full((1, 6, 6), float(i))} for i in range(6)]
    random_transforms = [
        RandFlipd("image", prob=0.5),
        RandAffined("image", prob=0.7, rotate_range=1.0),
        RandGaussianNoised("image", prob=0.8),
        lambda data: {"image": data["image"] + random.random() + np.random.rand() + torch.rand(())},
    ]
    dataset = CacheDataset(images, Compose(random_transforms), progress=False)
    return DataLoader(dataset, batch_size=2, shuffle=True, num_workers=num_workers, **options)


def batches(data, epochs, start=0, seed=0, **run):
    """What the epochs after ``start`` are made of."""
    seen = []
    engine = Engine(lambda engine, batch: seen.append(batch["image"].as_tensor().clone()))
    EpochSeedHandler(seed).attach(engine)
    length = run.get("epoch_length", len(data))
    engine.load_state_dict({"iteration": start * length, "max_epochs": epochs, "epoch_length": length})
    for _ in range(start + 3):  # whatever the process did before
        random.random(), np.random.rand(), torch.rand(1)
    engine.run(data, **run)
    return seen


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("epoch_length", [3, 2, 4])
def test_an_epoch_follows_from_its_number(num_workers, epoch_length, own_generator):
    generators = [{"generator": torch.Generator()} if own_generator else {} for _ in range(2)]
    whole = batches(loader(num_workers, **generators[0]), 3, epoch_length=epoch_length)
    later = batches(loader(num_workers, **generators[1]), 3, start=2, epoch_length=epoch_length)
    assert len(later) == epoch_length
    assert_same(whole[-epoch_length:], later)
    assert not torch.equal(whole[0], whole[epoch_length])


def test_another_seed_gives_another_epoch():
    assert not torch.equal(batches(loader(), 1)[0], batches(loader(), 1, seed=1)[0])


def test_workers_that_live_on_are_refused():
    with pytest.raises(ValueError, match="persistent_workers: expected False, got True"):
        batches(loader(1, persistent_workers=True), 1)


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_ill_seed(seed):
    with pytest.raises(ValueError, match="seed: expected a whole number from 0, got"):
        EpochSeedHandler(seed)


def test_going_on_with_another_seed_is_refused():
    with pytest.raises(ValueError, match="seed: expected 3 as in the checkpoint, got 4"):
        EpochSeedHandler(4).load_state_dict(EpochSeedHandler(3).state_dict())


def workflows(scaler=None):
    network = nn.Linear(1, 1)
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, [], network, torch.optim.SGD(network.parameters(), lr=0.1), nn.MSELoss(), epoch_length=1
    )
    trainer.scaler = scaler
    return trainer, SupervisedEvaluator(torch.device("cpu"), [], network, epoch_length=1)


def test_scaler_and_best_metric_go_on(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    trainer, evaluator = workflows(scaler)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = torch.tensor(0.75), 4
    torch.save(WorkflowState(trainer, evaluator).state_dict(), tmp_path / "state.pt")
    fresh = torch.amp.GradScaler("cpu")
    trainer, evaluator = workflows(fresh)
    WorkflowState(trainer, evaluator).load_state_dict(load(tmp_path / "state.pt"))
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.get_scale() == 1024.0
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (0.75, 4)
    WorkflowState(*workflows()).load_state_dict(load(tmp_path / "state.pt"))  # now without mixed precision


# --- files ---


def checkpoint(folder, epoch, content=None):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"checkpoint_epoch={epoch}.pt"
    torch.save({"trainer": {"iteration": epoch, "epoch_length": 1, "max_epochs": 20}, **(content or {})}, path)
    return path


def resumed(folder, resume, epochs=9, **parts):
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch_length = 1
    engine.state.max_epochs = epochs
    ResumeHandler(str(resume), folder, {"trainer": engine, **parts}).attach(engine)
    return engine.run([0]).iteration


@pytest.mark.parametrize("choice", ["auto", "folder", "file", ""])
def test_where_a_training_goes_on(tmp_path, choice):
    paths = [checkpoint(tmp_path, epoch) for epoch in (2, 10, 9)]
    (tmp_path / "checkpoint_epoch=x.pt").touch()
    starts = []
    engine = Engine(lambda engine, batch: starts.append(engine.state.iteration - 1))
    engine.state.epoch_length, engine.state.max_epochs = 1, 12
    resume = {"folder": str(tmp_path), "file": str(paths[0])}.get(choice, choice)
    ResumeHandler(resume, tmp_path, {"trainer": engine}).attach(engine)
    engine.run([0])
    assert starts[0] == {"file": 2, "": 0}.get(choice, 10)


def test_auto_without_checkpoints_is_a_new_start(tmp_path):
    assert resumed(tmp_path / "none", "auto") == 9


@pytest.mark.parametrize(
    ("parts", "epochs", "told"),
    [
        ({"network": nn.Linear(1, 1)}, 9, r"expected 'network' in it, got \['trainer'\]"),
        ({}, 2, "expected at most 2 epochs, got 3"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path, parts, epochs, told):
    path = checkpoint(tmp_path, 3)
    with pytest.raises(ValueError, match=told) as refused:
        resumed(tmp_path, "auto", epochs, **parts)
    assert str(refused.value).startswith(str(path))


def test_checkpoint_of_epochs_of_another_length(tmp_path):
    checkpoint(tmp_path, 3)
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch_length, engine.state.max_epochs = 2, 9
    ResumeHandler("auto", tmp_path, {"trainer": engine}).attach(engine)
    with pytest.raises(ValueError, match="expected 2 iterations per epoch, got 1; go on with the data, the batch size"):
        engine.run([0, 1])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_checkpoint_is_not_run(tmp_path):
    checkpoint(tmp_path / "models", 1, {"bad": Malicious(tmp_path / "hacked")})
    with pytest.raises(ValueError, match=r"checkpoint_epoch=1.pt: expected plain weights, got a pickle that calls "):
        resumed(tmp_path / "models", "auto")
    assert not (tmp_path / "hacked").exists()


def test_damaged_file_asked_for_by_name_is_refused(tmp_path):
    path = checkpoint(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:500])
    for call in (lambda: claim_checkpoint_dir(tmp_path, str(path)), lambda: resumed(tmp_path, path)):
        with pytest.raises(
            ValueError, match=r"expected a whole checkpoint, got a damaged one .*; go on with resume=auto"
        ):
            call()


def test_nothing_whole_to_go_on_from(tmp_path):
    (tmp_path / "checkpoint_epoch=3.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no earlier one is whole; start anew in another output_dir"):
        claim_checkpoint_dir(tmp_path, "auto")


def test_folder_of_a_training_that_went_on_further_is_refused(tmp_path):
    first, _, third = (checkpoint(tmp_path, epoch) for epoch in (1, 2, 3))
    with pytest.raises(FileExistsError, match=r"that went on beyond resume=.*epoch=1.pt; choose another output_dir"):
        claim_checkpoint_dir(tmp_path, str(first))
    claim_checkpoint_dir(tmp_path, str(third))
    claim_checkpoint_dir(tmp_path, "auto")


def test_older_checkpoints_of_the_killed_process_are_removed(tmp_path):
    for epoch in (3, 4):
        checkpoint(tmp_path, epoch)
    (tmp_path / "checkpoint_epoch=5.pt").write_bytes(b"cut")
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch_length, engine.state.max_epochs = 1, 6
    ResumeHandler("auto", tmp_path, {"trainer": engine}).attach(engine)
    saver = ResumableCheckpointSaver(str(tmp_path), {"trainer": engine, "x": engine}, save_interval=1, n_saved=2)
    saver.attach(engine)
    engine.run([0])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_epoch=5.pt", "checkpoint_epoch=6.pt"}
    assert load(tmp_path / "checkpoint_epoch=5.pt")["trainer"]["iteration"] == 5


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    engine = Engine(lambda engine, batch: None)
    parts = {"trainer": engine, "network": nn.Linear(200, 200)}
    ResumableCheckpointSaver(str(tmp_path), parts, save_interval=1, n_saved=1).attach(engine)
    engine.run([0], max_epochs=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint_epoch=2.pt: expected room and permission .* previous one stays"):
            engine.run([0], max_epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch=1.pt"]
    assert load(tmp_path / "checkpoint_epoch=1.pt")["trainer"]["iteration"] == 1


def test_best_network_is_there_at_any_time(tmp_path, monkeypatch):
    scores, there = iter([0.2, math.nan, 0.5]), []
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "dice"
    engine.state.metrics = {}
    saver = ResumableCheckpointSaver(
        str(tmp_path), {"network": nn.Linear(1, 1)}, save_key_metric=True, key_metric_filename="model.pt"
    )
    saver.attach(engine)
    whole = torch.save

    def save(*arguments):
        there.append((tmp_path / "model.pt").is_file())
        whole(*arguments)

    monkeypatch.setattr(torch, "save", save)
    for _ in range(3):
        engine.state.metrics["dice"] = next(scores)
        saver.metrics_completed(engine)
    assert there == [False, True]  # NaN is no improvement, 0.5 is
    assert load(tmp_path / "model.pt").keys() == {"weight", "bias"}


def test_first_score_of_nan_does_not_stay_the_best(tmp_path):
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "dice"
    saver = ResumableCheckpointSaver(str(tmp_path), {"network": nn.Linear(1, 1)}, save_key_metric=True)
    saver.attach(engine)
    for score in (math.nan, 0.1):
        engine.state.metrics = {"dice": score}
        saver.metrics_completed(engine)
    assert [path.name for path in tmp_path.iterdir()] == ["network_key_metric=0.1000.pt"]


def test_data_without_a_loader_is_seeded_as_well():
    numbers = [Dataset([torch.rand(1)])]
    engine = Engine(lambda engine, batch: torch.rand(1).item())
    EpochSeedHandler(1).attach(engine)
    assert engine.run(numbers, max_epochs=2).output == engine.run(numbers, max_epochs=2).output
