"""The data check: each fault made for real, in the library and on the command line."""

import gzip
import json
import os
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged

from monai_scaleequiv.cli import main
from monai_scaleequiv.data import (
    CheckedNibabelReader,
    _check_dataset,
    check_dataset,
    load_datalist,
    make_phantom_dataset,
    root_cause,
)
from monai_scaleequiv.transforms import CheckVolumed

from .conftest import shared
from .fault_files import (
    SHAPE,
    change_list,
    cut,
    flip_stored_byte,
    shifted,
    with_affine,
    with_header,
    write_labels,
    write_task,
    write_volume,
)

RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]


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


def pair(folder, name="a", *labels, **options):
    """A folder of images and one of label maps."""
    write_volume(folder / "images" / f"{name}.nii.gz")
    write_labels(folder / "labels" / f"{name}.nii.gz", *labels, **options)
    return {"images": folder / "images", "labels": folder / "labels"}


def test_sound_data_sets(task, tmp_path):
    report = check_dataset(task)
    assert (report.lines, report.cases, len(report.facts)) == ([], 3, 6)
    assert report.raise_errors() is None
    assert str(task) in report.table()
    make_phantom_dataset(tmp_path / "made", cases=2, size=(16, 18, 20))
    assert check_dataset(tmp_path / "made" / "dataset.json").lines == []


# One file.


def sheared(file, cosine=0.2):
    affine = np.eye(4)
    affine[0, 1] = cosine
    with_affine(file, affine)


def noise_with(value):
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    values[1, 2, 3] = value
    return values


IMAGE_FAULTS = {  # what is done to an image, and the beginning of the one error that is reported for it
    "cut off": (cut, "expected a whole gzip stream, got one that is cut off; copy or download it again."),
    "flipped byte": (flip_stored_byte, "expected a sound gzip stream, got a damaged one (CRC check failed"),
    "empty": (lambda f: f.write_bytes(b""), "expected a NIfTI header, got a file that begins with b''"),
    "pointer": (lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "expected a sound gzip stream"),
    "first bytes": (lambda f: f.write_bytes(b"\x1f\x8b"), "expected a whole gzip stream"),
    "zeros": (lambda f: f.write_bytes(bytes(400)), "expected a "),
    "nan": (lambda f: write_volume(f, noise_with(np.nan)), "expected finite values, got 1 NaN or infinite voxel(s); "),
    "inf": (lambda f: write_volume(f, noise_with(-np.inf)), "expected finite values, got 1 NaN or infinite voxel(s); "),
    "nan in affine": (lambda f: with_affine(f, shifted(np.nan)), "expected an invertible affine, got [[1.0, 0.0, 0"),
    "flat": (lambda f: with_affine(f, np.diag([1.0, 0, 1, 1])), "expected an invertible affine, got [[1.0"),
    "micron": (lambda f: with_header(f, lambda v: v.header.set_xyzt_units("micron")), "expected mm as unit of length"),
    "4D": (lambda f: write_volume(f, np.ones((*SHAPE, 3), "f4")), "expected 1 channel(s), got 3; choose the"),
    "5D": (lambda f: write_volume(f, np.ones((*SHAPE, 2, 3), "f4")), "expected 3 spatial axes, got shape ("),
    "2D": (lambda f: write_volume(f, np.ones((6, 5), "f4")), "expected 3 spatial axes, got shape (6, 5); "),
    "complex": (lambda f: write_volume(f, np.ones(SHAPE, "c8")), "expected real numbers, got complex numbers"),
    "colours": (lambda f: write_volume(f, np.ones(SHAPE, RGB)), "expected real numbers, got colours"),
    "missing": (lambda f: f.unlink(), "expected a file, got none; restore it."),
    "dangling": (lambda f: (f.unlink(), f.symlink_to("gone.nii.gz")), "expected a file, got a link to gone.nii.gz"),
    "pixdim": (lambda f: with_affine(f, np.eye(4), (1, 1, 1.01)), "expected the affine's voxel size [1.0, 1.0, 1.0]"),
    "too large": (lambda f: with_header(f, lambda v: v.header.set_slope_inter(1e37, 0)), "expected values within"),
}  # fmt: skip


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_fault_of_an_image(task, fault):
    spoil, error = IMAGE_FAULTS[fault]
    write_volume(image(task), shape=(6, 5, 4))
    spoil(image(task))
    found = [line for line in check_dataset(task).errors if line.startswith(f"{image(task)}: {error}")]
    assert len(found) == 1
    load = LoadImaged("image", reader=CheckedNibabelReader(), ensure_channel_first=True)
    with pytest.raises((ValueError, RuntimeError)) as raised:  # what prepares volumes raises the same
        Compose([load, CheckVolumed("image")])({"image": str(image(task))})
    assert str(root_cause(raised.value)).replace("gz, image: ", "gz: ") == found[0] or fault in ("5D", "too large")


