"""Many and large volumes: memory, going on after a bad one and after an interruption, a GPU that is too small."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CenterSpatialCropd,
    Compose,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Rotated,
    Spacingd,
)
from monai_scaleequiv.data._file_grid import file_grid

from monai_scaleequiv import (
    LabelMapInferer,
    MillimetreWindowInferer,
    TolerantDataset,
    TolerantEvaluator,
    nifti_datalist,
)
from monai_scaleequiv.cli import main
from monai_scaleequiv.data import _files, _stitching
from monai_scaleequiv.data._errors import root_cause

from . import memory_run
from .conftest import BUNDLES, ROOT
from .fault_files import cut, write_volume

GIB = 2**30
# A folder of volumes.


@pytest.fixture(autouse=True)
def _log(monkeypatch):
    """MONAI's loggers write to the standard output of the test that made them."""
    name = "monai_scaleequiv.data._tolerant.TolerantEvaluator"
    monkeypatch.delitem(logging.root.manager.loggerDict, name, raising=False)


@pytest.fixture
def folder(tmp_path):
    """Four volumes, of which the second is cut off and the fourth has a NaN voxel."""
    for name in "abcd":
        write_volume(tmp_path / "in" / f"{name}.nii.gz", shape=(12, 12, 12))
    cut(tmp_path / "in" / "b.nii.gz")
    values = np.ones((12, 12, 12), np.float32)
    values[0, 0, 0] = np.nan
    write_volume(tmp_path / "in" / "d.nii.gz", values)
    return tmp_path / "in"


def options(tmp_path, *more):
    weights = memory_run.write_weights(tmp_path / "weights.pt", 3)
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    given = {"network_def": json.dumps(definition), "ckpt_path": weights, "roi_size": "[12,12,12]"}
    return [f"--output={tmp_path / 'out'}", *(f"--{k}={v}" for k, v in given.items()), *more]


def label_maps(tmp_path):
    found = (tmp_path / "out").glob("*_seg.nii.gz")
    return {path.name[0]: path.read_bytes() for path in sorted(found) if not path.name.startswith(".")}


