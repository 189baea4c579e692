"""Trainings that are killed, stopped or find a damaged checkpoint go on as if nothing had happened."""

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
from monai.handlers import StatsHandler
from monai.transforms import Compose, RandAffined, RandFlipd, RandGaussianNoised
from torch import nn

from monai_scaleequiv.data import make_phantom_dataset
from monai_scaleequiv.handlers import (
    EpochSeedHandler,
    ResumableCheckpointSaver,
    ResumeCheckpointLoader,
    StopSignalHandler,
    WorkflowState,
)
from tests.bundle_runs import CPU, FOLDERS, QUICK, SIZE, load, run, tiny
from tests.conftest import ROOT

TICKS_AN_EPOCH = 3 * 4 + 2 + 2  # iterations, validated cases, checkpoints
REPUXNET, CANONICALIZER, SEUNET = FOLDERS


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Six cases to train with, three iterations an epoch, and two to validate with."""
    return make_phantom_dataset(tmp_path_factory.mktemp("cases"), cases=8, size=SIZE).parent


def options(bundle, cases, output, **overrides):
    paths = {"bundle_root": str(bundle), "dataset_dir": str(cases), "output_dir": str(output), "resume": "auto"}
    return {**paths, **tiny(bundle), **QUICK, "split#ratio": 0.75, **overrides}


def job(bundle, cases, output, ticks, **overrides):
    """A training in as many child processes as there are ticks, each of which goes on where the one before ended."""
    overrides = {"device": CPU, **options(bundle, cases, output, **overrides)}
    return {"bundle": str(bundle), "configs": ["train"], "overrides": overrides, "ticks": ticks}


def environment():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_jobs(*jobs):
    """How the children of each job ended, and what they wrote to standard error."""
    output = Path(jobs[-1]["overrides"]["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.killed_training", str(output / "jobs.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.rindex("[[") :]), done.stderr


def assert_same(one, other, where=""):
    """Bit for bit: numbers are compared as they are stored."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
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
    # What was there before the first checkpoint is kept beside what replaces it.
    assert {path.name for path in (broken / "models").iterdir()} - {f"earlier_{n}" for n in range(1, 21)} == names
    for name in sorted(names):
        if name.endswith(".pt"):
            assert_same(load(whole / "models" / name), load(broken / "models" / name), name)
        else:  # the record and the pictures
            assert (whole / "models" / name).read_bytes() == (broken / "models" / name).read_bytes(), name
    assert steps(whole) == steps(broken)