def test_faults_of_the_grid_come_with_image_and_label_map(task):
    for spoil, error in (
        (sheared, "expected axes at right angles within 0.01, got a cosine of 0.196"),
        (lambda f: with_affine(f, np.diag([1000.0, 1, 1, 1])), "expected voxel sizes from 0.01 to 100 mm, got 1000"),
        (lambda f: with_affine(f, shifted(2e6)), "expected a place within 1e+06 mm, got 2e+06 mm"),
        (lambda f: with_affine(f, np.eye(4), (1, 1, 1.01)), "expected the affine's voxel size [1.0, 1.0, 1.0]"),
    ):  # fmt: skip
        spoil(image(task)), spoil(label(task))
        errors = check_dataset(task).errors
        assert [line.split(": ", 1)[0] for line in errors] == [str(image(task)), str(label(task))]
        assert all(line.split(": ", 1)[1].startswith(error) for line in errors)
    for file in (image(task), label(task)):
        sheared(file, 0.001)  # what rounding in headers leaves
    assert check_dataset(task).lines == []


def test_both_codes_0_and_forms_that_disagree_are_warnings(task):
    for code, qform, found in (
        (0, None, "expected sform_code or qform_code above 0, got 0 for both: readers guess the directions; write an"),
        (1, np.diag([-1, 1, 1, 1]), "expected a qform on the sform's grid, got one whose corners are up to 10 mm away"),
        (1, np.eye(4), None),
    ):
        volume = nib.load(image(task))
        volume = nib.Nifti1Image(np.asarray(volume.dataobj), np.eye(4), volume.header)
        volume.set_sform(np.eye(4), code)
        volume.set_qform(qform, int(qform is not None))
        nib.save(volume, image(task))
        lines = [line for line in check_dataset(task).warnings if str(image(task)) in line]
        assert [line.startswith(f"{image(task)}: {found}") for line in lines] == [True] * (found is not None)


def test_every_byte_of_the_header_may_be_anything(tmp_path):
    # Whatever it says, the check ends with a finding or without one, and does not ask for memory.
    content = write_volume(tmp_path / "images" / "a.nii").read_bytes()
    for place in range(348):
        spoiled = bytearray(content)
        spoiled[place] ^= 0xFF
        (tmp_path / "images" / "a.nii").write_bytes(bytes(spoiled))
        assert all("\n" not in line for line in check_dataset(images=tmp_path / "images").lines)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_file_that_may_not_be_read(task):
    image(task).chmod(0)
    assert "expected a file that can be read" in only_error(task)


def test_channels_of_the_list_and_of_the_argument(tmp_path):
    folder = write_task(tmp_path / "task", modality={"0": "T1", "1": "T2"})
    errors = check_dataset(folder).errors
    assert (len(errors), "expected 2 channel(s), got 1" in errors[0]) == (3, True)
    assert check_dataset(folder, channels=1).errors == []
    assert "expected at least one case, got none" in only_error(write_task(tmp_path / "empty", cases=0))


def test_constant_image_and_empty_label_map(task):
    write_volume(image(task), np.full(SHAPE, 7, np.int16))
    assert "expected an image that varies, got 7 in every voxel" in only_warning(task)
    write_volume(image(task))
    write_labels(label(task), last=0)
    assert f"{label(task)}: expected labelled voxels, got 0 in every voxel" in only_warning(task)
    for case in range(3):
        write_labels(label(task, case), last=0)
    report = check_dataset(task)
    assert len(report.warnings) == 3
    assert "expected labelled voxels, got none in any label map" in report.errors[0]


