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
PERMUTED = np.array([[0, 1.7, 0, -9], [0, 0, -0.8, 30], [1.5, 0, 0, 4], [0, 0, 0, 1]])
FINE = np.array([[0, -0.6, 0, -9], [0.9, 0, 0, 30], [0, 0, 2.5, 4], [0, 0, 0, 1]])
CASES = {
    "plain": ((30, 21, 26), np.eye(4)),
    "flipped": ((13, 30, 9), np.diag([-1.0, -1, 1, 1])),
    "permuted": ((30, 21, 26), PERMUTED),
    "fine": ((13, 30, 9), FINE),
}


def preprocessing(*more):
    return Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1, 1, 1)),
            *more,
            NormalizeIntensityd("image"),
        ]
    )


def noise(folder, case="plain"):
    shape, affine = CASES[case]
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return write_volume(folder / f"{case}.nii.gz", values, affine)


def loaded(file, transform):
    return next(iter(DataLoader(Dataset([{"image": str(file)}], transform), batch_size=1)))["image"]


def sheared(cosine, spacing, turn=0.0):
    """Axes of a file of which two have that cosine, turned about the third."""
    axes = np.eye(3)
    axes[:2, 1] = [cosine, np.sqrt(1 - cosine**2)]
    angle = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = angle @ axes * spacing
    return affine


def network(classes=5):
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(8, classes, 3, padding=1)
    )


def plain_labels(image, net, windows, transform):
    """What MONAI's parts make of an image."""
    with torch.no_grad():
        pred = windows(image, net)
    data = {"image": decollate_batch(image)[0], "pred": decollate_batch(pred)[0]}
    invert = Invertd("pred", transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    post = Compose([Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)])
    return post(data)["pred"]


# The same label map without the maps of all classes.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("roi", [(16, 16, 16), (12, 20, 10), (40, 16, 16)], ids=str)
@pytest.mark.parametrize(("batch", "mode", "overlap"), [(1, "gaussian", 0.25), (3, "constant", 0.6)])
def test_label_map_is_that_of_the_plain_path(tmp_path, case, roi, batch, mode, overlap):
    transform, net = preprocessing(), network()
    image = loaded(noise(tmp_path, case), transform)
    windows = SlidingWindowInferer(roi, batch, overlap, mode)
    expected = plain_labels(image, net, windows, transform)
    found = decollate_batch(LabelMapInferer(windows, 5)(image, net))[0]
    assert found.dtype == torch.uint8
    assert found.shape[1:] == CASES[case][0]
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert found.meta["filename_or_obj"] == expected.meta["filename_or_obj"]
    assert len(np.unique(found)) == 5


@pytest.mark.parametrize("roi", [(16, 16, 16), (60, 60, 6), (20, 60, 60)], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize(("cosine", "turn"), [(0.002, 0), (0.0099, 0), (-0.0099, 0.4)])
def test_label_map_of_a_file_with_a_small_shear(tmp_path, cosine, turn, order, roi):
    """Such as the data check takes: at the far end, slices lie half a voxel away."""
    affine = sheared(cosine, [1.2, -0.8, 2.5], turn)[:, [*order, 3]]
    shape = [(60, 50, 6)[axis] for axis in order]
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    file = write_volume(tmp_path / "in" / "a.nii.gz", values, affine)
    transform, net, windows = preprocessing(), network(), SlidingWindowInferer(roi, 2, 0.25, "gaussian")
    image = loaded(file, transform)
    expected = plain_labels(image, net, windows, transform).numpy()
    found = decollate_batch(LabelMapInferer(windows, 5)(image, net))[0]
    assert found.shape[1:] == tuple(shape)
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    assert (found.numpy() == expected).mean() > 0.9999
    unsheared = torch.as_tensor(sheared(0, [1.2, -0.8, 2.5], turn)[:, [*order, 3]])
    image.meta["original_affine"] = [unsheared] if isinstance(image.meta["original_affine"], list) else unsheared[None]
    if abs(cosine) > 0.005:  # it makes a difference
        assert (LabelMapInferer(windows, 5)(image, net)[0].numpy() == expected).mean() < 0.99


@pytest.mark.parametrize("affine", [PERMUTED, sheared(0.0099, [1.2, -0.8, 2.5], 0.4)], ids=["permuted", "sheared"])
def test_small_pieces_make_the_same_label_map(tmp_path, monkeypatch, affine):
    transform, net, windows = preprocessing(), network(), SlidingWindowInferer((12, 12, 12), 1, 0.25, "gaussian")
    image = loaded(write_volume(tmp_path / "a.nii.gz", shape=(30, 21, 26), affine=affine), transform)
    at_once = LabelMapInferer(windows, 5)(image, net)
    monkeypatch.setattr(_stitching, "PIECE", 1)
    monkeypatch.setattr("monai_scaleequiv.data._file_grid.CHUNK", 1)
    assert torch.equal(LabelMapInferer(windows, 5)(image, net).as_tensor(), at_once.as_tensor())


def test_stitching_is_that_of_monai_along_each_axis():
    image, net = torch.randn(1, 1, 21, 18, 25), network(2)
    for axis, windows in itertools.product(range(3), (SlidingWindowInferer((8, 20, 9), 2, 0.5, "gaussian"),)):
        with torch.no_grad():
            pieces = torch.cat(list(_stitching.stitched_pieces(image, net, windows, axis)), 1 + axis)
            torch.testing.assert_close(pieces, windows(image, net)[0], atol=1e-5, rtol=1e-5)


def test_no_more_than_a_window_s_thickness_of_class_maps_is_kept(tmp_path, monkeypatch):
    largest = 0
    zeros = torch.zeros

    def noting(*args, **kwargs):
        nonlocal largest
        made = zeros(*args, **kwargs)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch, "zeros", noting)
    image = torch.randn(1, 1, 20, 20, 200)
    LabelMapInferer(SlidingWindowInferer((10, 10, 10), 1, 0.25), 4)(image, torch.nn.Conv3d(1, 4, 1))
    assert largest == 4 * 20 * 20 * 10