def test_a_bad_volume_does_not_stop_the_others(capsys, folder, tmp_path):
    assert main(["infer", f"--input={folder}", *options(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert sorted(label_maps(tmp_path)) == ["a", "c"]
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    cut_off, nan = (str(folder / f"{name}.nii.gz") for name in "bd")
    assert list(failures) == [cut_off, nan]
    assert failures[cut_off].startswith(f"{cut_off}: expected a whole gzip stream, got one that is cut off")
    assert failures[nan].startswith(f"{nan}, image: expected finite values, got 1 NaN")
    assert err.startswith(f"error: 2 of 4 volumes failed, listed in {tmp_path / 'out' / 'failures.json'}; mend them")
    assert err.count("\n") == 1
    assert all(text in out for text in failures.values())  # at once, one line each


def test_restart_skips_what_is_finished(folder, tmp_path):
    assert main(["infer", f"--input={folder}", *options(tmp_path)]) == 1
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*_seg.nii.gz")}
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    assert main(["infer", f"--input={folder}", *options(tmp_path)]) == 1  # refused without being told to
    assert main(["infer", f"--input={folder}", *options(tmp_path, "--skip_existing")]) == 0
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c", "d"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not (tmp_path / "out" / "failures.json").exists()


def test_restart_with_nothing_left_to_do(capsys, folder, tmp_path):
    for name in "bd":
        (folder / f"{name}.nii.gz").unlink()
    assert main(["infer", f"--input={folder}", *options(tmp_path)]) == 0
    before = label_maps(tmp_path)
    assert main(["infer", f"--input={folder}", *options(tmp_path, "--skip_existing=true")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert label_maps(tmp_path) == before


def test_killed_run_leaves_no_half_label_map_and_can_be_gone_on_with(folder, tmp_path):
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    code = (
        "import os, sys, monai_scaleequiv.data._writer as w, nibabel as nib\n"
        "save, done = nib.save, []\n"
        "def dying(image, path):\n"
        "    save(image, path)\n"
        "    done.append(path)\n"
        "    if len(done) == 2: os.kill(os.getpid(), 9)\n"
        "nib.save = dying\n"
        "from monai_scaleequiv.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["infer", f"--input={folder}", *options(tmp_path)]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    assert list(label_maps(tmp_path)) == ["a"]
    (left,) = (tmp_path / "out").glob(".*-b_seg.nii.gz")
    others = tmp_path / "out" / f".{os.getpid()}-b_seg.nii.gz.nii.gz"
    others.touch()
    assert main([*arguments, "--skip_existing"]) == 0
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c", "d"]
    assert not left.exists()
    assert others.exists()
    for name in label_maps(tmp_path):
        path = tmp_path / "out" / f"{name}_seg.nii.gz"
        assert nib.load(path).get_fdata().shape == (12, 12, 12)


def test_monai_bundle_run_goes_on_and_fails(folder, tmp_path):
    bundle = BUNDLES / "seunet_hippocampus_segmentation"
    arguments = [a.replace("--output=", "--output_dir=") for a in options(tmp_path)]
    command = [sys.executable, "-m", "monai.bundle", "run", f"--config_file={bundle / 'configs' / 'inference.json'}"]
    done = subprocess.run(
        [*command, f"--bundle_root={bundle}", f"--dataset_dir={folder}", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "2 of 4 volumes failed" in done.stderr
    assert sorted(label_maps(tmp_path)) == ["a", "c"]


def evaluator(data, tmp_path, post=None, net=None, **loading):
    transform = Compose([LoadImaged("image", ensure_channel_first=True)])
    return TolerantEvaluator(
        device="cpu",
        val_data_loader=DataLoader(TolerantDataset(data, transform), batch_size=1, **loading),
        network=net or torch.nn.Identity(),
        postprocessing=post,
        failures=tmp_path / "failures.json",
    )


def test_failures_in_workers_in_the_network_and_in_writing(folder, tmp_path):
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    cut(folder / "a.nii.gz")
    calls = []

    class Failing(torch.nn.Module):
        def forward(self, x):
            calls.append(x)
            if len(calls) == 1:
                raise RuntimeError("shape\nmismatch")
            return x

    def post(data):
        if "c.nii" in data["image"].meta["filename_or_obj"]:
            raise OSError("no such folder")
        return data

    run = evaluator(nifti_datalist(folder), tmp_path, post, Failing(), num_workers=1)
    with pytest.raises(RuntimeError, match=r"^3 of 4 volumes failed, listed in .*; mend them and run again") as refused:
        run.run()
    assert "\n" not in str(refused.value)
    texts = list(run.failures.values())
    assert list(run.failures) == [str(folder / f"{name}.nii.gz") for name in "abc"]
    assert texts[0].startswith(f"{folder / 'a.nii.gz'}: ")
    assert texts[1] == f"{folder / 'b.nii.gz'}: shape mismatch"
    assert texts[2] == f"{folder / 'c.nii.gz'}: no such folder"


SEGMENT_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=8k tmpfs "$0" || exit 77
"$@"; status=$?
ls -A "$0" > "$0.listing"
exit $status
"""


def test_full_disk_stops_at_once(tmp_path):
    """On a disk of 8 KiB, which has room for two label maps."""
    for name in "abcde":
        write_volume(tmp_path / "in" / f"{name}.nii.gz", shape=(12, 12, 12))
    cut(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "monai_scaleequiv", "infer", f"--input={tmp_path / 'in'}", *options(tmp_path)]
    shell = ["unshare", "-rm", "sh", "-c", SEGMENT_ON_A_SMALL_DISK, str(tmp_path / "out")]
    try:
        done = subprocess.run([*shell, *command], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if not (tmp_path / "out.listing").exists():
        pytest.skip(f"needs leave to mount a file system: {done.stderr}")
    assert done.returncode == 1
    assert (tmp_path / "out.listing").read_text().split() == ["a_seg.nii.gz", "c_seg.nii.gz"]
    last = done.stderr.splitlines()[-1]
    full = f"{tmp_path / 'out' / 'd_seg.nii.gz'}: expected a file that can be written, got No space left on device"
    assert last == f"error: {full}; make room."
    told = done.stdout
    assert f"{tmp_path / 'in' / 'b.nii.gz'}: expected a whole gzip stream" in told  # what was found out so far
    assert f"{tmp_path / 'out' / 'failures.json'}: expected a list of failed volumes that can be written to" in told
    assert "e.nii.gz" not in told + done.stderr


def test_full_device_stops_at_once(capsys, folder, tmp_path, monkeypatch):
    """Without leave to mount: what is written goes to a device that is always full."""
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    made = []

    def full(target):
        made.append(target.with_name(f".full-{target.name}"))
        made[-1].symlink_to("/dev/full")
        return made[-1]

    monkeypatch.setattr(_files, "_temporary", full)
    assert main(["infer", f"--input={folder}", *options(tmp_path)]) == 1
    err = capsys.readouterr().err.splitlines()
    full = f"{tmp_path / 'out' / 'a_seg.nii.gz'}: expected a file that can be written, got No space left on device"
    assert err == [f"error: {full}; make room."]
    assert len(made) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_file_that_may_not_be_as_large_is_told_by_its_own_line(folder, tmp_path):
    """With a limit to the size of a file, for real: others may be smaller, so the run goes on."""
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    write_volume(folder / "b.nii.gz", shape=(90, 90, 90))
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from monai_scaleequiv.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["infer", f"--input={folder}", *options(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    target = tmp_path / "out" / "b_seg.nii.gz"
    told = f"{folder / 'b.nii.gz'}: {target}: expected a file that can be written, got File too large; make room."
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == {str(folder / "b.nii.gz"): told}
    assert sorted(label_maps(tmp_path)) == ["a", "c", "d"]
    assert not list((tmp_path / "out").glob(".*"))


# The list of failures.


def listed(tmp_path):
    path = tmp_path / "failures.json"
    return {Path(file).name[0]: text for file, text in json.loads(path.read_text()).items()} if path.exists() else None


def failing(data, tmp_path, **more):
    with pytest.raises((RuntimeError, EOFError)) as refused:
        evaluator(data, tmp_path, **more).run()
    return str(refused.value)


def test_failures_stay_listed_until_their_volumes_succeed(folder, tmp_path):
    cut(folder / "d.nii.gz")
    failing(nifti_datalist(folder), tmp_path)
    before = listed(tmp_path)
    assert set(before) == {"b", "d"}
    write_volume(tmp_path / "good" / "x.nii.gz")
    evaluator(nifti_datalist(tmp_path / "good"), tmp_path).run()  # a good run on another folder
    assert listed(tmp_path) == before
    failing(nifti_datalist(folder / "b.nii.gz"), tmp_path)  # the one that fails again
    assert listed(tmp_path) == before
    cut(folder / "c.nii.gz")
    failing(nifti_datalist([folder / "a.nii.gz", folder / "c.nii.gz"]), tmp_path)
    assert set(listed(tmp_path)) == {"b", "c", "d"}
    for name in "bcd":
        write_volume(folder / f"{name}.nii.gz")
    evaluator(nifti_datalist(folder / "d.nii.gz"), tmp_path).run()
    assert set(listed(tmp_path)) == {"b", "c"}
    evaluator(nifti_datalist(folder), tmp_path).run()
    assert listed(tmp_path) is None


@pytest.mark.parametrize("content", ['{"name": "mine"}', "[1]", "mine", "{}", "", '{"a.nii": 3}', "[" * 10**5, "\xff"])
def test_file_of_another_kind_is_left_alone(folder, tmp_path, content):
    mine = tmp_path / "failures.json"
    mine.write_text(content, encoding="latin1")
    before = mine.read_bytes()
    evaluator(nifti_datalist(folder / "a.nii.gz"), tmp_path).run()
    assert mine.read_bytes() == before
    cut(folder / "d.nii.gz")
    told = failing(nifti_datalist(folder), tmp_path)
    assert mine.read_bytes() == before
    assert told.startswith("2 of 4 volumes failed; mend them")  # not "listed in"


def test_list_that_cannot_be_written_does_not_hide_the_summary(capsys, folder, tmp_path):
    (tmp_path / "failures.json").mkdir()
    cut(folder / "d.nii.gz")
    assert failing(nifti_datalist(folder), tmp_path).startswith("2 of 4 volumes failed; mend them")
    assert "failures.json: expected a list of failed volumes that can be written to, got" in capsys.readouterr().out


# Random weights.


@pytest.mark.parametrize("more", [[], ["--native"]])
def test_no_label_maps_from_random_weights(capsys, folder, tmp_path, more):
    arguments = [
        "infer",
        *more,
        f"--input={folder / 'a.nii.gz'}",
        f"--output={tmp_path / 'out'}",
        "--load_pretrain=false",
    ]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "error: load_pretrain: expected true, got false, which leaves random weights; leave it out, or"
    )
    assert err.count("\n") == 1
    assert not label_maps(tmp_path)
    assert main([*arguments, "--evaluator#pretrained=true"]) == 0
    assert list(label_maps(tmp_path)) == ["a"]


def test_torchscript_has_its_own_weights(folder, tmp_path):
    layer = torch.nn.Conv3d(1, 3, 1)
    torch.jit.script(layer).save(tmp_path / "model.ts")
    definition = f"--network_def=$torch.jit.load('{tmp_path / 'model.ts'}')"
    arguments = ["infer", f"--input={folder / 'a.nii.gz'}", f"--output={tmp_path / 'out'}", definition]
    assert main([*arguments, "--load_pretrain=false"]) == 0
    assert list(label_maps(tmp_path)) == ["a"]


def test_interrupt_is_not_taken_for_a_bad_volume(folder, tmp_path):
    class Interrupted(torch.nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    run = evaluator(nifti_datalist(folder / "a.nii.gz") * 2, tmp_path, net=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run.run()


def test_single_volume_raises_its_own_error(folder, tmp_path):
    run = evaluator(nifti_datalist(folder / "b.nii.gz"), tmp_path)
    with pytest.raises(RuntimeError) as refused:
        run.run()
    assert isinstance(root_cause(refused.value), EOFError)
    assert not (tmp_path / "failures.json").exists()


def test_overwriting_does_not_destroy_an_input(capsys, folder, tmp_path):
    mine = write_volume(folder / "a_seg.nii.gz", shape=(12, 12, 12))
    before = mine.read_bytes()
    arguments = options(tmp_path, "--overwrite=true")[1:]
    assert main(["infer", f"--input={folder}", f"--output={folder}", *arguments]) == 1
    assert "got another input; choose another output_dir" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_results_in_a_folder_of_the_input_are_no_inputs(folder, tmp_path):
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    arguments = ["infer", f"--input={folder}", *options(tmp_path)[1:], f"--output={folder / 'labels'}"]
    assert main(arguments) == 0
    (folder / "labels" / "b_seg.nii.gz").unlink()
    for more in ("--skip_existing", "--overwrite"):
        assert main([*arguments, more]) == 0
        names = sorted(path.name for path in (folder / "labels").iterdir())
        assert names == [f"{name}_seg.nii.gz" for name in "abcd"]


def test_restart_in_the_folder_of_the_input(folder, tmp_path):
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    arguments = ["infer", f"--input={folder}", *options(tmp_path)[1:], f"--output={folder}"]
    assert main(arguments) == 0
    (folder / "b_seg.nii.gz").unlink()
    assert main([*arguments, "--skip_existing"]) == 0
    assert sorted(path.name for path in folder.glob("*_seg*")) == [f"{name}_seg.nii.gz" for name in "abcd"]


def test_no_volume_stays_in_memory(folder, tmp_path):
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    alive, most = [], 0

    class Noting(torch.nn.Module):
        def forward(self, x):
            nonlocal most
            gc.collect()
            alive.append(weakref.ref(x))
            most = max(most, sum(ref() is not None for ref in alive))
            if len(alive) == 2:
                raise ValueError("bad volume")
            return x

    run = evaluator(nifti_datalist(folder) * 2, tmp_path, net=Noting())
    with pytest.raises(RuntimeError, match="1 of 8 volumes failed"):
        run.run()
    assert len(alive) == 8
    assert most <= 2  # this one, and the one before as the engine's last output


# Memory, measured.


@pytest.mark.slow
def test_memory_of_a_folder_does_not_grow_with_it(tmp_path):
    peaks = []
    for count in (16, 200):  # the allocator's own pools take a few volumes to fill
        for number in range(count):
            memory_run.write_image(tmp_path / f"in{count}" / f"{number}.nii", (128, 128, 96))
        peaks.append(memory_run.measure(tmp_path / f"out{count}", "bundle", 3, tmp_path / f"in{count}")["peak_bytes"])
    assert peaks[1] - peaks[0] < 32 * 2**20
