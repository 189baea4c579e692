"""``infer`` on a folder: going on after a bad volume and after an interruption, failures, what may be overwritten."""

import functools
import gc
import json
import os
import resource
import subprocess
import sys
import weakref
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_scaleequiv.cli import main
from monai_scaleequiv.cli._bundles import merged_record
from monai_scaleequiv.cli._overrides import override_value
from monai_scaleequiv.data import definition_of, one_line, write_record
from monai_scaleequiv.handlers import WeightsCheckpointLoader

from . import memory_run
from .conftest import BUNDLES, ROOT
from .fault_files import cut, write_volume

BUNDLE = BUNDLES / "seunet_hippocampus_segmentation"
CONFIGS = {"config_file": "inference", "meta_file": "metadata"}
DEFINITION = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}


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


@pytest.fixture
def whole(folder):
    """The same without anything wrong."""
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    return folder


def options(tmp_path, *more, output="out"):
    weights = memory_run.write_weights(tmp_path / "weights.pt", 3)
    given = {"network_def": json.dumps(DEFINITION), "ckpt_path": weights, "roi_size": "[12,12,12]"}
    return [f"--output={tmp_path / output}", *(f"--{k}={v}" for k, v in given.items()), *more]


def infer(tmp_path, source, *more, output="out"):
    return main(["infer", f"--input={source}", *options(tmp_path, *more, output=output)])


def in_a_fork(before, *arguments):
    """Exit status of the command in a process that has all modules already; ``before`` is called there first."""
    child = os.fork()
    if not child:
        status = 70
        try:
            torch.set_num_threads(1)  # GNU's OpenMP has no threads left after a fork
            before()
            status = main(arguments)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def label_maps(tmp_path):
    found = (tmp_path / "out").glob("*_seg.nii.gz")
    return {path.name[0]: path.read_bytes() for path in sorted(found) if not path.name.startswith(".")}


def listed(tmp_path):
    path = tmp_path / "out" / "failures.json"
    return {Path(file).name[0]: text for file, text in json.loads(path.read_text()).items()} if path.exists() else None


def test_a_bad_volume_does_not_stop_the_others(capsys, folder, tmp_path):
    assert infer(tmp_path, folder) == 1
    out, err = capsys.readouterr()
    assert sorted(label_maps(tmp_path)) == ["a", "c"]
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    cut_off, nan = (str(folder / f"{name}.nii.gz") for name in "bd")
    assert list(failures) == [cut_off, nan]
    assert failures[cut_off].startswith(f"{cut_off}: expected a whole gzip stream, got one that is cut off")
    assert failures[nan].startswith(f"{nan}, image: expected finite values, got 1 NaN")
    assert err.startswith(f"error: 2 of 4 volumes failed, listed in {tmp_path / 'out' / 'failures.json'}; correct them")
    assert err.count("\n") == 1
    assert all(text in out for text in failures.values())  # at once, one line each


def test_weights_are_read_once_and_finished_volumes_never(capsys, whole, tmp_path, monkeypatch):
    calls, load = [], WeightsCheckpointLoader.__call__
    monkeypatch.setattr(WeightsCheckpointLoader, "__call__", lambda *a: (calls.append(1), load(*a)))
    assert infer(tmp_path, whole, "--dataloader#batch_size=2") == 0  # they go one by one all the same
    before = label_maps(tmp_path)
    assert (len(calls), list(before)) == (1, list("abcd"))
    assert infer(tmp_path, whole, "--skip_existing=true") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert label_maps(tmp_path) == before


def test_weights_as_lightning_saves_them(whole, tmp_path):
    source, arguments = whole / "a.nii.gz", options(tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert main(["infer", f"--input={source}", *arguments]) == 0
    plain = np.asarray(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj).copy()
    wrapped = {"epoch": 3, "state_dict": {f"net.{name}": value for name, value in weights.items()}}
    torch.save(wrapped, tmp_path / "weights.pt")
    assert main(["infer", f"--input={source}", *arguments, "--overwrite"]) == 0
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj, plain)