def test_facts_are_those_that_loading_has(task):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    write_volume(image(task), values)
    with_header(image(task), lambda v: v.header.set_slope_inter(-2, 3))
    labels = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    write_volume(label(task), labels * np.uint8(10))
    with_header(label(task), lambda v: v.header.set_slope_inter(0.1, 0))  # as float32 it is a little more than that
    assert nib.load(label(task)).get_fdata().max() != 1
    report = check_dataset(task)
    assert report.lines == []
    facts, read = report.facts[str(image(task)), False], nib.load(image(task)).get_fdata()
    assert (facts.minimum, facts.maximum) == (read.min(), read.max())
    expected = [[float(v), int(n)] for v, n in zip(*np.unique(labels, return_counts=True), strict=True)]
    assert report.facts[str(label(task)), True].labels == expected


# Image and label map.


def test_grid_of_the_label_map(task):
    write_labels(label(task), 0, shape=(6, 5, 3))
    found = (
        f"{label(task)}: expected the shape (6, 5, 4) of the image {image(task)}, got (6, 5, 3); pair the right files."
    )
    assert only_error(task) == found
    write_labels(label(task), 0, affine=shifted(50))
    found = f"{label(task)}: expected the grid of the image {image(task)}, got one whose corners are up to 50 mm away"
    assert only_error(task).startswith(found)
    write_labels(label(task), 0, affine=shifted(0.01))  # rounded headers
    assert check_dataset(task).lines == []


def test_label_outside_the_list(task):
    for values, found in (
        ((7,), "got 7; change the labels"),
        ((-1, 5, 6), "got -1, 5, 6; "),
        (range(2, 20), "got 2, 3, 4, 5, 6 and 13 more; "),
        ((0.5,), "got 0.5; "),
        ((1.002,), "got 1.00199997; "),
    ):
        write_labels(label(task), *values, dtype=np.int16 if np.asarray(values).dtype.kind == "i" else np.float32)
        assert f"{label(task)}: expected whole numbers from 0 to 1, {found}" in only_error(task)


def test_labels_that_are_whole_but_for_rounding(task):
    write_labels(label(task), 0.99999994, 1.0004, -0.0003, dtype=np.float32)
    assert check_dataset(task).lines == []
    write_labels(label(task), np.nan, dtype=np.float32)
    assert f"{label(task)}: expected finite values, got 1 NaN" in only_error(task)


def test_classes_that_are_not_there(tmp_path):
    folder = write_task(tmp_path / "task", labels={"0": "background", "1": "liver", "2": "tumour"})
    assert "expected label 2 (tumour), got none in any label map" in only_warning(folder)
    report = check_dataset(**pair(tmp_path, "a", 0, last=255))
    assert report.errors == []
    assert "expected labels without gaps, got none for 1, 2, 3, 4, 5 and more" in report.warnings[0]
    report = check_dataset(**pair(tmp_path, "a", 0, last=255), num_classes=2)
    assert "expected whole numbers from 0 to 1, got 255" in report.errors[0]