def test_windows_in_millimetres_and_further_maps(tmp_path):
    transform = Compose([LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None)])
    image, net = loaded(noise(tmp_path, "permuted"), transform), network(4)
    windows = MillimetreWindowInferer((20, 20, 20))
    spacing = [float(n) for n in image.pixdim[0]]

    def told(x, spacing):
        return net(x)

    with torch.no_grad():
        stitched = decollate_batch(windows(image, told, spacing=spacing))[0]
    found = decollate_batch(LabelMapInferer(windows, 3, maps=1)(image, told, spacing=spacing))[0]
    orient = Invertd("pred", transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    expected = orient({"image": decollate_batch(image)[0], "pred": stitched})["pred"]
    assert found.shape == (2, *CASES["permuted"][0])
    np.testing.assert_array_equal(found[0].numpy(), expected[:3].argmax(0).numpy())
    np.testing.assert_allclose(found[1].numpy(), expected[3].numpy(), atol=1e-5)


@pytest.mark.parametrize("more", [CenterSpatialCropd("image", (9, 9, 9)), Rotated("image", 0.3)], ids=["crop", "turn"])
def test_preprocessing_that_cannot_be_undone_is_refused(tmp_path, more):
    file = noise(tmp_path)
    image = loaded(file, preprocessing(more))
    with pytest.raises(ValueError, match=r", pred: expected preprocessing that .*; ") as refused:
        LabelMapInferer(SlidingWindowInferer((8, 8, 8)), 5)(image, network())
    assert str(file) in str(refused.value)


def nan_network(x):
    return torch.full((len(x), 2, *x.shape[2:]), torch.nan)


@pytest.mark.parametrize(
    ("options", "net", "told"),
    [
        ({"num_classes": 1}, None, "num_classes: expected 2 to 256, got 1"),
        ({"num_classes": 257}, None, "num_classes: expected 2 to 256, got 257"),
        ({"maps": -1}, None, "maps: expected at least 0"),
        (
            {"windows": SlidingWindowInferer(8, -1)},
            None,
            "sw_batch_size: expected a whole number .*, got -1",
        ),
        ({"windows": SlidingWindowInferer(8, 0)}, None, "sw_batch_size: expected a whole number of at least 1, got 0"),
        ({"windows": SlidingWindowInferer(8, 1.5)}, None, "sw_batch_size: expected a whole number .*, got 1.5"),
        ({"windows": MillimetreWindowInferer((8, 8, 8), -1)}, None, "sw_batch_size: expected a whole number"),
        ({"windows": SlidingWindowInferer(8, 1, 1.0)}, None, "overlap: expected a share from 0 to below 1, got 1.0"),
        (
            {"windows": SlidingWindowInferer(8, 1, (0, -0.5, 0))},
            None,
            r"overlap: expected a share .*, got \(0, -0.5, 0\)",
        ),
        ({"windows": SlidingWindowInferer(8, 1, float("nan"))}, None, "overlap: expected a share .*, got nan"),
        ({"windows": 3}, None, "windows: expected a SlidingWindowInferer, got int"),
        ({"windows": SlidingWindowInferer(8, buffer_steps=2)}, None, "windows: expected no buffer_steps"),
        ({}, torch.nn.Conv3d(1, 3, 1), r"pred: expected 2 channel\(s\), got 3"),
        ({}, nan_network, r"pred: expected finite values, got \d+ NaN .*; check the weights, and try --amp=false"),
        ({}, lambda x: x[..., ::2], r"network: expected windows of \(8, 8, 8\) back, got \(8, 8, 4\)"),
        ({}, lambda x: [x], "network: expected a tensor, got list"),
    ],
)
def test_arguments_and_networks_that_do_not_fit(options, net, told):
    windows = SlidingWindowInferer((8, 8, 8))
    with pytest.raises(ValueError, match=told) as refused:
        LabelMapInferer(**{"windows": windows, "num_classes": 2, **options})(torch.rand(1, 1, 12, 12, 12), net)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [0, 7])