def kill_and_compare(bundle, cases, folder, kills, epochs, *others, **overrides):
    """The outcome of the last of the killed children is that of an unbroken training; how other jobs ended."""
    chance = random.Random(epochs)
    ticks = [chance.randint(1, TICKS_AN_EPOCH * 3 // 2) for _ in range(kills)]
    (*ends, whole, broken), log = run_jobs(
        *others,
        job(bundle, cases, folder / "whole", [0], epochs=epochs, **overrides),
        job(bundle, cases, folder / "broken", [*ticks, 0], epochs=epochs, **overrides),
    )
    assert (whole, broken) == ([0], [-signal.SIGKILL] * kills + [0]), log[-3000:]
    assert_same_training(folder / "whole", folder / "broken")
    last = load(folder / "broken" / "models" / f"checkpoint_epoch={epochs}.pt")
    assert set(last) == {"network", "optimizer", "lr_scheduler", "trainer", "epoch_seed", "curve", "best_network"}
    assert last["trainer"]["best"][1][1] > 0  # the epoch of the best validation
    return ends


def test_kill_9_and_resume(cases, tmp_path):
    # And during a save: iterations of both epochs, the first one's checkpoint, validated cases, the best network.
    out = tmp_path / "out"
    during_save = job(SEUNET, cases, out, [2 * 12 + 1 + 2 + 2], epochs=2, val_interval=2)
    assert kill_and_compare(SEUNET, cases, tmp_path, 2, 3, during_save) == [[-signal.SIGKILL]]
    names = {path.name for path in (out / "models").iterdir()}
    assert "checkpoint_epoch=2.pt.tmp" in names
    assert "checkpoint_epoch=2.pt" not in names
    assert load(out / "models" / "checkpoint_epoch=1.pt")["trainer"]["iteration"] == 3
    resumed(
        out / "models",
        "auto",
        load_dict={"other": nn.Linear(1, 1)},
        fails="expected the states of this training's trainer, other",
    )
    assert not list((out / "models").glob("*.tmp"))


def test_refused_training_leaves_the_last_weights_of_another(tmp_path):
    earlier = {"network": nn.Linear(1, 1).state_dict()}
    torch.save(earlier, tmp_path / "model_final.pt")
    before, network = (tmp_path / "model_final.pt").read_bytes(), nn.Linear(1, 1)
    trainer = Engine(lambda engine, batch: None)
    others = {"network": network, "other": nn.Linear(2, 2)}
    ResumeCheckpointLoader("", tmp_path, others).attach(trainer)
    final = {"save_final": True, "final_filename": "model_final.pt"}
    ResumableCheckpointSaver(tmp_path, {"network": network}, **final).attach(trainer)
    with pytest.raises(FileExistsError, match=r"model_final\.pt is left from an earlier training"):
        trainer.run([0])
    assert (tmp_path / "model_final.pt").read_bytes() == before


def test_kill_9_and_resume_with_an_estimator_that_draws_its_views(cases, tmp_path):
    kill_and_compare(CANONICALIZER, cases, tmp_path, kills=1, epochs=2)


@pytest.mark.slow
def test_kill_9_and_resume_twenty_times(cases, tmp_path):
    kill_and_compare(REPUXNET, cases, tmp_path, kills=20, epochs=12, num_workers=2, seed=5)


def train(cases, output, **overrides):
    """A training in this process; its checkpoints by name."""
    overrides = options(SEUNET, cases, output, **overrides)
    run(SEUNET, "train", **{key: value for key, value in overrides.items() if key != "bundle_root"})
    return {path.name: load(path) for path in sorted((output / "models").glob("*.pt"))}


def test_truncated_checkpoint_is_passed_over_with_a_message(cases, tmp_path, caplog):
    models = tmp_path / "out" / "models"
    whole = train(cases, tmp_path / "out")
    before = {path: path.read_bytes() for path in models.glob("*.pt")}
    assert_same(whole, train(cases, tmp_path / "out"))  # a training that is over is not repeated
    assert before == {path: path.read_bytes() for path in models.glob("*.pt")}
    cut = models / "checkpoint_epoch=2.pt"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    caplog.clear()
    again = train(cases, tmp_path / "out")
    (message,) = [message for message in caplog.messages if "going on from" in message]
    assert message.startswith(f"{cut}: expected a whole checkpoint, got a damaged one (")
    assert message.endswith(f"going on from {models / 'checkpoint_epoch=1.pt'}.")
    assert_same(whole, again)


def wait_for(path, process, seconds=180):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, f"no {path.name} in {seconds} s"
        time.sleep(0.02)


def test_sigterm_leaves_a_whole_epoch_and_one_line(cases, tmp_path):
    given = options(SEUNET, cases, tmp_path / "out", epochs=10_000)
    given = {key: value for key, value in given.items() if key not in ("bundle_root", "dataset_dir", "output_dir")}
    argv = ["train", f"--input={cases}", f"--output={tmp_path / 'out'}"]
    argv += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "monai_scaleequiv", *argv], cwd=ROOT, env=environment(), **pipes)
    folder = tmp_path / "out" / "models"
    wait_for(folder / "checkpoint_epoch=2.pt", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in out + err
    (last,) = [line for line in err.splitlines() if "SIGTERM" in line]
    newest = max(folder.glob("checkpoint_epoch=*.pt"), key=lambda path: int(path.stem.split("=")[1]))
    assert last.startswith("stopped by SIGTERM in epoch ")
    assert last.endswith(f"{newest} holds the last whole epoch; go on with resume=auto.")
    assert load(newest)["trainer"]["iteration"] % 3 == 0
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("length", [1, 3])
def test_sigterm_in_the_last_iteration_of_an_epoch_keeps_the_epoch(tmp_path, length):
    def step(engine, batch):
        if engine.state.iteration == length:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one would end the process

    engine, stop = Engine(step), StopSignalHandler(tmp_path)
    stop.attach(engine)
    before = signal.getsignal(signal.SIGTERM)
    ResumableCheckpointSaver(str(tmp_path), {"trainer": engine, "x": nn.Linear(1, 1)}, save_interval=1).attach(engine)
    engine.run(range(length), max_epochs=5)
    assert engine.state.iteration == length
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch=1.pt"]
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as stopped:
        stop.exit_if_stopped()
    assert stopped.value.code == 143
    engine = Engine(lambda engine, batch: None)
    stop.attach(engine)
    engine.run([0], max_epochs=1)
    stop.exit_if_stopped()  # a training that ends by itself goes on to the next line


def test_sigterm_means_what_it_did_after_a_run_that_raised(tmp_path):
    def step(engine, batch):
        raise KeyError("of the step")

    engine, before = Engine(step), signal.getsignal(signal.SIGTERM)
    StopSignalHandler(tmp_path).attach(engine)
    StatsHandler(output_transform=lambda x: None).attach(engine)
    with pytest.raises(KeyError, match="of the step"):
        engine.run([0])
    assert signal.getsignal(signal.SIGTERM) is before


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


@pytest.mark.parametrize(
    ("num_workers", "epoch_length", "own_generator"), [(0, 3, False), (0, 2, True), (0, 4, False), (2, 3, True)]
)
def test_an_epoch_follows_from_its_number(num_workers, epoch_length, own_generator):
    generators = [{"generator": torch.Generator()} if own_generator else {} for _ in range(2)]
    whole = batches(loader(num_workers, **generators[0]), 3, epoch_length=epoch_length)
    later = batches(loader(num_workers, **generators[1]), 3, start=2, epoch_length=epoch_length)
    assert len(later) == epoch_length
    assert_same(whole[-epoch_length:], later)
    assert not torch.equal(whole[0], whole[epoch_length])
    assert not torch.equal(whole[0], batches(loader(num_workers), 1, seed=1)[0])


def test_ill_seeds_and_workers_that_live_on():
    for seed in (-1, 0.5, True, None):
        with pytest.raises(ValueError, match="seed: expected a whole number from 0, got"):
            EpochSeedHandler(seed)
    with pytest.raises(ValueError, match="seed: expected 3 as in the checkpoint, got 4"):
        EpochSeedHandler(4).load_state_dict(EpochSeedHandler(3).state_dict())
    with pytest.raises(ValueError, match="persistent_workers: expected False, got True"):
        batches(loader(1, persistent_workers=True), 1)


def test_data_without_a_loader_is_seeded_as_well():
    numbers = [Dataset([torch.rand(1)])]
    engine = Engine(lambda engine, batch: torch.rand(1).item())
    EpochSeedHandler(1).attach(engine)
    assert engine.run(numbers, max_epochs=2).output == engine.run(numbers, max_epochs=2).output


def workflows(scaler=None):
    network = nn.Linear(1, 1)
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, [], network, torch.optim.SGD(network.parameters(), lr=0.1), nn.MSELoss(), epoch_length=1
    )
    trainer.scaler = scaler
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], network, epoch_length=1)
    state = WorkflowState(evaluator)
    state.attach(trainer)
    return trainer, evaluator, state