def test_weights_that_do_not_fit_are_no_bad_volume(capsys, whole, tmp_path):
    arguments = options(tmp_path)
    torch.save(torch.nn.Conv3d(2, 3, 1).state_dict(), tmp_path / "weights.pt")
    assert main(["infer", f"--input={whole}", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'weights.pt'}: expected weights of this Conv3d, got others")
    assert err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_restart_skips_what_is_finished(capsys, folder, tmp_path):
    assert infer(tmp_path, folder) == 1
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*_seg.nii.gz")}
    for name in "bd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    assert infer(tmp_path, folder) == 1  # nothing is replaced unasked
    assert infer(tmp_path, folder, "--skip_existing") == 0
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c", "d"]
    assert listed(tmp_path) is None
    assert infer(tmp_path, folder, "--skip_existing=true") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_restart_with_other_weights_leaves_no_mixture(capsys, whole, tmp_path):
    assert infer(tmp_path, f"{whole / 'a.nii.gz'},{whole / 'b.nii.gz'}") == 0
    edited = tmp_path / "out" / "b_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(edited).dataobj), np.eye(4)), edited)  # says nothing of its making
    before = label_maps(tmp_path)
    weights = memory_run.write_weights(tmp_path / "others.pt", 3)
    torch.save({name: 2 * value for name, value in torch.load(weights, weights_only=True).items()}, weights)
    others = [f"--ckpt_path={weights}", "--skip_existing"]
    assert infer(tmp_path, whole, *others) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'out' / 'a_seg.nii.gz'}: expected a result of weights ")
    assert err.count("\n") == 1
    assert label_maps(tmp_path) == before
    assert infer(tmp_path, whole / "a.nii.gz", others[0], "--overwrite") == 0
    assert infer(tmp_path, whole, *others) == 0
    after = label_maps(tmp_path)
    assert [name for name in "abcd" if before.get(name) == after[name]] == ["b"]


def test_killed_run_leaves_no_half_label_map_and_can_be_gone_on_with(whole, tmp_path):
    save, done = nib.save, []

    def dying(image, path):
        save(image, path)
        done.append(path)
        if len(done) == 2:
            os.kill(os.getpid(), 9)

    arguments = ["infer", f"--input={whole}", *options(tmp_path, "--device=cpu")]  # CUDA survives no fork
    assert in_a_fork(lambda: setattr(nib, "save", dying), *arguments) == -9
    assert list(label_maps(tmp_path)) == ["a"]
    (left,) = (tmp_path / "out").glob(".*b_seg.nii.gz")
    os.utime(left, (0, 0))  # a writer's file of long ago
    others = tmp_path / "out" / ".notes"
    others.touch()
    assert main([*arguments, "--skip_existing"]) == 0
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c", "d"]
    assert not left.exists()
    assert others.exists()
    for name in label_maps(tmp_path):
        assert nib.load(tmp_path / "out" / f"{name}_seg.nii.gz").get_fdata().shape == (12, 12, 12)


def test_monai_bundle_run_stops_at_a_bad_volume(folder, tmp_path):
    texts = dict(option.removeprefix("--").split("=", 1) for option in options(tmp_path))
    given = {id: override_value(text) for id, text in texts.items() if id != "output"}
    given |= {"bundle_root": str(BUNDLE), "dataset_dir": str(folder), "output_dir": str(tmp_path / "out")}
    files = {name: str(BUNDLE / "configs" / f"{file}.json") for name, file in CONFIGS.items()}
    with pytest.raises(RuntimeError) as raised:
        monai.bundle.run(**files, **given, device="cpu")
    assert "expected a whole gzip stream" in one_line(raised.value)
    assert sorted(label_maps(tmp_path)) == ["a"]


