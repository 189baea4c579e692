"""Guards in pipelines: each fault made for real, and what a transform or a handler says to it."""

from __future__ import annotations

import gzip
import itertools
import os
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImaged, SaveImaged, Spacingd

from monai_scaleequiv import (
    CheckFiled,
    CheckGridd,
    CheckSpacingd,
    CheckVolumed,
    DataCheckHandler,
    InputGridWriter,
    check_dataset,
    nifti_datalist,
)

from .fault_files import SHAPE, cut, flip_stored_byte, with_affine, write_labels, write_task, write_volume


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def root_cause(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def read(reader="NibabelReader", *checks):
    return Compose([CheckFiled("image"), LoadImaged("image", reader=reader, ensure_channel_first=True), *checks])


def refusal(transform, data):
    """The one line that a transform says to data."""
    with pytest.raises((ValueError, RuntimeError)) as refused:
        transform(data)
    text = str(root_cause(refused.value))
    assert "\n" not in text
    return text


def volume(affine=None, shape=(1, *SHAPE), file="scan.nii.gz"):
    affine = None if affine is None else torch.as_tensor(np.asarray(affine, dtype=np.float64))
    return MetaTensor(torch.rand(shape), affine=affine, meta={"filename_or_obj": file})


# Files.


@pytest.mark.parametrize("reader", ["NibabelReader", "ITKReader"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, "no checksum"])
def test_truncated_nii_gz_whichever_reader(tmp_path, reader, share):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30))
    cut(file, 1 - 4 / file.stat().st_size if share == "no checksum" else share)
    assert refusal(read(reader), {"image": file}) == (
        f"{file}: expected a whole gzip stream, got one that is cut off; copy or download the file again."
    )


@pytest.mark.parametrize("reader", ["NibabelReader", "ITKReader"])
def test_one_flipped_byte_in_nii_gz_whichever_reader(tmp_path, reader):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30))
    sound = read(reader)({"image": file})["image"]
    flip_stored_byte(file)
    without = LoadImaged("image", reader=reader, ensure_channel_first=True)({"image": file})["image"]
    assert not torch.equal(torch.as_tensor(without), torch.as_tensor(sound))  # silent, which is the fault
    assert refusal(read(reader), {"image": file}).startswith(f"{file}: expected a sound gzip stream, got a damaged one")


def test_truncated_file_in_the_worker_of_a_loader(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30))
    cut(file)
    loader = DataLoader(Dataset([{"image": str(file)}], read()), num_workers=1)
    with pytest.raises(RuntimeError, match="expected a whole gzip stream") as refused:
        next(iter(loader))
    assert str(file) in str(refused.value)


def test_file_check_lets_sound_files_pass(tmp_path):
    paths = [write_volume(tmp_path / name) for name in ("a.nii.gz", "b.nii")]
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"1,2"))
    data = {"image": [str(path) for path in paths], "table": tmp_path / "c.csv.gz", "series": tmp_path, "other": 3}
    assert CheckFiled(["image", "table", "series"])(data) == data
    cut(tmp_path / "c.csv.gz")
    assert "c.csv.gz: expected a whole gzip stream" in refusal(CheckFiled("table"), data)
    assert "other: expected a path, got int" in refusal(CheckFiled("other"), data)
    assert CheckFiled("absent", allow_missing_keys=True)(data) == data


def spoiled(file, place, value):
    """A .nii file with other bytes in its header."""
    content = bytearray(file.read_bytes())
    content[place : place + len(value)] = value
    file.write_bytes(bytes(content))
    return file