def test_scaler_and_best_metric_go_on(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    trainer, evaluator, state = workflows(scaler)
    trainer.state.iteration, trainer.state.max_epochs = 7, 9
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = torch.tensor(0.75), 4
    torch.save(state.state_dict(), tmp_path / "state.pt")
    fresh = torch.amp.GradScaler("cpu")
    trainer, evaluator, state = workflows(fresh)
    state.load_state_dict(load(tmp_path / "state.pt"))
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.get_scale() == 1024.0
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (0.75, 4)
    assert (trainer.state.iteration, trainer.state.epoch) == (7, 7)
    workflows()[2].load_state_dict(load(tmp_path / "state.pt"))  # now without mixed precision


# --- files ---


def checkpoint(folder, epoch, content=None):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"checkpoint_epoch={epoch}.pt"
    torch.save({"trainer": {"iteration": epoch, "epoch_length": 1, "max_epochs": 20}, **(content or {})}, path)
    return path


def resumed(folder, resume, epochs=9, length=1, load_dict=None, fails=None, kind=ValueError):
    """Which epochs a training runs; or the error, whose text is given."""
    seen = []
    engine = Engine(lambda engine, batch: seen.append(engine.state.epoch))
    engine.state.epoch_length, engine.state.max_epochs = length, epochs
    ResumeCheckpointLoader(str(resume), folder, {"trainer": engine, **(load_dict or {})}).attach(engine)
    if fails is None:
        engine.run([0] * length)
        return seen
    with pytest.raises(kind, match=fails) as error:
        engine.run([0] * length)
    return str(error.value)


def test_where_a_training_goes_on(tmp_path):
    models = tmp_path / "models"
    assert resumed(models, "auto")[0] == 1  # the folder is created, with its parents
    assert models.is_dir()
    (models / "notes.txt").touch()
    assert resumed(models, "")[0] == 1
    two = checkpoint(models, 2)
    (models / "checkpoint_epoch=x.pt").touch()
    assert resumed(models, two)[0] == 3
    checkpoint(models, 8), checkpoint(models, 7)
    for resume in ("auto", models):
        assert resumed(models, resume) == [9]
    assert resumed(tmp_path / "new", two)[0] == 3
    assert {path.name for path in models.iterdir()} >= {"notes.txt", "checkpoint_epoch=2.pt"}


@pytest.mark.parametrize("name", ["model.pt", "checkpoint_epoch=5.pt"])
def test_folder_of_an_earlier_training_is_left_alone(tmp_path, name):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).write_bytes(b"weights")
    message = r" is left from an earlier training and would be overwritten; choose another output_dir"
    other = checkpoint(tmp_path / "other", 3)
    for resume in ("", other, other.parent):
        resumed(tmp_path / "models", resume, fails=name + message, kind=FileExistsError)
    assert (tmp_path / "models" / name).read_bytes() == b"weights"
    checkpoint(tmp_path / "other", 5)  # a training that went on further
    resumed(tmp_path / "other", other, fails=r"epoch=5.pt" + message, kind=FileExistsError)