@pytest.fixture
def on_forward(monkeypatch):
    """Takes a function that is called with whatever the network is."""
    forward = torch.nn.Conv3d.forward
    return lambda f: monkeypatch.setattr(torch.nn.Conv3d, "forward", lambda self, x: (f(x), forward(self, x))[1])


def test_failures_in_workers_in_the_network_and_in_writing(capsys, whole, tmp_path, monkeypatch, on_forward):
    cut(whole / "a.nii.gz")
    calls, save = [], nib.save

    def mismatch(x):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("shape\nmismatch")

    def full(image, path):
        if "c_seg" in str(path):
            raise OSError(5, "Input/output error")
        save(image, path)

    on_forward(mismatch)
    monkeypatch.setattr(nib, "save", full)
    assert infer(tmp_path, whole, "--num_workers=1") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: 3 of 4 volumes failed, listed in ")
    assert err.count("\n") == 1
    texts = listed(tmp_path)
    assert list(texts) == ["a", "b", "c"]
    assert texts["a"].startswith(f"{whole / 'a.nii.gz'}: ")
    assert texts["b"] == f"{whole / 'b.nii.gz'}: shape mismatch"
    assert texts["c"].startswith(f"{whole / 'c.nii.gz'}: {tmp_path / 'out' / 'c_seg.nii.gz'}: expected a file")


def test_interrupt_is_not_taken_for_a_bad_volume(whole, tmp_path, on_forward):
    def interrupted(x):
        raise KeyboardInterrupt

    on_forward(interrupted)
    assert infer(tmp_path, whole) == 130
    assert listed(tmp_path) is None


def test_no_volume_stays_in_memory(capsys, whole, tmp_path, on_forward):
    for name in "efgh":
        write_volume(whole / f"{name}.nii.gz", shape=(12, 12, 12))
    alive, most = [], 0

    def noting(x):
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(x))
        most = max(most, sum(ref() is not None for ref in alive))
        if len(alive) == 2:
            raise ValueError("bad volume")

    on_forward(noting)
    gc.freeze()  # what there is already takes long to look through
    assert infer(tmp_path, whole, '--inferer={"_target_": "SimpleInferer"}') == 1  # the network sees the volume itself
    gc.unfreeze()
    assert "1 of 8 volumes failed" in capsys.readouterr().err
    assert len(alive) == 8
    assert most <= 2  # this one, and the one before as the engine's last output