@pytest.mark.parametrize("spoil", ["cut", "flip"])
@pytest.mark.parametrize("name", ["a.NII.GZ", "a.nii.GZ", "a.Nii.gz"])
def test_endings_in_capitals(tmp_path, name, spoil):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30)).rename(tmp_path / name)
    assert CheckFiled("image")({"image": file}) == {"image": file}
    {"cut": cut, "flip": flip_stored_byte}[spoil](file)
    assert refusal(CheckFiled("image"), {"image": file}).startswith(
        f"{file}: expected a {'whole' if spoil == 'cut' else 'sound'} gzip"
    )
    file = spoiled(write_volume(tmp_path / "b.nii"), 72, b"\7\0").rename(tmp_path / "b.NII")
    assert refusal(CheckFiled("image"), {"image": file}).startswith(f"{file}: expected bitpix 32 for float32, got 7; ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_folders_named_like_files(tmp_path):
    os.mkfifo(tmp_path / "a.nii")  # opening it would wait for a writer, for ever
    (tmp_path / "b.NII.gz").mkdir()
    for name, told in (("a.nii", "a pipe or a device"), ("b.NII.gz", "a folder"), ("c\0.nii", None)):
        file = f"{tmp_path}/{name}"
        told = (
            f"expected a file, got {told}; give the file itself." if told else "expected a file, got none; restore it."
        )
        assert refusal(CheckFiled("image"), {"image": file}) == f"{file}: {told}"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_file_check_lets_all_pass_that_the_norm_allows(tmp_path, kind):
    image = kind(np.random.default_rng(0).random(SHAPE).astype(np.float32), turned((1, 2, 3)))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made for a test"))
    image.set_qform(turned((1, 2, 3)) @ np.diag([-1, 1, 1, 1]), 1)
    image.header.set_xyzt_units("unknown")
    files = []
    for index, (sform, qform) in enumerate([(2, 0), (0, 1), (4, 1), (5, 5), (0, 0)]):
        image.header["sform_code"], image.header["qform_code"] = sform, qform
        files.append(tmp_path / f"{index}.nii")
        image.to_filename(files[-1])
        files[-1].write_bytes(files[-1].read_bytes() + bytes(512))  # padding
    if kind is nib.Nifti1Image:
        spoiled(files[1], 76, bytes(4))  # qfac 0 means 1
    for file in files:
        assert CheckFiled("image")({"image": str(file)}) == {"image": str(file)}
        loaded = read()({"image": str(file)})["image"]
        np.testing.assert_array_equal(loaded[0], np.asarray(image.dataobj))
        np.testing.assert_allclose(loaded.affine, nib.load(file).affine, atol=1e-5)
    spoiled(files[0], len(files[0].read_bytes()) - 1, b"\1")
    assert "expected 480 bytes of voxels, got more of them" in refusal(CheckFiled("image"), {"image": files[0]})


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_unit_that_is_not_mm(tmp_path, unit):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([0.8, 0.8, 0.8, 1]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii.gz")
    told = f"{tmp_path / 'a.nii.gz'}: expected mm as unit of length, got {unit}; convert its header to mm."
    assert refusal(read(), {"image": tmp_path / "a.nii.gz"}) == told


def test_volume_that_would_fill_the_memory(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz")
    assert refusal(CheckFiled("image", max_voxels=119), {"image": file}).startswith(
        f"{file}: expected at most 119 voxels, got 6 x 5 x 4 = 120 (4.47e-07 GiB as float32); split it, or raise max_"
    )
    CheckFiled("image", max_voxels=120)({"image": file})
    # By their headers alone, which is what counts before anything is read.
    file = write_volume(tmp_path / "b.nii")
    spoiled(file, 42, np.array([1200, 1200, 900], "<i2").tobytes())
    assert "expected 5184000000 bytes of voxels, got 480" in refusal(CheckFiled("image"), {"image": file})
    spoiled(file, 42, np.array([1300, 1300, 1300], "<i2").tobytes())
    assert "expected at most 2.15e+09 voxels, got 1300 x 1300 x 1300 = " in refusal(
        CheckFiled("image"), {"image": file}
    )
    (warning,) = check_dataset([{"image": str(file)}], label_key=None).warnings
    assert warning.startswith(f"{file}: expected at most 2.15e+09 voxels, got 1300 x 1300 x 1300 = ")
    with pytest.raises(ValueError, match="max_voxels: expected at least 1, got 0"):
        CheckFiled("image", max_voxels=0)


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "RGB"])
def test_complex_and_rgb(tmp_path, dtype):
    file = write_volume(tmp_path / "a.nii.gz", np.ones(SHAPE, dtype))
    assert refusal(read(), {"image": file}).startswith(f"{file}: expected real numbers, got co")


def test_wrong_channel_count_4d_and_2d(tmp_path):
    check = read("NibabelReader", CheckVolumed("image"))
    file = write_volume(tmp_path / "four.nii.gz", shape=(6, 5, 4, 3))
    assert refusal(check, {"image": file}) == f"{file}, image: expected 1 channel(s), got 3; choose the channel to use."
    file = write_volume(tmp_path / "two.nii.gz", shape=(6, 5))
    assert refusal(check, {"image": file}).startswith(f"{file}, image: expected 3 spatial axes, got shape (6, 5)")


# Voxels.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_nan_or_inf_voxel_is_refused(tmp_path, value):
    values = np.ones(SHAPE, np.float32)
    values[0, 0, 0] = value
    file = write_volume(tmp_path / "a.nii.gz", values)
    line = refusal(read("NibabelReader", CheckVolumed("image")), {"image": file})
    assert line.startswith(f"{file}, image: expected finite values, got 1 NaN or infinite voxel(s); ")


@pytest.mark.parametrize(("fill", "value"), [("min", -2.0), (0, 0.0), (1.5, 1.5)])
def test_fill_of_voxels_that_are_not_finite(fill, value):
    image = volume()
    image[0, 1, 1, 1], image[0, 0, 0, 0], image[0, 2, 2, 2] = -2, torch.nan, -torch.inf
    before = image.clone()
    with pytest.warns(UserWarning, match=r"^scan.nii.gz, image: 2 NaN or infinite voxel\(s\) replaced by"):
        filled = CheckVolumed("image", fill=fill)({"image": image})["image"]
    assert filled[0, 0, 0, 0] == filled[0, 2, 2, 2] == value
    assert int((torch.as_tensor(filled) != torch.as_tensor(before)).sum()) == 2
    assert isinstance(filled, MetaTensor)
    assert filled.meta["filename_or_obj"] == "scan.nii.gz"
    assert torch.isnan(image[0, 0, 0, 0])  # the input stays


def test_fill_leaves_sound_volumes_alone_and_refuses_hopeless_ones():
    sound = volume()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckVolumed("image", fill="min")({"image": sound})["image"] is sound
    hopeless = MetaTensor(torch.full((1, *SHAPE), torch.nan))
    assert "got 120 NaN" in refusal(CheckVolumed("image", fill="min"), {"image": hopeless})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fill": "max"}, 'fill: expected a finite number, "min" or None'),
        ({"fill": float("nan")}, 'fill: expected a finite number, "min" or None, got nan'),
        ({"fill": -float("inf")}, 'fill: expected a finite number, "min" or None, got -inf'),
        ({"fill": 1e39}, 'fill: expected a finite number, "min" or None, got 1e\\+39'),
        ({"spacing_range": (2, 1)}, "spacing_range: expected two rising sizes"),
    ],
)
def test_arguments_of_the_volume_check(options, told):
    with pytest.raises(ValueError, match=told):
        CheckVolumed("image", **options)