def test_an_engine_that_goes_on_by_itself_is_left_alone(tmp_path):
    engine = Engine(lambda engine, batch: None)
    ResumeCheckpointLoader("", tmp_path, {"trainer": engine}).attach(engine)
    ResumableCheckpointSaver(str(tmp_path), {"trainer": engine, "x": engine}, save_interval=1).attach(engine)
    for epochs in (1, 2):  # as in the rounds of federated learning
        assert engine.run([0], max_epochs=epochs).epoch == epochs


def test_checkpoints_that_do_not_fit(tmp_path, monkeypatch):
    path = checkpoint(tmp_path, 3, {"x": {}})
    for arguments, message in [
        ({"load_dict": {"network": nn.Linear(1, 1)}}, "expected the states of this training's trainer, network, got"),
        ({"load_dict": {"x": nn.Linear(1, 1)}}, "expected the states of this training's trainer, x, got others"),
        ({"epochs": 2}, "expected at most 2 epochs, got 3"),
        ({"length": 2}, "expected 2 iterations per epoch, got 1; go on with the data, the batch size"),
    ]:
        assert resumed(tmp_path, "auto", fails=message, **arguments).startswith(str(path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for resume in ("absent.pt", "empty"):
        message = f"resume={resume}: expected a checkpoint_epoch=.* or a folder with one, got none"
        resumed("models", resume, fails=message, kind=FileNotFoundError)
    assert not (tmp_path / "models").exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_checkpoint_is_not_run(tmp_path):
    checkpoint(tmp_path / "models", 1, {"bad": Malicious(tmp_path / "hacked")})
    resumed(
        tmp_path / "models", "auto", fails=r"checkpoint_epoch=1.pt: expected plain weights, got a pickle that calls "
    )
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_damaged_checkpoint_is_recognised(tmp_path, damage, caplog):
    paths = [checkpoint(tmp_path, epoch, {"network": nn.Linear(50, 50).state_dict()}) for epoch in (2, 3)]
    content = bytearray(paths[1].read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    paths[1].write_bytes({"truncated": content[:-30], "empty": b"", "text": b"no checkpoint"}.get(damage, content))
    assert resumed(tmp_path, "auto")[0] == 3
    (message,) = caplog.messages
    assert message.startswith(f"{paths[1]}: expected a whole checkpoint, got ")
    assert message.endswith(f"; going on from {paths[0]}.")
    resumed(tmp_path, paths[1], fails=r"expected a whole checkpoint, got .*; go on with resume=auto")
    paths[0].unlink()
    resumed(tmp_path, "auto", fails="no earlier one is whole; start anew in another output_dir")


def test_older_checkpoints_of_the_killed_process_are_removed(tmp_path):
    for epoch in (3, 4):
        checkpoint(tmp_path, epoch)
    (tmp_path / "checkpoint_epoch=5.pt").write_bytes(b"cut")
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch_length, engine.state.max_epochs = 1, 6
    ResumeCheckpointLoader("auto", tmp_path, {"trainer": engine}).attach(engine)
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
    folder, there = tmp_path / "models", []
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "dice"
    parts = {"save_key_metric": True, "key_metric_filename": "model.pt"}
    saver = ResumableCheckpointSaver(folder, {"network": nn.Linear(1, 1)}, **parts)
    saver.attach(engine)
    assert not folder.exists()  # before there is something to save
    whole = torch.save

    def save(*arguments):
        best = folder / "model.pt"
        there.append(best.is_file() and best.stat().st_size > 0)  # whole, not about to be written over
        whole(*arguments)

    monkeypatch.setattr(torch, "save", save)
    for score in (math.nan, 0.2, math.nan, 0.1, 0.5):
        engine.state.metrics = {"dice": score}
        saver.metrics_completed(engine)
    assert there == [False, True, True]  # a first NaN is saved, the second NaN and 0.1 are no improvement
    assert load(folder / "model.pt").keys() == {"weight", "bias"}