SMALL_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$0" || exit 77
touch "$2.mounted"; target=$0; listing=$2; shift 2
"$@"; status=$?
ls -A "$target" > "$listing.listing"
exit $status
"""


def on_a_small_disk(tmp_path, place, size, *arguments):
    """Runs the command where a folder is a file system of its own."""
    command = [sys.executable, "-m", "monai_scaleequiv", "infer", *arguments]
    shell = ["unshare", "-rm", "sh", "-c", SMALL_DISK, str(place), size, str(tmp_path / "disk")]
    try:
        done = subprocess.run([*shell, *command], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if not (tmp_path / "disk.mounted").exists():
        pytest.skip(f"needs leave to mount a file system: {done.stderr}")
    assert done.returncode == 1
    return done


@pytest.mark.slow
def test_full_disk_stops_at_once(tmp_path):
    """On a disk of 8 KiB, which has room for two label maps."""
    for name in "abcde":
        write_volume(tmp_path / "in" / f"{name}.nii.gz", shape=(12, 12, 12))
    cut(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "out").mkdir()
    done = on_a_small_disk(tmp_path, tmp_path / "out", "8k", f"--input={tmp_path / 'in'}", *options(tmp_path))
    assert (tmp_path / "disk.listing").read_text().split() == ["a_seg.nii.gz", "c_seg.nii.gz"]
    last = done.stderr.splitlines()[-1]
    full = f"{tmp_path / 'out' / 'd_seg.nii.gz'}: expected a file that can be written, got No space left on device"
    assert last == f"error: {full}; make room."
    assert f"{tmp_path / 'in' / 'b.nii.gz'}: expected a whole gzip stream" in done.stdout  # what was found out so far
    assert f"{tmp_path / 'out' / 'failures.json'}: expected a list of failed volumes that can be written" in done.stdout
    assert "e.nii.gz" not in done.stdout + done.stderr


@pytest.mark.slow
def test_little_shared_memory_is_named_in_one_line(whole, tmp_path):
    for name in "abcd":
        write_volume(whole / f"{name}.nii.gz", shape=(40, 40, 40))
    arguments = [f"--input={whole}", *options(tmp_path, "--num_workers=1")]
    done = on_a_small_disk(tmp_path, "/dev/shm", "64k", *arguments)
    assert done.stderr.startswith("error: num_workers: expected ")
    assert "shared memory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_full_device_stops_at_once(capsys, whole, tmp_path, monkeypatch):
    """Without leave to mount: saving fails as on a full device, from the second volume on."""
    save, done = nib.save, []

    def full(image, path):
        done.append(path)
        if len(done) > 1:
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", full)
    assert infer(tmp_path, whole) == 1
    err = capsys.readouterr().err.splitlines()
    expected = f"{tmp_path / 'out' / 'b_seg.nii.gz'}: expected a file that can be written, got No space left on device"
    assert err == [f"error: {expected}; make room."]
    assert len(done) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_seg.nii.gz"]


def test_file_that_may_not_be_as_large_is_reported_in_its_own_line(whole, tmp_path):
    """With a limit to the size of a file, for real: others may be smaller, so the run goes on."""
    write_volume(whole / "b.nii.gz", shape=(90, 90, 90))
    arguments = ["infer", f"--input={whole}", *options(tmp_path, "--device=cpu")]  # CUDA survives no fork
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000))
    assert in_a_fork(limit, *arguments) == 1
    target = tmp_path / "out" / "b_seg.nii.gz"
    text = f"{whole / 'b.nii.gz'}: {target}: expected a file that can be written, got File too large; make room."
    assert listed(tmp_path) == {"b": text}
    assert sorted(label_maps(tmp_path)) == ["a", "c", "d"]
    assert not list((tmp_path / "out").glob(".*"))


def test_failures_stay_listed_until_their_volumes_succeed(folder, tmp_path):
    def run(*names):
        return infer(tmp_path, ",".join(str(folder / f"{name}.nii.gz") for name in names), "--overwrite")

    assert run(*"abcd") == 1
    before = listed(tmp_path)
    assert set(before) == {"b", "d"}
    write_volume(tmp_path / "good" / "x.nii.gz", shape=(12, 12, 12))
    assert infer(tmp_path, tmp_path / "good") == 0  # a good run on another folder
    assert listed(tmp_path) == before
    assert run(*"ab") == 1  # the one that fails again
    assert listed(tmp_path) == before
    cut(folder / "c.nii.gz")
    assert run(*"ac") == 1
    assert set(listed(tmp_path)) == {"b", "c", "d"}
    for name in "bcd":
        write_volume(folder / f"{name}.nii.gz", shape=(12, 12, 12))
    assert run("d") == 0
    assert set(listed(tmp_path)) == {"b", "c"}
    assert run(*"abcd") == 0
    assert listed(tmp_path) is None


def test_single_volume_raises_its_own_error(capsys, folder, tmp_path, on_forward):
    def mismatch(x):
        raise ValueError("shape mismatch")

    on_forward(mismatch)
    for name, text in {"a": "shape mismatch\n", "b": f"{folder / 'b.nii.gz'}: expected a whole gzip stream"}.items():
        assert infer(tmp_path, folder / f"{name}.nii.gz") == 1
        assert capsys.readouterr().err.startswith(f"error: {text}")
    assert listed(tmp_path) is None


def test_file_of_another_kind_is_left_alone(capsys, folder, tmp_path):
    mine = tmp_path / "out" / "failures.json"
    mine.parent.mkdir()
    two = ",".join(str(folder / name) for name in ("a.nii.gz", "b.nii.gz"))
    for content in ('{"name": "mine"}', "[1]", "mine", "{}", "", '{"a.nii": 3}', "[" * 10**5, "\xff"):
        mine.write_text(content, encoding="latin1")
        before = mine.read_bytes()
        assert infer(tmp_path, two, "--overwrite") == 1
        assert "error: 1 of 2 volumes failed; correct them" in capsys.readouterr().err  # not "listed in"
        assert mine.read_bytes() == before
    assert infer(tmp_path, folder / "a.nii.gz", "--overwrite") == 0
    assert mine.read_bytes() == before
    mine.unlink()
    mine.mkdir()
    capsys.readouterr()
    assert infer(tmp_path, two, "--overwrite") == 1
    out, err = capsys.readouterr()
    assert "error: 1 of 2 volumes failed; correct them" in err
    assert "failures.json: expected a list of failed volumes that can be written to, got" in out


@pytest.mark.parametrize("more", [[], ["--native"]])
def test_no_label_maps_from_random_weights(capsys, folder, tmp_path, more):
    arguments = [f"--input={folder / 'a.nii.gz'}", f"--output={tmp_path / 'out'}", "--load_pretrain=false"]
    assert main(["infer", *more, *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: network: expected weights, got the random ones of a new ")
    assert err.count("\n") == 1
    assert not label_maps(tmp_path)


def test_torchscript_has_its_own_weights(folder, tmp_path):
    torch.jit.script(torch.nn.Conv3d(1, 3, 1)).save(tmp_path / "model.ts")
    definition = f"--network_def=$torch.jit.load('{tmp_path / 'model.ts'}')"
    arguments = ["infer", f"--input={folder / 'a.nii.gz'}", f"--output={tmp_path / 'out'}", definition]
    assert main([*arguments, "--load_pretrain=false"]) == 0
    assert list(label_maps(tmp_path)) == ["a"]


# What may be overwritten, and what is no input.


def test_overwriting_does_not_destroy_an_input(capsys, folder, tmp_path):
    mine = write_volume(folder / "a_seg.nii.gz", shape=(12, 12, 12))
    before = mine.read_bytes()
    assert infer(tmp_path, folder, "--overwrite=true", output="in") == 1
    assert " input; choose another output_dir" in capsys.readouterr().err
    assert mine.read_bytes() == before


@pytest.mark.parametrize("output", ["in", "in/labels"])
def test_results_in_a_folder_of_the_input_are_no_inputs(whole, tmp_path, output):
    assert infer(tmp_path, whole, output=output) == 0
    (tmp_path / output / "b_seg.nii.gz").unlink()
    assert infer(tmp_path, whole, "--skip_existing", output=output) == 0
    if output != "in":
        assert infer(tmp_path, whole, "--overwrite", output=output) == 0
    names = sorted(path.name for path in (tmp_path / output).glob("*_seg*"))
    assert names == [f"{name}_seg.nii.gz" for name in "abcd"]


# What the training has recorded, links and channels.


def test_what_the_training_recorded_is_used_and_compared(capsys, whole, tmp_path):
    arguments = ["infer", f"--input={whole / 'a.nii.gz'}", *options(tmp_path)[:1]]
    weights = memory_run.write_weights(tmp_path / "model.pt", 5)
    record = {"network_def": definition_of(torch.nn.Conv3d(1, 5, 1)), "num_classes": 5, "spacing": [2, 2, 2]}
    write_record(tmp_path / "model.json", record)
    arguments += [f"--ckpt_path={weights}", f"--network_def={json.dumps(DEFINITION)}"]
    right = "--network_def#out_channels=5"
    for more, text in (
        (["--num_classes=3", right], "expected num_classes=5 as in its training, got 3"),
        (["--spacing=[1,1,1]", right], "expected spacing=[2, 2, 2] as in its training, got [1, 1, 1]"),
        ([], "expected network_def#out_channels=5 as in its training, got 3"),
    ):
        assert main([*arguments, *more]) == 1
        err = capsys.readouterr().err
        assert f"{weights}: {text}" in err
        assert err.count("\n") == 1
    assert not label_maps(tmp_path)
    assert main([*arguments, right]) == 0
    assert np.asarray(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj).max() == 4


def test_recorded_network_keeps_what_its_record_cannot_hold():
    configured = {"_target_": "a.Net", "size": 1, "hidden": "@x", "inner": DEFINITION}
    parser = ConfigParser({"ckpt_path": "", "network_def": configured, "x": 2})
    for recorded, expected in (
        ({"_target_": "Net", "size": 3}, {**configured, "size": 3}),
        ({"_target_": "Other", "size": 3}, {"_target_": "Other", "size": 3}),
        (
            {"_target_": "Net", "inner": {"_target_": "Conv3d", "out_channels": 4}},
            {**configured, "inner": {**DEFINITION, "out_channels": 4}},
        ),
        ({"_target_": "Net", "inner": {"_target_": "Other"}}, {**configured, "inner": {"_target_": "Other"}}),
    ):
        assert merged_record(parser, {"network_def": recorded, "spacing": [1]}) == {"network_def": expected}


def test_links_are_followed_and_a_dangling_one_is_a_failure(capsys, whole, tmp_path):
    (tmp_path / "linked").symlink_to(whole)
    (tmp_path / "set").mkdir()
    write_volume(tmp_path / "set" / "e.nii.gz", shape=(12, 12, 12))
    (tmp_path / "set" / "more").symlink_to(whole)
    (tmp_path / "set" / "f.nii.gz").symlink_to(tmp_path / "not" / "fetched.nii.gz")
    assert infer(tmp_path, tmp_path / "set") == 1
    assert sorted(label_maps(tmp_path)) == ["a", "b", "c", "d", "e"]
    assert list(listed(tmp_path)) == ["f"]
    assert "1 of 6 volumes failed" in capsys.readouterr().err


def test_several_channels_of_a_case(capsys, tmp_path):
    for case in "ab":
        for channel in (0, 1):
            write_volume(tmp_path / "in" / f"{case}_000{channel}.nii.gz", shape=(12, 12, 12))
    torch.save(torch.nn.Conv3d(2, 3, 1).state_dict(), tmp_path / "two.pt")
    two = ["--in_channels=2", f"--ckpt_path={tmp_path / 'two.pt'}"]
    two.append(f"--network_def={json.dumps({**DEFINITION, 'in_channels': 2})}")
    assert infer(tmp_path, tmp_path / "in", *two) == 0
    assert sorted(label_maps(tmp_path)) == ["a", "b"]
    (tmp_path / "in" / "b_0001.nii.gz").unlink()
    assert infer(tmp_path, tmp_path / "in", *two, "--overwrite") == 1
    assert "b_000" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_of_a_folder_does_not_grow_with_it(tmp_path):
    code = (
        "import sys\nfrom monai_scaleequiv.cli import main\nfrom tests.memory_run import own_peak\n"
        "status = main(sys.argv[1:])\nsys.stdout.write(f'\\n{own_peak()}')\nsys.exit(status)\n"
    )
    peaks = []
    for count in (16, 100):  # the allocator's own pools take a few volumes to fill
        for number in range(count):
            memory_run.write_image(tmp_path / f"in{count}" / f"{number}.nii", (128, 128, 96))
        arguments = [f"--input={tmp_path / f'in{count}'}", *options(tmp_path, "--roi_size=[96,96,96]")]
        arguments[1] = f"--output={tmp_path / f'out{count}'}"
        command = [sys.executable, "-c", code, "infer", *arguments]
        peaks.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 64 * 2**20  # 84 volumes have 126 MiB as bytes alone