def test_nan_in_the_affine(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz")
    with_affine(file, np.diag([1, np.nan, 1, 1]))
    assert "expected an invertible affine, got NaN or infinity in" in refusal(
        CheckVolumed("image"), {"image": volume(np.diag([1, np.nan, 1, 1]))}
    )
    # MONAI's reader replaces this affine without a word, so that only the file itself tells.
    assert torch.isfinite(LoadImaged("image", reader="NibabelReader")({"image": file})["image"].affine).all()
    assert refusal(read(), {"image": file}).startswith(f"{file}: expected an invertible affine, got NaN or infinity in")


def test_pixdim_that_is_not_the_voxel_size_of_the_affine(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz")
    affine = turned((1, 2, 3))
    with_affine(file, affine, pixdim=(1, 2, 3.01))
    loaded = LoadImaged("image", reader="NibabelReader")({"image": file})["image"].affine
    assert not torch.allclose(loaded, torch.from_numpy(affine), atol=0.1)  # the directions are lost
    told = "expected pixdim to be the affine's voxel size [1.0, 2.0, 3.0], got [1.0, 2.0, 3.01]; mend one of them"
    assert refusal(read(), {"image": file}).startswith(f"{file}: {told}")
    assert check_dataset(images=tmp_path).errors[0].startswith(f"{file}: {told}")
    with_affine(file, affine)
    assert check_dataset(images=tmp_path).errors == []


def test_singular_affine():
    line = refusal(CheckVolumed("image"), {"image": volume(np.diag([1, 0, 1, 1]))})
    assert line.startswith("scan.nii.gz, image: expected an invertible affine, got [[1.0, 0.0")


def test_directions_that_are_not_orthonormal():
    affine = np.eye(4)
    affine[0, 1] = 0.2
    line = refusal(CheckVolumed("image"), {"image": volume(affine)})
    assert line.startswith("scan.nii.gz, image: expected axes at right angles within 0.01, got a cosine of 0.196")
    CheckVolumed("image", max_shear=0.3)({"image": volume(affine)})
    affine[0, 1] = 0.005
    CheckVolumed("image")({"image": volume(affine)})


@pytest.mark.parametrize("size", [1000.0, 1e-5])
def test_spacing_of_1000_mm(size):
    line = refusal(CheckVolumed("image"), {"image": volume(np.diag([1, size, 1, 1]))})
    assert line.startswith(f"scan.nii.gz, image: expected voxel sizes from 0.01 to 100 mm, got 1 x {size:g} x 1; ")
    CheckVolumed("image", spacing_range=(0, 1000))({"image": volume(np.diag([1, size, 1, 1]))})


# Resampling.


def turned(spacing):
    c, s = np.cos(0.4), np.sin(0.4)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ np.diag([*spacing, 1.0])


@pytest.mark.parametrize("affine", [turned((1, 2, 3)), turned((-0.7, 1.3, 0.4)), np.diag([3, 1, 2, 1])])
@pytest.mark.parametrize(("pixdim", "diagonal"), [((1, 1.5, 0.8), False), ((1, 1.5, 0.8), True), (2.0, False)])
def test_size_after_resampling_is_the_one_foreseen(affine, pixdim, diagonal):
    image = volume(affine, shape=(1, 9, 8, 7))
    done = Spacingd("image", pixdim=pixdim, diagonal=diagonal)({"image": image})["image"]
    voxels = done[0].numel()
    assert CheckSpacingd("image", pixdim, max_voxels=voxels, diagonal=diagonal)({"image": image})["image"] is image
    line = refusal(CheckSpacingd("image", pixdim, max_voxels=voxels - 1, diagonal=diagonal), {"image": image})
    assert f"got {' x '.join(map(str, done.shape[1:]))} = " in line


def test_resampling_that_blows_up():
    image = volume(np.diag([1000, 1000, 1000, 1]), shape=(1, 16, 16, 16))
    line = refusal(CheckSpacingd("image", (1, 1, 1)), {"image": image})
    assert line == (
        "scan.nii.gz, image: expected at most 5.37e+08 voxels after resampling, got 15001 x 15001 x 15001 = 3.38e+12 "
        "(1.26e+04 GiB as float32) from 16 x 16 x 16; mend the voxel size in its header, or raise max_voxels."
    )


@pytest.mark.parametrize("pixdim", [1e-20, 1e-300, (1, 1e-300, 1)])
def test_voxel_size_so_small_that_the_count_overflows(pixdim):
    assert "expected at most 5.37e+08 voxels after resampling" in refusal(
        CheckSpacingd("image", pixdim), {"image": volume(np.eye(4))}
    )


@pytest.mark.parametrize(
    "pixdim",
    [
        float("inf"),
        None,
        [float("nan"), 1, 1],
        [-1, 1, 1],
        [0, 0, 0],
        0,
        [0.8, 0.8],
        [1, 1, 1, 1],
        (0.1,),
        [],
        "1",
        ["1", 1, 1],
        [1, None, 1],
    ],
)
def test_voxel_sizes_that_make_no_sense(pixdim):
    with pytest.raises(
        ValueError, match=r"^pixdim: expected 3 finite numbers above 0, got .*; give a voxel size in mm each"
    ):
        CheckSpacingd("image", pixdim)


def test_resampling_in_two_dimensions():
    image = MetaTensor(torch.rand(1, 9, 8), affine=torch.diag(torch.tensor([1.0, 2.0, 1.0])))
    done = Spacingd("image", pixdim=(0.5, 0.7))({"image": image})["image"]
    check = CheckSpacingd("image", (0.5, 0.7), max_voxels=done[0].numel() - 1, spatial_dims=2)
    assert f"got {done.shape[1]} x {done.shape[2]} = " in refusal(check, {"image": image})
    assert "expected 3 spatial axes, got shape (9, 8)" in refusal(CheckSpacingd("image", 1.0), {"image": image})


def test_resampling_check_needs_an_affine():
    assert "expected a volume with an affine" in refusal(CheckSpacingd("image", 1.0), {"image": torch.rand(1, 2, 2, 2)})
    assert "invertible" in refusal(CheckSpacingd("image", 1.0), {"image": volume(np.diag([1, 0, 1, 1]))})
    with pytest.raises(ValueError, match="max_voxels: expected at least 1"):
        CheckSpacingd("image", 1.0, max_voxels=0)


# Grids.


def test_grid_mismatch_of_shape_names_both_files():
    data = {"image": volume(file="scan.nii.gz"), "label": volume(shape=(1, 6, 5, 3), file="truth.nii.gz")}
    assert refusal(CheckGridd("label"), data) == (
        "truth.nii.gz, label: expected the image's shape (6, 5, 4), got (6, 5, 3) (image: scan.nii.gz); "
        "pair the right files."
    )


def test_grid_mismatch_by_50_mm_names_both_files():
    affine = np.eye(4)
    affine[2, 3] = 50
    data = {"t1": volume(file="t1.nii.gz"), "t2": volume(affine, file="t2.nii.gz")}
    line = refusal(CheckGridd("t2", reference_key="t1"), data)
    assert line == (
        "t2.nii.gz, t2: expected the t1's grid, got one whose corners are up to 50 mm away (t1: t1.nii.gz); "
        "pair the right files or mend the header."
    )
    assert CheckGridd("t2", reference_key="t1", tolerance=51)(data) == data
    affine[2, 3] = 0.05  # rounded headers
    CheckGridd("t2", reference_key="t1")({**data, "t2": volume(affine)})


def test_grids_in_two_dimensions():
    data = {"image": volume(shape=(1, 4, 4)), "label": volume(shape=(1, 4, 4))}
    CheckGridd("label")(data)
    data["label"] = volume(np.diag([2, 1, 1, 1]), shape=(1, 4, 4))
    assert "corners are up to 3 mm away" in refusal(CheckGridd("label"), data)


# Output.


def test_no_mask_from_logits_that_are_not_finite(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz")
    logits = MetaTensor(torch.zeros(2, *SHAPE), meta={"filename_or_obj": str(image)})
    logits[1, 0, 0, 0] = torch.nan
    options = {"output_dir": tmp_path / "out", "resample": False, "print_log": False, "writer": InputGridWriter}
    save = Compose([CheckVolumed("pred", channels=2, remedy="check the weights"), SaveImaged("pred", **options)])
    line = refusal(save, {"pred": logits})
    assert line == f"{image}, pred: expected finite values, got 1 NaN or infinite voxel(s); check the weights."
    assert not (tmp_path / "out").exists()


def test_two_inputs_with_the_same_basename_are_refused(tmp_path):
    for folder in "ab":
        write_volume(tmp_path / folder / "scan.nii.gz")
    with pytest.raises(ValueError, match=r"have the same name: their results would collide; rename one\.$"):
        nifti_datalist(tmp_path)


# Before a training.


def trainer_with(handler):
    steps = []
    trainer = Engine(lambda engine, batch: steps.append(batch))
    handler.attach(trainer)
    return trainer, steps


def data_of(task):
    files = zip(sorted((task / "imagesTr").iterdir()), sorted((task / "labelsTr").iterdir()), strict=True)
    return [{"image": str(image), "label": str(label)} for image, label in files]


@pytest.mark.parametrize("kind", [str, data_of])
def test_sound_data_are_trained_on(tmp_path, kind):
    trainer, steps = trainer_with(DataCheckHandler(kind(write_task(tmp_path / "task")), num_classes=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run([0, 1])
    assert steps == [0, 1]


def test_label_class_outside_the_list_stops_before_the_training(tmp_path):
    task = write_task(tmp_path / "task")
    file = write_labels(task / "labelsTr" / "case_1.nii.gz", 7)
    trainer, steps = trainer_with(DataCheckHandler(data_of(task), num_classes=2))
    line = refusal(trainer.run, [0, 1])
    assert line.startswith(f"data: 1 error; {file}: expected whole numbers from 0 to 1, got 7; ")
    assert steps == []


def test_empty_label_is_a_warning_before_the_training(tmp_path):
    task = write_task(tmp_path / "task")
    file = write_labels(task / "labelsTr" / "case_1.nii.gz", last=0)
    trainer, steps = trainer_with(DataCheckHandler(task, channels=1))
    with pytest.warns(UserWarning, match="1 warning") as told:
        trainer.run([0, 1])
    assert str(file) in str(told[0].message)
    assert steps == [0, 1]


def test_handler_uses_what_an_earlier_check_found(tmp_path, monkeypatch):
    task = write_task(tmp_path / "task")
    check_dataset(task)
    monkeypatch.setattr("monai_scaleequiv.data._audit.read_facts", lambda *file: pytest.fail("was read again"))
    trainer, steps = trainer_with(DataCheckHandler(data_of(task), num_classes=2))
    trainer.run([0])
    assert steps == [0]


def test_handler_in_a_config(tmp_path):
    task = write_task(tmp_path / "task")
    cut(task / "imagesTr" / "case_0.nii.gz")
    parser = ConfigParser({"handler": {"_target_": "DataCheckHandler", "source": str(task), "workers": 1}})
    trainer, _ = trainer_with(parser.get_parsed_content("handler"))
    assert "expected a whole gzip stream" in refusal(trainer.run, [0])


def _train_in_a_process(rank, store, task):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer, steps = trainer_with(DataCheckHandler(task))
    line = refusal(trainer.run, [0])
    assert "expected a whole gzip stream" in line
    assert steps == []


def test_all_processes_stop_together(tmp_path):
    task = write_task(tmp_path / "task")
    cut(task / "imagesTr" / "case_0.nii.gz")
    torch.multiprocessing.start_processes(
        _train_in_a_process, (str(tmp_path / "store"), str(task)), nprocs=2, start_method="fork"
    )


def test_messages_of_check_and_transform_are_the_same(tmp_path):
    """One rule, one place: the data check says what the transform says."""
    affines = {"nan": np.diag([np.nan, 1, 1, 1]), "flat": np.diag([1, 0.0, 1, 1]), "wide": np.diag([1, 1, 999, 1])}
    for name, affine in affines.items():
        file = write_volume(tmp_path / name / "a.nii.gz")
        with_affine(file, affine)
        (line,) = check_dataset(images=tmp_path / name).errors
        transform = refusal(CheckVolumed("image"), {"image": volume(affine, file=str(file))})
        assert transform.replace(", image:", ":") == line


def test_short_names_build():
    configs = itertools.chain(
        ({"_target_": name, "keys": "image"} for name in ("CheckFiled", "CheckGridd", "CheckVolumed")),
        [{"_target_": "CheckSpacingd", "keys": "image", "pixdim": [1, 1, 1]}],
    )
    for config in configs:
        built = ConfigParser({"item": config}).get_parsed_content("item")
        assert type(built).__name__ == config["_target_"]


def test_volumes_written_by_nibabel_pass_all_guards(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz", affine=turned((1, 2, 3)))
    assert nib.load(file).shape == SHAPE
    guards = [CheckVolumed("image"), CheckSpacingd("image", 1.0)]
    assert read("NibabelReader", *guards)({"image": str(file)})["image"].shape == (1, *SHAPE)