@pytest.mark.parametrize("largest", [3_000_000, 2_000_000_000])  # by counting, 0.2 GB and more than 100 GB
def test_huge_label_takes_no_memory(tmp_path, largest):
    folders = pair(tmp_path, "a", 1, last=largest, dtype=np.int32)
    tracemalloc.start()
    report = check_dataset(**folders, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.errors == []
    assert "expected labels without gaps, got none for 2, 3, 4, 5, 6 and more" in report.warnings[0]
    assert peak < 64 << 20


# The list.


def test_label_file_missing_in_a_folder_is_listed_and_the_others_stay_paired(tmp_path):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz", shape=(6, 5, 3 + ord(name) % 4))
        write_labels(tmp_path / "labels" / f"{name}.nii.gz", 0, shape=(6, 5, 3 + ord(name) % 4))
    (tmp_path / "labels" / "a.nii.gz").unlink()  # in order, b would get the label map of a
    (tmp_path / "images" / "c.nii.gz").unlink()
    first, second = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels").errors
    assert first.startswith(f"{tmp_path / 'images' / 'a.nii.gz'}: expected a label map, got none named a in ")
    assert second.startswith(f"{tmp_path / 'labels' / 'c.nii.gz'}: expected an image, got none named c in ")


def test_links_and_hidden_folders(tmp_path):
    folders = pair(tmp_path, "a", 0)
    write_volume(tmp_path / "elsewhere" / "b.nii.gz")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "c.nii.gz").symlink_to("annex/c.nii.gz")
    write_volume(tmp_path / "images" / ".snapshot" / "a.nii.gz", seed=1)
    report = check_dataset(images=folders["images"])
    assert report.cases == 3
    (error,) = report.errors
    assert error.startswith(f"{tmp_path / 'images' / 'c.nii.gz'}: expected a file, got a link to annex/c.nii.gz, which")
    assert report.warnings == []