def test_no_label_map_of_memory_that_nothing_was_written_to(count):
    grid = file_grid(torch.rand(1, 8, 9, 10), "image")
    pieces = torch.rand(2, 8, 9, 10)[:, :count].split(1, 1) if count else []
    with pytest.raises(RuntimeError, match=f"scores: expected 8 slices, got {count}; please report it"):
        grid.labels(pieces, 0, 2)


def test_one_image_at_a_time():
    with pytest.raises(ValueError, match="expected one image at a time, got 2; set batch_size to 1"):
        LabelMapInferer(SlidingWindowInferer((8, 8, 8)), 2)(torch.rand(2, 1, 8, 8, 8), nan_network)


# Out of memory.


def small_network(most, error=torch.OutOfMemoryError):
    """A network on a device that has room for so many windows."""
    layer, seen = torch.nn.Conv3d(1, 2, 1), []

    def run(x):
        seen.append(len(x))
        if len(x) > most:
            raise error("CUDA out of memory. Tried to allocate 9 GiB.")
        return layer(x)

    return run, layer, seen


def test_out_of_memory_falls_back_to_one_window_at_a_time():
    image = torch.randn(1, 1, 20, 20, 20)
    run, layer, seen = small_network(most=1)
    infer = LabelMapInferer(SlidingWindowInferer((8, 8, 8), 4, 0.25), 2)
    with pytest.warns(
        UserWarning, match=r"^out of memory \(CUDA out of memory.*one window at a time now, .* on the CPU"
    ):
        found = infer(image, run)
    assert seen[0] == 4
    assert set(seen[1:]) == {1}
    assert torch.equal(found, LabelMapInferer(SlidingWindowInferer((8, 8, 8), 4, 0.25), 2)(image, layer))
    assert infer.windows.sw_batch_size == 4  # the next image starts as asked for


def test_out_of_memory_with_one_window_is_raised():
    run, _, seen = small_network(most=0)
    with pytest.raises(torch.OutOfMemoryError):
        LabelMapInferer(SlidingWindowInferer((8, 8, 8), 1), 2)(torch.randn(1, 1, 20, 20, 20), run)
    assert seen == [1]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError])
def test_no_other_error_is_taken_for_out_of_memory(error):
    run, _, seen = small_network(most=1, error=error)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match="CUDA out of memory"):
            LabelMapInferer(SlidingWindowInferer((8, 8, 8), 4), 2)(torch.randn(1, 1, 20, 20, 20), run)
    assert seen == [4]


def test_sums_that_do_not_fit_a_device_go_to_the_cpu(monkeypatch):
    class SmallDevice(_stitching._Sums):
        def __init__(self, device, *args):
            if torch.device(device).type != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().__init__(device, *args)

    monkeypatch.setattr(_stitching, "_Sums", SmallDevice)
    windows = SlidingWindowInferer((8, 8, 8), 1, device="cuda")
    with pytest.warns(UserWarning, match="out of memory"):
        found = LabelMapInferer(windows, 2)(torch.randn(1, 1, 9, 9, 9), torch.nn.Conv3d(1, 2, 1))
    assert found.device.type == "cpu"
    assert torch.device(windows.device).type == "cuda"  # the next image starts as asked for


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_out_of_memory_on_a_gpu():
    image, layer = torch.randn(1, 1, 64, 64, 64, device="cuda"), torch.nn.Conv3d(1, 2, 1).cuda()

    def greedy(x):
        if len(x) > 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return layer(x)

    windows = SlidingWindowInferer((32, 32, 32), 2)
    with pytest.warns(UserWarning, match="out of memory"):
        found = LabelMapInferer(windows, 2)(image, greedy)
    assert torch.equal(found, LabelMapInferer(windows, 2)(image, layer))


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


