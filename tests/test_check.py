"""The data check: each fault made for real, in the library and on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai_scaleequiv.data._volume_file import VolumeFacts

from monai_scaleequiv import check_dataset, make_phantom_dataset
from monai_scaleequiv.cli import main
from monai_scaleequiv.data import _audit

from .conftest import shared
from .fault_files import SHAPE, cut, flip_stored_byte, with_affine, write_labels, write_task, write_volume

RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "monai_scaleequiv" / "check"


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "task")


def only_error(folder, **options):
    (line,) = check_dataset(folder, **options).errors
    assert "\n" not in line
    return line


def only_warning(folder, **options):
    report = check_dataset(folder, **options)
    (line,) = report.warnings
    assert report.errors == []
    return line


def image(task, case=1):
    return task / "imagesTr" / f"case_{case}.nii.gz"


def label(task, case=1):
    return task / "labelsTr" / f"case_{case}.nii.gz"


def shifted(millimetres):
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def test_sound_data_set(task):
    report = check_dataset(task)
    assert report.lines == []
    assert (report.cases, report.read) == (3, 6)
    assert report.refuse_errors() is None
    assert str(task) in report.table()


def test_phantoms_are_sound(tmp_path):
    make_phantom_dataset(tmp_path / "made", cases=2, size=(16, 18, 20))
    assert check_dataset(tmp_path / "made" / "dataset.json").lines == []


# Files.


def test_truncated_nii_gz(task):
    cut(image(task))
    assert only_error(task) == (
        f"{image(task)}: expected a whole gzip stream, got one that is cut off; copy or download the file again."
    )


def test_truncated_nii(tmp_path):
    file = write_volume(tmp_path / "images" / "a.nii")
    cut(file)
    (error,) = check_dataset(images=tmp_path / "images").errors
    assert error.startswith(f"{file}: expected 480 bytes of voxels, got ")


def test_one_flipped_byte_in_nii_gz(task):
    for write in (write_volume, write_labels):
        write(image(task) if write is write_volume else label(task), shape=(40, 40, 40))
    flip_stored_byte(image(task))
    assert nib.load(image(task)).get_fdata().shape == (40, 40, 40)  # nibabel says nothing
    assert f"{image(task)}: expected a sound gzip stream, got a damaged one (CRC check failed" in only_error(task)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"\x1f\x8b", bytes(400)])
def test_no_nifti_at_all(task, content):
    image(task).write_bytes(content)
    assert only_error(task).startswith(f"{image(task)}: expected ")


def test_both_codes_0_and_forms_that_disagree_are_warnings(task):
    for code, qform, told in (
        (0, None, "expected sform_code or qform_code above 0, got 0 for both: readers guess the directions; write an"),
        (
            1,
            np.diag([-1, 1, 1, 1]),
            "expected the qform on the sform's grid, got one whose corners are up to 10 mm away",
        ),
        (1, np.eye(4), None),
    ):
        volume = nib.load(image(task))
        volume = nib.Nifti1Image(np.asarray(volume.dataobj), np.eye(4), volume.header)
        volume.set_sform(np.eye(4), code)
        volume.set_qform(qform, 1 if qform is not None else 0)
        nib.save(volume, image(task))
        lines = [line for line in check_dataset(task).warnings if str(image(task)) in line]
        assert (len(lines), all(line.startswith(f"{image(task)}: {told}") for line in lines)) == (
            told is not None,
            True,
        )


def test_a_colour_header_that_promises_the_world(tmp_path):
    content = bytearray(write_volume(tmp_path / "images" / "a.nii", np.ones(SHAPE, RGB)).read_bytes())
    content[40:56] = np.array([7] + [32767] * 7, "<i2").tobytes()
    (tmp_path / "images" / "a.nii").write_bytes(bytes(content))
    (error,) = (e for e in check_dataset(images=tmp_path / "images").errors if "real numbers" in e)
    assert error.startswith(f"{tmp_path / 'images' / 'a.nii'}: expected real numbers, got colours")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_folders_named_like_files_are_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.nii")  # opening it would wait for a writer, for ever
    (tmp_path / "b.nii.gz").mkdir()
    pipe, folder = check_dataset([{"image": str(tmp_path / n)} for n in ("a.nii", "b.nii.gz")], label_key=None).errors
    assert pipe == f"{tmp_path / 'a.nii'}: expected a file, got a pipe or a device; give the file itself."
    assert folder == f"{tmp_path / 'b.nii.gz'}: expected a file, got a folder; give the file itself."


def test_every_byte_of_the_header_may_be_anything(tmp_path):
    # Whatever it says, the check ends with a finding or without one, and does not ask for memory.
    content = write_volume(tmp_path / "images" / "a.nii").read_bytes()
    for place in range(348):
        spoiled = bytearray(content)
        spoiled[place] ^= 0xFF
        (tmp_path / "images" / "a.nii").write_bytes(bytes(spoiled))
        for line in check_dataset(images=tmp_path / "images", fresh=True).lines:
            assert "\n" not in line


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_file_that_may_not_be_read(task):
    image(task).chmod(0)
    assert "expected a file that can be read" in only_error(task)
    image(task).chmod(0o600)
    assert check_dataset(task).errors == []


# Voxels.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_nan_or_inf_voxel(task, value):
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    values[1, 2, 3] = value
    write_volume(image(task), values)
    assert f"{image(task)}: expected finite values, got 1 NaN or infinite voxel(s);" in only_error(task)


def test_nan_in_the_affine(task):
    affine = np.eye(4)
    affine[0, 3] = np.nan
    with_affine(image(task), affine)
    assert f"{image(task)}: expected an invertible affine, got NaN or infinity in [[1.0, 0.0, 0.0, nan]" in only_error(
        task
    )


def test_singular_affine(task):
    with_affine(image(task), np.diag([1.0, 0, 1, 1]))
    assert f"{image(task)}: expected an invertible affine, got [[1.0" in only_error(task)


def test_directions_that_are_not_orthonormal(task):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    for file in (image(task), label(task)):
        with_affine(file, affine)
    first, second = check_dataset(task).errors
    assert "expected axes at right angles within 0.01, got a cosine of 0.196" in first
    assert "label" in second
    affine[0, 1] = 0.001  # what rounding in headers leaves
    for file in (image(task), label(task)):
        with_affine(file, affine)
    assert check_dataset(task).lines == []


def test_spacing_of_1000_mm(task):
    for file in (image(task), label(task)):
        with_affine(file, np.diag([1000.0, 1, 1, 1]))
    first, second = check_dataset(task).errors
    assert first.startswith(f"{image(task)}: expected voxel sizes from 0.01 to 100 mm, got 1000 x 1 x 1; ")
    assert second.startswith(f"{label(task)}: ")


def test_unit_that_is_not_mm(task):
    volume = nib.load(image(task))
    volume = nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine, volume.header)
    volume.header.set_xyzt_units("micron")
    nib.save(volume, image(task))
    assert "expected mm as unit of length, got micron; convert its header to mm" in only_error(task)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((6, 5, 4, 3), np.float32, "expected 1 channel(s), got 3; choose the channel to use."),
        ((6, 5, 4, 2, 3), np.float32, "expected 3 spatial axes, got shape (6, 5, 4, 2, 3); split the file"),
        ((6, 5), np.float32, "expected 3 spatial axes, got shape (6, 5); stack the slices"),
        (SHAPE, np.complex64, "expected real numbers, got complex numbers (complex64); convert them"),
        (SHAPE, RGB, "expected real numbers, got colours"),
    ],
    ids=["4D", "5D", "2D", "complex", "RGB"],
)
def test_wrong_channel_count_4d_2d_rgb_complex(task, shape, dtype, told):
    write_volume(image(task), np.ones(shape, dtype))
    line, *others = check_dataset(task).errors
    assert line.startswith(f"{image(task)}: {told}")
    assert others == []


def test_channels_of_the_list_and_of_the_argument(tmp_path):
    folder = write_task(tmp_path / "task", modality={"0": "T1", "1": "T2"})
    assert len(check_dataset(folder).errors) == 3
    assert "expected 2 channel(s), got 1" in check_dataset(folder).errors[0]
    assert check_dataset(folder, channels=1).errors == []


def test_constant_image(task):
    write_volume(image(task), np.full(SHAPE, 7, np.int16))
    assert "expected an image that varies, got 7 in every voxel" in only_warning(task)


def test_scaled_voxels_and_labels(task):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    volume = nib.Nifti1Image(values, np.eye(4))
    volume.header.set_slope_inter(-2, 3)
    nib.save(volume, image(task))
    facts = check_dataset(task).facts[str(image(task)), False]
    read = nib.load(image(task)).get_fdata()
    assert (facts.minimum, facts.maximum) == (read.min(), read.max())


def test_label_counts_are_exact_across_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_scaleequiv.data._nifti_file.PIECE", 64)
    labels = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    write_volume(tmp_path / "images" / "a.nii.gz", shape=labels.shape)
    file = write_volume(tmp_path / "labels" / "a.nii.gz", labels)
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels")
    expected = [[float(v), int(n)] for v, n in zip(*np.unique(labels, return_counts=True), strict=True)]
    assert report.facts[str(file), True].labels == expected


# Image and label map.


def test_grid_mismatch_of_shape(task):
    write_labels(label(task), 0, shape=(6, 5, 3))
    assert only_error(task) == (
        f"{label(task)}: expected the image's shape (6, 5, 4), got (6, 5, 3) (image: {image(task)}); "
        "pair the right files."
    )


def test_grid_mismatch_by_50_mm(task):
    write_labels(label(task), 0, affine=shifted(50))
    line = only_error(task)
    assert line.startswith(f"{label(task)}: expected the image's grid, got one whose corners are up to 50 mm away")
    assert str(image(task)) in line


def test_grid_that_differs_by_rounding(task):
    write_labels(label(task), 0, affine=shifted(0.01))
    assert check_dataset(task).lines == []


@pytest.mark.parametrize(
    ("values", "told"), [((7,), "got 7"), ((-1, 5, 6), "got -1, 5, 6"), (range(2, 20), "got 2, 3, 4, 5, 6 and 13 more")]
)
def test_label_class_outside_the_list(task, values, told):
    write_labels(label(task), *values, dtype=np.int16)
    assert f"{label(task)}: expected whole numbers from 0 to 1, {told}; change the labels" in only_error(task)


def test_label_that_is_not_an_integer(task):
    write_labels(label(task), 0.5, dtype=np.float32)
    assert f"{label(task)}: expected whole numbers from 0 to 1, got 0.5; " in only_error(task)


def test_scaled_labels_are_those_that_loading_has(task):
    volume = nib.Nifti1Image(np.asarray(nib.load(label(task)).dataobj) * np.uint8(10), np.eye(4))
    volume.header.set_slope_inter(0.1, 0)  # as float32 it is a little more than that
    nib.save(volume, label(task))
    assert nib.load(label(task)).get_fdata().max() != 1
    assert check_dataset(task).lines == []
    assert [value for value, _ in check_dataset(task).facts[str(label(task)), True].labels] == [0.0, 1.0]


def test_label_with_nan(task):
    write_labels(label(task), np.nan, dtype=np.float32)
    assert f"{label(task)}: expected finite values, got 1 NaN" in only_error(task)


def test_empty_label(task):
    write_labels(label(task), last=0)
    assert f"{label(task)}: expected labelled voxels, got none: 0 in every voxel" in only_warning(task)


def test_all_labels_empty(task):
    for case in range(3):
        write_labels(label(task, case), last=0)
    report = check_dataset(task)
    assert len(report.warnings) == 3
    assert "expected labelled voxels, got none in any label map" in report.errors[0]


def test_class_that_no_label_map_has(tmp_path):
    folder = write_task(tmp_path / "task", labels={"0": "background", "1": "liver", "2": "tumour"})
    assert "expected label 2 (tumour), got none in any label map" in only_warning(folder)


def test_labels_with_gaps(tmp_path):
    write_volume(tmp_path / "images" / "a.nii.gz")
    write_labels(tmp_path / "labels" / "a.nii.gz", 0, last=255)
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels")
    assert report.errors == []
    assert "expected labels without gaps, got none for 1, 2, 3, 4, 5 and more" in report.warnings[0]
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels", num_classes=2)
    assert "expected whole numbers from 0 to 1, got 255" in report.errors[0]


@pytest.mark.parametrize("largest", [3_000_000, 2_000_000_000])  # by counting, 0.2 GB and more than 100 GB
def test_huge_label_takes_no_memory(tmp_path, largest):
    write_volume(tmp_path / "images" / "a.nii.gz")
    write_labels(tmp_path / "labels" / "a.nii.gz", 1, last=largest, dtype=np.int32)
    tracemalloc.start()
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels", workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.errors == []
    assert "expected labels without gaps, got none for 2, 3, 4, 5, 6 and more" in report.warnings[0]
    assert peak < 64 << 20


# The list.


def test_missing_label_file(task):
    label(task).unlink()
    assert only_error(task) == f"{label(task)}: expected a file, got none; restore it."


def test_label_file_missing_in_a_folder_is_listed_and_the_others_stay_paired(tmp_path):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz", shape=(6, 5, 3 + ord(name) % 4))
        write_labels(tmp_path / "labels" / f"{name}.nii.gz", 0, shape=(6, 5, 3 + ord(name) % 4))
    (tmp_path / "labels" / "a.nii.gz").unlink()  # in order, b would get the label map of a
    (tmp_path / "images" / "c.nii.gz").unlink()
    first, second = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels").errors
    assert first.startswith(f"{tmp_path / 'images' / 'a.nii.gz'}: expected a label map, got none named a in ")
    assert second.startswith(f"{tmp_path / 'labels' / 'c.nii.gz'}: expected an image, got none named c in ")


def test_channels_in_files_of_their_own(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz")
    for name in "ab":
        write_labels(tmp_path / "labels" / f"{name}.nii.gz", 0)
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    assert check_dataset(**folders, channels=2).errors == []
    write_volume(tmp_path / "images" / "b_0001.nii.gz", affine=shifted(50))
    assert "b_0001.nii.gz: expected the image's grid" in check_dataset(**folders).errors[0]
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    assert "b_0000.nii.gz: expected 2 channel(s), got 1" in check_dataset(**folders, channels=2).errors[0]


def test_numbers_of_cases_are_no_channels(tmp_path):
    for name in ("case_0001", "case_0002", "case_0003", "new_0000", "new_0001"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz")
    write_labels(tmp_path / "labels" / "case_0001.nii.gz", 0)
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels", channels=1)
    unpaired = [error for error in report.errors if "expected a label map" in error]
    assert report.cases == 4  # the last two are channels, for there is a channel 0
    assert [error.split(", got ")[1].split(" in ")[0] for error in unpaired] == [
        "none named case_0002",
        "none named case_0003",
        "none named new",
    ]


def test_two_inputs_with_the_same_basename(tmp_path):
    write_volume(tmp_path / "images" / "a" / "scan.nii.gz", seed=1)
    write_volume(tmp_path / "images" / "b" / "scan.nii.gz", seed=2)
    (warning,) = check_dataset(images=tmp_path / "images").warnings
    assert warning.startswith(f"{tmp_path / 'images' / 'b' / 'scan.nii.gz'}: expected a file name of its own, got ")
    assert str(tmp_path / "images" / "a" / "scan.nii.gz") in warning


def test_copies_by_content(task):
    volume = nib.load(image(task, 0))
    copy = nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine, volume.header)
    copy.header["descrip"] = b"another header"
    nib.save(copy, image(task, 2))
    assert only_error(task) == (
        f"{image(task, 2)}: expected voxels of its own, got those of {image(task, 0)}; remove one of the two."
    )


def test_file_listed_twice(task):
    listed = json.loads((task / "dataset.json").read_text())
    listed["training"].append(listed["training"][0])
    (task / "dataset.json").write_text(json.dumps(listed))
    first, second = check_dataset(task).errors
    assert first.startswith(f"{image(task, 0)}: expected each file once on the list, got 2 times, at training[0], ")
    assert second.startswith(f"{label(task, 0)}: ")


def test_files_on_no_list_and_another_count(tmp_path):
    folder = write_task(tmp_path / "task", numTraining=4)
    write_volume(folder / "imagesTr" / "stray.nii.gz")
    (folder / "imagesTr" / "._case_0.nii.gz").write_bytes(b"of another system")
    count, stray = check_dataset(folder).warnings
    assert "expected numTraining = 4 cases, got 3" in count
    assert "stray.nii.gz: expected each volume on the list, got one that is not" in stray


def test_training_case_without_label(task):
    listed = json.loads((task / "dataset.json").read_text())
    del listed["training"][0]["label"]
    (task / "dataset.json").write_text(json.dumps(listed))
    assert f"{image(task, 0)}: expected a label map, got none at training[0]" in only_error(task)


def test_images_of_the_test_list_need_no_label(tmp_path):
    folder = write_task(tmp_path / "task", test=["./imagesTs/new.nii.gz"])
    assert "new.nii.gz: expected a file, got none" in only_error(folder)
    write_volume(folder / "imagesTs" / "new.nii.gz")
    assert check_dataset(folder).lines == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected JSON, got something else"),
        ("[]", "expected a list 'training', got none"),
        ('{"training": {}}', "expected a list 'training', got none"),
        ('{"training": [3]}', "training[0]: expected a path or a dictionary with image, got 3"),
        ('{"training": [{"image": 3}]}', "training[0]: expected a path, got 3"),
        ('{"training": [], "labels": {"liver": 1}}', "expected 'labels' from number to name, got {'liver': 1}"),
        ('{"training": [], "test": 3}', "expected a list 'test', got 3"),
        ('{"training": [{"image": []}]}', "training[0]: expected at least one image, got none; name one"),
        ('{"training": [[]]}', "training[0]: expected at least one image, got none; name one"),
        (
            '{"training": ["a\\u0000.nii"]}',
            "training[0]: expected a path of characters that names have, got 'a\\x00.nii'",
        ),
        ('{"training": ["a\\ud800.nii"]}', "training[0]: expected a path of characters that names have, got 'a\\ud800"),
        ('{"training": ["a\\nb.nii"]}', "training[0]: expected a path of characters that names have, got 'a\\nb.nii'"),
        ('{"training": ' + "[" * 200_000, "expected JSON, got something else (maximum recursion depth exceeded"),
    ],
    ids=range(13),
)
def test_list_that_is_no_list(tmp_path, text, told):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json") as refused:
        check_dataset(tmp_path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_of_classes_take_one_line(tmp_path):
    folder = write_task(tmp_path / "task", labels={"0": "a", "1": "b\nc", "2": "\ud800"})
    assert "expected label 2 (?), got none" in only_warning(folder)
    assert "b?c" in check_dataset(folder).table()
    assert check_dataset(folder).table().isascii()


def test_empty_list(tmp_path):
    assert "expected at least one case, got none" in only_error(write_task(tmp_path / "task", cases=0))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ValueError),
        ({"source": "task", "images": "task"}, ValueError),
        ({"labels": "task"}, ValueError),
        ({"source": "task", "workers": 0}, ValueError),
        ({"source": "task", "num_classes": True}, ValueError),
        ({"source": "absent"}, FileNotFoundError),
        ({"images": "absent"}, FileNotFoundError),
        ({"source": [{"image": "a.nii"}]}, ValueError),
        ({"source": [{"image": 3, "label": "a.nii"}]}, ValueError),
        ({"source": [{"image": [], "label": "a.nii"}]}, ValueError),
        ({"source": [{"image": "a\0.nii", "label": "a.nii"}]}, ValueError),
    ],
)
def test_arguments_that_make_no_sense(arguments, error):
    with pytest.raises(error) as refused:
        check_dataset(**arguments)
    assert "\n" not in str(refused.value)


# Reading once, and in several processes.


def test_second_run_reads_nothing(task, monkeypatch):
    label(task, 2).unlink()
    first = check_dataset(task)
    assert first.read == 6
    monkeypatch.setattr(_audit, "read_facts", _only_missing)
    second = check_dataset(task)
    assert second.read == 1  # a missing file may come back
    assert second.facts.keys() == first.facts.keys()
    del second.facts[str(label(task, 2)), True], first.facts[str(label(task, 2)), True]
    assert second.facts == first.facts


def _only_missing(path, is_label):
    assert not Path(path).exists()
    return VolumeFacts()


def test_changed_file_is_read_again(task):
    check_dataset(task)
    write_volume(image(task), np.full(SHAPE, np.nan, np.float32))
    report = check_dataset(task)
    assert report.read == 1
    assert "got 120 NaN" in report.errors[0]


def test_damage_that_keeps_size_and_time_is_read_again(task):
    assert check_dataset(task).errors == []
    before, content = image(task).stat(), bytearray(image(task).read_bytes())
    content[-6] ^= 1  # in the checksum
    image(task).write_bytes(bytes(content))
    os.utime(image(task), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (image(task).stat().st_size, image(task).stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "got a damaged one" in only_error(task)


def test_findings_from_the_cache_are_the_same(task):
    flip_stored_byte(image(task))
    write_volume(image(task, 2), np.full(SHAPE, np.nan, np.float32))
    with_affine(label(task, 0), np.diag([np.nan, 1, 1, 1]))
    first, second = check_dataset(task), check_dataset(task)
    assert second.read == 0
    assert second.lines == first.lines
    assert check_dataset(task, fresh=True).read == 6


@pytest.mark.parametrize("spoil", [b"", b"{}", b"monai_scaleequiv check 2 0\n{}", None])
def test_damaged_cache_is_ignored(task, cache, spoil):
    check_dataset(task)
    files = sorted(cache.iterdir())
    assert len(files) == 2
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content) if spoil is None else spoil)
    report = check_dataset(task)
    assert (report.read, report.lines) == (6, [])
    assert check_dataset(task).read == 0


def test_cache_that_cannot_be_written_is_ignored(task, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check_dataset(task).lines == []
    assert check_dataset(task).read == 6


def test_several_processes_find_the_same(task):
    cut(image(task))
    alone = check_dataset(task, workers=1, fresh=True)
    together = check_dataset(task, workers=2, fresh=True)
    assert together.lines == alone.lines
    assert together.facts == alone.facts


def test_killed_process_is_told(task, monkeypatch):
    monkeypatch.setattr(_audit, "read_facts", _die)
    with pytest.raises(RuntimeError, match=r"^a reading process was ended from outside, .*; set workers to 1\.$"):
        check_dataset(task, workers=2)


def _die(path, label):
    os.kill(os.getpid(), 9)


# The command line.


def run(capsys, *argv):
    status = main(["check", *map(str, argv)])
    return status, *capsys.readouterr()


def test_command_on_a_sound_data_set(capsys, task, tmp_path):
    status, out, err = run(capsys, task, f"--output={tmp_path / 'new' / 'report.json'}")
    assert (status, err) == (0, "")
    assert "3 cases, 6 files (6 read, 0 unchanged since an earlier check)" in out
    assert "6 x 5 x 4" in out
    assert "0 errors, 0 warnings" in out
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (report["errors"], report["cases"], len(report["files"])) == (0, 3, 6)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.json"]


def test_command_tells_each_finding_in_a_line_and_fails(capsys, task, tmp_path):
    cut(image(task))
    with_affine(image(task, 2), np.diag([np.nan, 1, 1, 1]))
    write_labels(label(task, 0), last=0)
    status, out, err = run(capsys, f"--input={task / 'dataset.json'}", f"--output={tmp_path / 'report.json'}")
    assert status == 1
    assert err == f"error: {task / 'dataset.json'}: expected no errors, got 2; mend what the lines above name.\n"
    lines = [line for line in out.splitlines() if line.startswith(("error ", "warning "))]
    assert [line.split(":")[0] for line in lines] == [
        f"error {image(task)}",
        f"error {image(task, 2)}",
        f"warning {label(task, 0)}",
    ]
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [finding["kind"] for finding in findings] == ["file", "affine", "empty"]
    assert {"file", "kind", "expected", "got", "remedy", "severity"} == set(findings[0])


def test_command_on_two_folders(capsys, task):
    status, out, _ = run(capsys, f"--images={task / 'imagesTr'}", f"--labels={task / 'labelsTr'}", "--num_classes=2")
    assert (status, "3 cases, 6 files" in out) == (0, True)


def test_command_never_overwrites_and_says_so_first(capsys, task, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_scaleequiv.cli._check.check_dataset", lambda **options: pytest.fail("work was done"))
    (tmp_path / "report.json").write_text("mine")
    status, out, err = run(capsys, task, f"--output={tmp_path / 'report.json'}")
    assert (status, out) == (1, "")
    assert "report.json exists already; choose another file" in err
    assert (tmp_path / "report.json").read_text() == "mine"


def test_command_with_unwritable_output_says_so_first(capsys, task, monkeypatch):
    monkeypatch.setattr("monai_scaleequiv.cli._check.check_dataset", lambda **options: pytest.fail("work was done"))
    status, out, err = run(capsys, task, f"--output={task / 'dataset.json' / 'report.json'}")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "--output: " in err
    assert "expected a folder that can be written to" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "expected a data set, or --images=PATH"),
        (("absent",), "absent does not exist; give a folder with dataset.json"),
        (("--labels=absent",), "expected a data set, or --images=PATH"),
        (("here", "--images=here"), "expected a data set, or --images=PATH"),
        (("here", "--fresh=3"), "--fresh=3: expected true or false"),
        (("here", "--num_classes=two"), "num_classes: expected a whole number of at least 1, got 'two'"),
        (("here", "--outptu=report.json"), "--outptu"),
        (("here", "there"), "there"),
    ],
)
def test_command_errors_take_one_line(capsys, argv, told):
    status, out, err = run(capsys, *argv)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert told in err


def test_command_in_a_process_of_its_own(task):
    run = subprocess.run(
        [sys.executable, "-m", "monai_scaleequiv", "check", str(task), "--workers=2"], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "0 errors, 0 warnings" in run.stdout


def test_report_that_came_in_the_meantime_stays(task, tmp_path, capsys, monkeypatch):
    report = tmp_path / "report.json"

    def meanwhile(**options):
        report.write_text("another's")
        return check_dataset(**options)

    monkeypatch.setattr("monai_scaleequiv.cli._check.check_dataset", meanwhile)
    assert main(["check", str(task), f"--output={report}"]) == 1
    assert capsys.readouterr().err == f"error: --output: {report} exists by now; choose another file.\n"
    assert report.read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == ["report.json"]


def test_hippocampus_is_sound_and_quick():
    folder = shared("data", "Task04_Hippocampus")

    def fastest(read, within, **options):
        """Seconds of the fastest of up to three tries: what else the machine does takes none of the check's own."""
        tries = []
        while len(tries) < 3 and min(tries, default=within) >= within:
            start = time.perf_counter()
            report = check_dataset(folder, **options)
            tries.append(time.perf_counter() - start)
            assert (report.errors, report.read) == ([], read)
        return min(tries)

    assert fastest(416, within=10, fresh=True) < 10
    assert fastest(0, within=1) < 1