def test_channels_in_files_of_their_own(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz")
    for name in "ab":
        write_labels(tmp_path / "labels" / f"{name}.nii.gz", 0)
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    assert check_dataset(**folders, channels=2).errors == []
    write_volume(tmp_path / "images" / "b_0001.nii.gz", affine=shifted(50))
    assert "b_0001.nii.gz: expected the grid of the image" in check_dataset(**folders).errors[0]
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    assert "b_0000.nii.gz: expected 2 channel(s), got 1" in check_dataset(**folders, channels=2).errors[0]


def test_numbers_of_cases_are_no_channels(tmp_path):
    for name in ("case_0001", "case_0002", "case_0003", "new_0000", "new_0001"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz")
    write_labels(tmp_path / "labels" / "case_0001.nii.gz", 0)
    report = check_dataset(images=tmp_path / "images", labels=tmp_path / "labels", channels=1)
    unpaired = [error for error in report.errors if "expected a label map" in error]
    assert report.cases == 4  # the last two are channels, for there is a channel 0
    names = ["none named case_0002", "none named case_0003", "none named new"]
    assert [error.split(", got ")[1].split(" in ")[0] for error in unpaired] == names


def test_two_inputs_with_the_same_basename(tmp_path):
    write_volume(tmp_path / "images" / "a" / "scan.nii.gz", seed=1)
    write_volume(tmp_path / "images" / "b" / "scan.nii.gz", seed=2)
    (warning,) = check_dataset(images=tmp_path / "images").warnings
    assert warning.startswith(f"{tmp_path / 'images' / 'b' / 'scan.nii.gz'}: expected a file name of its own, got ")
    assert str(tmp_path / "images" / "a" / "scan.nii.gz") in warning


def test_copies_by_content(task):
    image(task, 2).write_bytes(image(task, 0).read_bytes())
    with_header(image(task, 2), lambda v: v.header.__setitem__("descrip", b"another header"))
    assert only_error(task) == (
        f"{image(task, 2)}: expected voxels of its own, got those of {image(task, 0)}; remove one of the two."
    )
    content = np.asarray(nib.load(image(task, 0)).dataobj).astype(np.int16)
    write_volume(image(task, 0), content)
    scaled = bytearray(gzip.decompress(image(task, 0).read_bytes()))
    scaled[112:120] = np.array([0.5, 3], "<f4").tobytes()  # scl_slope and scl_inter
    image(task, 2).write_bytes(gzip.compress(scaled))
    np.testing.assert_array_equal(nib.load(image(task, 2)).get_fdata(), content * 0.5 + 3)
    assert check_dataset(task).errors == []  # the same numbers in the file, other values


def test_faults_of_the_list(tmp_path):
    task = write_task(tmp_path / "task", numTraining=5, test=["./imagesTs/new.nii.gz"])
    write_volume(task / "imagesTr" / "stray.nii.gz")
    (task / "imagesTr" / "._case_0.nii.gz").write_bytes(b"of another system")
    change_list(task, lambda content: content["training"].append(content["training"][0]))
    change_list(task, lambda content: content["training"][1].pop("label"))
    report = check_dataset(task)
    assert [error.removeprefix(str(task)) for error in report.errors] == [
        "/imagesTr/case_1.nii.gz: expected a label map, got none at training[1]; add it to the list.",
        "/imagesTs/new.nii.gz: expected a file, got none; restore it.",
        *(
            f"/{part}/case_0.nii.gz: expected each file once on the list, got 2 times, at training[0], training[3]; "
            "remove all but one."
            for part in ("imagesTr", "labelsTr")
        ),
    ]
    for text in (
        "stray.nii.gz: expected each volume on the",
        "labelsTr/case_1",
        "expected numTraining = 5 cases, got 4",
    ):
        assert any(text in line for line in report.warnings)
    write_volume(task / "imagesTs" / "new.nii.gz")
    assert not any("imagesTs" in line for line in check_dataset(task).lines)


BROKEN_LISTS = {
    "{": "expected JSON, got something else",
    "[]": "expected a list 'training', got None",
    '{"training": {}}': "expected a list 'training', got {}",
    '{"training": [3]}': "training[0]: expected a path or a dictionary with image, got 3",
    '{"training": [{"image": 3}]}': "training[0]: expected a path, got 3",
    '{"training": [], "labels": {"liver": 1}}': "expected 'labels' from number to name, got {'liver': 1}",
    '{"training": [], "test": 3}': "expected a list 'test', got 3",
    '{"training": [{"image": []}]}': "training[0]: expected at least one image, got none; name one",
    '{"training": [[]]}': "training[0]: expected at least one image, got none; name one",
    '{"training": ["a\\u0000.nii"]}': "training[0]: expected a path of characters that names have, got 'a\\x00.nii'",
    '{"training": ["a\\ud800.nii"]}': "training[0]: expected a path of characters that names have, got 'a\\ud800",
    '{"training": ["a\\nb.nii"]}': "training[0]: expected a path of characters that names have, got 'a\\nb.nii'",
    '{"training": ' + "[" * 200_000: "expected JSON, got something else (maximum recursion depth exceeded",
    '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "all": [1, 2]}}': "regions are not read",
    '{"channel_names": {"0": "CT"}, "labels": {"b": 0}, "file_ending": ".mha"}': "expected file_ending .nii",
}  # fmt: skip


def test_list_that_is_no_list(tmp_path):
    pair(tmp_path, "a", 0)
    (tmp_path / "images").rename(tmp_path / "imagesTr"), (tmp_path / "labels").rename(tmp_path / "labelsTr")
    for text, error in BROKEN_LISTS.items():
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match=r"dataset\.json") as raised:
            check_dataset(tmp_path)
        assert error in str(raised.value)
        assert "\n" not in str(raised.value)


def test_names_of_classes_take_one_line(tmp_path):
    folder = write_task(tmp_path / "task", labels={"0": "a", "1": "b\nc", "2": "\ud800"})
    assert "expected label 2 (?), got none" in only_warning(folder)
    assert "b?c" in check_dataset(folder).table()
    assert check_dataset(folder).table().isascii()


def test_arguments_that_make_no_sense():
    for arguments in (
        {},
        {"source": "task", "images": "task"},
        {"labels": "task"},
        {"source": "task", "workers": 0},
        {"source": "task", "num_classes": True},
        {"source": "absent"},
        {"images": "absent"},
        {"source": [{"label": "a.nii"}]},
        {"source": [{"image": 3, "label": "a.nii"}]},
        {"source": [{"image": [], "label": "a.nii"}]},
        {"source": [{"image": "a\0.nii", "label": "a.nii"}]},
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            check_dataset(**arguments)
        assert "\n" not in str(raised.value)


def test_data_dictionaries(task):
    data = load_datalist(task)
    assert check_dataset(data).lines == []
    assert "expected a label map, got none at data[1]" in only_error([data[0], {"image": data[1]["image"]}])
    assert check_dataset([{"image": item["image"]} for item in data]).lines == []


# In several processes, and in time.


def test_several_processes_find_the_same_unless_one_is_killed(task, monkeypatch):
    cut(image(task))
    alone, together = check_dataset(task, workers=1), check_dataset(task, workers=2)
    assert (together.lines, together.facts) == (alone.lines, alone.facts)
    monkeypatch.setattr(_check_dataset, "read_facts", _die)
    with pytest.raises(RuntimeError, match=r"^a reading process was ended from outside, .*; set workers to 1\.$"):
        check_dataset(task, workers=2)


def _die(path, label):
    os.kill(os.getpid(), 9)


def test_hippocampus_is_sound_and_quick():
    folder = shared("data", "Task04_Hippocampus")
    tries = []
    while len(tries) < 3 and min(tries, default=10) >= 10:  # what else the machine does is none of the check's own time
        start = time.perf_counter()
        report = check_dataset(folder)
        tries.append(time.perf_counter() - start)
        assert (report.errors, len(report.facts)) == ([], 416)
    assert min(tries) < 10


# The command line.


def run(capsys, *argv):
    status = main(["check", *map(str, argv)])
    return status, *capsys.readouterr()


def test_command_on_a_sound_data_set(capsys, task, tmp_path):
    two_folders = f"--images={task / 'imagesTr'}", f"--labels={task / 'labelsTr'}", "--num_classes=2"
    assert "3 cases, 6 files" in run(capsys, *two_folders)[1]
    status, out, err = run(capsys, task, f"--output={tmp_path / 'new' / 'report.json'}")
    assert (status, err) == (0, "")
    assert "3 cases, 6 files" in out
    assert "6 x 5 x 4" in out
    assert "0 errors, 0 warnings" in out
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (report["errors"], report["cases"], len(report["files"])) == (0, 3, 6)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.json"]


def test_command_reports_each_finding_in_a_line_and_fails(capsys, task, tmp_path):
    cut(image(task))
    with_affine(image(task, 2), np.diag([np.nan, 1, 1, 1]))
    write_labels(label(task, 0), last=0)
    status, out, err = run(capsys, f"--input={task / 'dataset.json'}", f"--output={tmp_path / 'report.json'}")
    assert status == 1
    assert err.startswith(f"error: {task / 'dataset.json'}: expected no errors, got 2; ")
    lines = [line for line in out.splitlines() if line.startswith(("error ", "warning "))]
    assert [line.split(":")[0] for line in lines] == [
        f"error {image(task)}",
        f"error {image(task, 2)}",
        f"warning {label(task, 0)}",
    ]
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [finding["rule"] for finding in findings] == ["file", "affine", "empty"]
    assert {"file", "rule", "expected", "got", "hint", "severity"} == set(findings[0])


def test_command_never_overwrites_and_says_first_what_it_cannot_write(capsys, task, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_scaleequiv.cli._commands.check_dataset", lambda **options: pytest.fail("work was done"))
    (tmp_path / "report.json").write_text("mine")
    for target, text in (
        (tmp_path / "report.json", "report.json exists already; choose another file"),
        (task / "dataset.json" / "report.json", "--output: expected a folder that can be written to"),
    ):
        status, out, err = run(capsys, task, f"--output={target}")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert text in err
    assert (tmp_path / "report.json").read_text() == "mine"


def test_command_errors_take_one_line(capsys):
    for argv, found in (
        ((), "expected a data set or --images"),
        (("absent",), "absent does not exist; give a folder with dataset.json"),
        (("--labels=absent",), "expected a data set or --images"),
        (("here", "--images=here"), "expected a data set or --images"),
        (("here", "--num_classes=two"), "num_classes: expected a whole number of at least 1, got 'two'"),
        (("here", "--outptu=report.json"), "--outptu"),
        (("here", "there"), "there"),
    ):
        status, out, err = run(capsys, *argv)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert found in err


def test_report_that_came_in_the_meantime_stays(task, tmp_path, capsys, monkeypatch):
    report = tmp_path / "report.json"

    def meanwhile(**options):
        report.write_text("of another")
        return check_dataset(**options)

    monkeypatch.setattr("monai_scaleequiv.cli._commands.check_dataset", meanwhile)
    assert main(["check", str(task), f"--output={report}"]) == 1
    assert capsys.readouterr().err == f"error: {report} exists by now; choose another file.\n"
    assert report.read_text() == "of another"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == ["report.json"]
