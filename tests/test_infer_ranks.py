"""A folder of volumes in several processes: each volume once, failures of all reported, restarts with what is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch

from monai_scaleequiv.cli import main
from monai_scaleequiv.data import InputGridWriter, _datalist, make_phantom_dataset

from .bundle_runs import CPU, FOLDERS, SIZE, config_files, load, per_case, run_on_two, tiny, write_probe
from .conftest import BUNDLES, ROOT
from .fault_files import cut, write_volume
from .test_infer import label_maps, listed, options

BUNDLE = BUNDLES / "seunet_hippocampus_segmentation"
SHAPE = (12, 12, 12)


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        write_volume(tmp_path / "in" / f"{name}.nii.gz", shape=SHAPE)
    return tmp_path / "in"


def on_two(tmp_path, call, before=lambda rank: None):
    """Exit statuses of two processes as torchrun starts them, which have all modules already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            status = 70
            try:
                job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
                job |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
                os.environ.update({name: str(value) for name, value in job.items()})
                sys.stdout = sys.stderr = (tmp_path / f"log{rank}").open("w", buffering=1)
                torch.set_num_threads(1)  # GNU's OpenMP has no threads left after a fork
                note_writes(tmp_path / f"written{rank}")
                before(rank)
                status = call()
            finally:
                os._exit(status)
        children.append(child)
    deadline = time.monotonic() + 60
    statuses = {}
    while len(statuses) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        for child in set(children) - set(statuses):
            if (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
    for child in set(children) - set(statuses):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [statuses.get(child, "hangs") for child in children]


def note_writes(path):
    path.write_text("")
    write = InputGridWriter.write

    def noting(self, filename, *arguments, **more):
        with path.open("a") as file:
            file.write(Path(filename).name[0])
        write(self, filename, *arguments, **more)

    InputGridWriter.write = noting


def shares(tmp_path):
    return [(tmp_path / f"written{rank}").read_text() for rank in range(2)]


def by_command(tmp_path, source, *more):
    arguments = options(tmp_path, "--device=cpu", *more)  # CUDA survives no fork
    return lambda: main(["infer", f"--input={source}", *arguments])


def by_monai(tmp_path, source, *more):
    given = {"output_dir": str(tmp_path / "out"), "dataset_dir": str(source), "device": CPU, "bundle_root": str(BUNDLE)}
    given |= write_probe(tmp_path / "weights.pt") | {"roi_size": list(SHAPE)}
    given |= {option.removeprefix("--"): True for option in more}

    def call():
        monai.bundle.run(config_file=config_files(BUNDLE, "inference", "multi_gpu_inference"), **given)
        return 0

    return call


ROUTES = pytest.mark.parametrize("route", [by_command, by_monai])


def late(rank):
    """The second process lists the folder when the first could long have written something.

    The first one waits for the list to be shared, by Ignite: that makes groups at its first use, and later a process
    without a share would not take part in it.
    """
    listing = _datalist.nifti_files
    _datalist.nifti_files = lambda folder: (time.sleep(rank), listing(folder))[1]


def times(tmp_path):
    return {path.name[0]: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[a-z]*_seg.nii.gz")}


@ROUTES
def test_each_volume_is_written_once_and_not_again(folder, tmp_path, route):
    assert on_two(tmp_path, route(tmp_path, folder), late) == [0, 0]
    assert shares(tmp_path) == ["ac", "b"]
    before = times(tmp_path)
    assert sorted(before) == ["a", "b", "c"]
    for left in ("", "b"):  # nothing to do, or less than there are processes
        for name in left:
            (tmp_path / "out" / f"{name}_seg.nii.gz").write_bytes(b"")
        assert on_two(tmp_path, route(tmp_path, folder, "--skip_existing")) == [0, 0]
        assert shares(tmp_path) == [left, ""]
        assert ("nothing to do" in (tmp_path / "log0").read_text()) == (route is by_command and not left)
        assert "nothing to do" not in (tmp_path / "log1").read_text()
    after = times(tmp_path)
    assert after.pop("b") > before.pop("b")
    assert after == before


@pytest.mark.parametrize("more", [[], pytest.param(["--native"], marks=pytest.mark.slow)])
def test_label_maps_are_those_of_one_process(folder, tmp_path, more):
    shown = "--handlers#4#disable=false"
    assert on_two(tmp_path, by_command(tmp_path, folder, *more, shown)) == [0, 0]
    assert ["segment" in (tmp_path / f"log{rank}").read_text() for rank in range(2)] == [True, False]
    two = label_maps(tmp_path)
    assert by_command(tmp_path, folder, *more, "--overwrite")() == 0
    assert label_maps(tmp_path) == two


def test_failures_of_all_processes_are_reported_by_the_first(folder, tmp_path):
    write_volume(folder / "d.nii.gz", shape=SHAPE)
    for name in "bc":
        cut(folder / f"{name}.nii.gz")
    assert on_two(tmp_path, by_command(tmp_path, folder)) == [1, 0]
    assert sorted(label_maps(tmp_path)) == ["a", "d"]
    assert sorted(listed(tmp_path)) == ["b", "c"]
    first, second = ((tmp_path / f"log{rank}").read_text().splitlines() for rank in range(2))
    assert [line for line in first + second if line.startswith("error")] == first[-1:]
    assert first[-1].startswith(
        f"error: 2 of 4 volumes failed, listed in {tmp_path / 'out' / 'failures.json'}; correct"
    )
    assert any(str(folder / f"{name}.nii.gz") in first[-1] for name in "bc")  # the line is cut where it gets long
    assert second[0].startswith(f"{folder / 'b.nii.gz'}: expected a whole gzip stream")  # at once
    write_volume(folder / "b.nii.gz", shape=SHAPE)
    assert on_two(tmp_path, by_command(tmp_path, folder, "--skip_existing")) == [1, 0]
    assert sorted(listed(tmp_path)) == ["c"]
    assert shares(tmp_path) == ["b", ""]


def test_monai_bundle_run_ends_at_a_bad_volume(folder, tmp_path):
    cut(folder / "b.nii.gz")
    first, second = on_two(tmp_path, by_monai(tmp_path, folder))
    assert second == 70
    assert first not in (0, "hangs")
    assert sorted(label_maps(tmp_path)) == ["a", "c"]


@pytest.mark.parametrize("route", [by_command, pytest.param(by_monai, marks=pytest.mark.slow)])
def test_killed_process_is_no_hang_and_its_volume_is_done_again(folder, tmp_path, route):
    save = nib.save

    def dying(rank):
        if rank == 1:
            nib.save = lambda image, path: (save(image, path), os.kill(os.getpid(), signal.SIGKILL))

    first, second = on_two(tmp_path, route(tmp_path, folder), dying)
    assert second == -signal.SIGKILL
    assert first not in (0, "hangs")
    before = times(tmp_path)
    assert sorted(before) == ["a", "c"]
    assert len(list((tmp_path / "out").glob(".*-b_seg.nii.gz"))) == 1
    assert on_two(tmp_path, route(tmp_path, folder, "--skip_existing")) == [0, 0]
    assert shares(tmp_path) == ["b", ""]
    after = times(tmp_path)
    assert after.pop("b")
    assert after == before


@pytest.mark.slow
def test_command_under_torchrun(folder, tmp_path):
    cut(folder / "b.nii.gz")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "monai_scaleequiv", "infer", f"--input={folder}", *options(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("error: 1 of 3 volumes failed") == 1
    assert sorted(label_maps(tmp_path)) == ["a", "c"]
    assert list(listed(tmp_path)) == ["b"]


@pytest.mark.slow
def test_monai_bundle_run_under_torchrun(folder, tmp_path):
    given = write_probe(tmp_path / "weights.pt") | {"roi_size": list(SHAPE)}
    run_on_two(BUNDLE, folder, tmp_path / "out", "inference", "multi_gpu_inference", **given)
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c"]


@pytest.mark.slow
def test_torchrun_shares_trainings_evaluations_and_sweeps(tmp_path):
    """By the commands, without a config that says so: each case once, and the sweep's table once."""
    data = make_phantom_dataset(tmp_path / "data", cases=6, size=SIZE).parent
    bundle = FOLDERS[-1]
    small = [f"--{id}={json.dumps(value)}" for id, value in {**tiny(bundle), "roi_size": list(SIZE)}.items()]
    quick = ["--epochs=1", "--val_interval=1", "--patch_size=[16,16,16]", "--split#ratio=0.67"]
    weights = f"--ckpt_path={tmp_path / 'train' / 'models' / 'model.pt'}"
    commands = (("train", quick), ("evaluate", [weights]), ("sweep", [weights, "--scales=[1]"]))
    for command, more in commands:
        arguments = [
            command,
            f"--bundle={bundle}",
            f"--input={data}",
            f"--output={tmp_path / command}",
            *small,
            *more,
        ]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
                *("-m", "monai_scaleequiv", *arguments),
            ],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    state = load(tmp_path / "train" / "models" / "checkpoint_epoch=1.pt")["trainer"]
    assert state["epoch_length"] == 1  # of four cases two for each process, in one batch
    cases = [name for name, _ in per_case(tmp_path / "evaluate", "val_mean_dice")]
    assert len(cases) == len(set(cases)) == 2
    assert done.stdout.count("sweep.png") == 1