def test_overwrite_and_skip_existing_exclude_each_other(folder):
    with pytest.raises(ValueError, match="skip_existing: expected overwrite=false with it, got true; choose one"):
        nifti_datalist(folder, overwrite=True, skip_existing=True)


def test_volume_that_lacks_a_result_is_run_again(tmp_path, folder):
    results = tmp_path / "out"
    results.mkdir()
    for name in ("a_seg", "a_scale", "b_seg", "c_seg", "d_seg", "d_scale"):
        (results / f"{name}.nii.gz").write_bytes(b"mine")
    (results / "d_seg.nii.gz").write_bytes(b"")  # no program finishes with an empty file
    left = nifti_datalist(folder, results=results, postfix=["seg", "scale"], skip_existing=True)
    assert [Path(item["image"]).name[0] for item in left] == ["b", "c", "d"]


@pytest.mark.parametrize("more", [{"overwrite": True}, {"skip_existing": True}, {}])
def test_input_is_never_replaced_nor_segmented_as_a_result(tmp_path, folder, more):
    """A folder with images a and a_seg, and results into the same folder."""
    write_volume(folder / "a_seg.nii.gz", shape=(12, 12, 12))
    if more != {"skip_existing": True}:
        told = f"{folder / 'a_seg.nii.gz'}: expected room for the result of {folder / 'a.nii.gz'}, got another input; "
        with pytest.raises(FileExistsError, match="^" + re.escape(told)):
            nifti_datalist(folder, results=folder, **more)
        linked = tmp_path / "linked"
        linked.symlink_to(folder)
        with pytest.raises(FileExistsError, match="got another input"):
            nifti_datalist(folder, results=linked, **more)
        return
    with pytest.warns(UserWarning, match=r"^1 input\(s\) left out as results of other inputs, such as .*a_seg"):
        left = nifti_datalist(folder, results=folder, **more)
    assert [Path(item["image"]).name for item in left] == ["b.nii.gz", "c.nii.gz", "d.nii.gz"]


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


def test_result_of_another_volume_of_the_same_name_is_not_taken_for_its_own(tmp_path):
    for name, shape in (("p1", (12, 12, 12)), ("p2", (12, 12, 11))):
        write_volume(tmp_path / name / "scan.nii.gz", shape=shape)
    write_volume(tmp_path / "out" / "scan_seg.nii.gz", shape=(12, 12, 12))
    chosen = {"results": tmp_path / "out", "skip_existing": True}
    assert nifti_datalist(tmp_path / "p1", **chosen) == []
    with pytest.raises(
        ValueError, match=r"scan_seg.nii.gz: expected the result of .*p2/scan.nii.gz, got one on another"
    ):
        nifti_datalist(tmp_path / "p2", **chosen)


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
        peaks.append(memory_run.measure(tmp_path / f"out{count}", "slabs", 3, tmp_path / f"in{count}")["peak_bytes"])
    assert peaks[1] - peaks[0] < 32 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "budget"), [(3, 3 * GIB), (16, 3 * GIB)])
def test_memory_of_a_volume_of_512_x_512_x_400(tmp_path, classes, budget):
    """The whole of the bundle's inference, with a 1 x 1 x 1 convolution, stays within 3 GiB for any number of classes.

    MONAI's own path is measured with as many classes as fit a few GiB, and has to give the same label map.
    """
    image = memory_run.write_image(tmp_path / "in" / "a.nii", (512, 512, 400))
    found = memory_run.measure(tmp_path / "slabs", "slabs", classes, image)
    sys.stdout.write(f"{json.dumps(found)}\n")
    assert found["peak_bytes"] < budget
    if classes == 3:
        plain = memory_run.measure(tmp_path / "plain", "plain", classes, image)
        sys.stdout.write(f"{json.dumps(plain)}\n")
        assert plain["peak_bytes"] > found["peak_bytes"]
        maps = [nib.load(tmp_path / name / "a_seg.nii.gz") for name in ("slabs", "plain")]
        assert all(np.array_equal(*(m.dataobj[..., z] for m in maps)) for z in range(400))


def test_memory_run_measures_what_it_says(tmp_path):
    image = memory_run.write_image(tmp_path / "in" / "a.nii", (24, 24, 24))
    found = memory_run.measure(tmp_path / "slabs", "slabs", 3, image)
    assert 100 * 2**20 < found["peak_bytes"] < 2 * GIB
    assert "killed_at_bytes" in memory_run.measure(tmp_path / "killed", "plain", 3, image, most=50 * 2**20)
