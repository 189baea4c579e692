"""Input lists, and label maps on the input's own grid."""

import errno
import functools
import gzip
import os
import re
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKReader, MetaTensor
from monai.transforms import LoadImaged, SaveImaged

from monai_scaleequiv.data import (
    CheckedNibabelReader,
    InputGridWriter,
    check_output_dir,
    loader_workers,
    nifti_datalist,
)

from .fault_files import write_volume

SHAPE = (6, 5, 4)
# Axes permuted and flipped, voxels 0.5 x 3 x 1.25 mm; and the same turned by 0.3 about the last axis.
PERMUTED = np.array([[0, 3.0, 0, -20], [0, 0, -1.25, 31.5], [0.5, 0, 0, 7.25], [0, 0, 0, 1]])
TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0, 0], [np.sin(0.3), np.cos(0.3), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
OBLIQUE = TURN @ PERMUTED
# What may differ between the headers of a label map and its image.
VALUE_FIELDS = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max"}


def make_volume(path, shape=SHAPE, sform=OBLIQUE, qform=OBLIQUE, codes=(1, 1), kind=nib.Nifti1Image, dtype=np.int16):
    """A volume whose header has something to lose."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    image = kind(values, None)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(qform, codes[1], strip_shears=True)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    image.header["descrip"] = b"scanner 3, protocol 7"
    image.header["aux_file"] = b"none"
    image.header["cal_max"] = 900
    image.header["toffset"] = 1.5
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept as well"))
    nib.save(kind(values, image.header.get_best_affine(), image.header), path)
    return path


def raw_header(path):
    """Header fields as they stand in the file."""
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if str(path).endswith(".gz") else content
    dtype = nib.Nifti1Header.template_dtype if content[:4] == b"\x5c\x01\0\0" else nib.Nifti2Header.template_dtype
    header = np.frombuffer(content[: dtype.itemsize], dtype)[0]
    return {name: header[name].tolist() for name in dtype.names}


def save(path, folder, labels=None, **options):
    """Writes a label map for the image in the file, as the bundles do; returns its path and its values."""
    image = LoadImaged("image", reader=CheckedNibabelReader(), ensure_channel_first=True)({"image": path})["image"]
    if labels is None:
        labels = torch.arange(image[0].numel()).reshape(image.shape) % 3
    data = {"pred": MetaTensor(labels.float(), meta=image.meta)}
    options = {"output_dtype": "uint8", "output_postfix": "seg", "writer": InputGridWriter, **options}
    SaveImaged("pred", output_dir=folder, separate_folder=False, resample=False, print_log=False, **options)(data)
    (saved,) = [file for file in Path(folder).glob("*_seg*") if not file.name.startswith(".")]
    return saved, labels[0].numpy()


@pytest.fixture
def tree(tmp_path):
    """A folder of files such as users have."""
    for name in ("b.nii", "a.nii.gz", "sub/deep/c.nii.gz", "._a.nii.gz", "sub/.d.nii", "notes.txt", "e.mha", "f.gz"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "data" / "empty").mkdir()
    return tmp_path / "data"


def test_datalist_of_a_folder_and_of_several(tree):
    expected = [{"image": str(tree / name)} for name in ("a.nii.gz", "b.nii", "sub/deep/c.nii.gz")]
    assert nifti_datalist(str(tree)) == nifti_datalist(tree) == expected
    several = [tree / "sub", str(tree / "b.nii"), tree / "a.nii.gz", tree / "b.nii"]  # in this order, without repeats
    expected = [{"label": str(tree / name)} for name in ("sub/deep/c.nii.gz", "b.nii", "a.nii.gz")]
    assert nifti_datalist(several, key="label") == expected


def test_datalist_takes_capital_letters_and_files_alone(tree):
    for name in ("sub/D.NII.GZ", "G.Nii"):
        (tree / name).touch()
    for name in ("h.nii", "i.nii.gz"):
        (tree / name).mkdir()
    (tree / "h.nii" / "j.nii").touch()
    found = [str(Path(item["image"]).relative_to(tree)) for item in nifti_datalist(tree)]
    assert found == ["G.Nii", "a.nii.gz", "b.nii", "h.nii/j.nii", "sub/D.NII.GZ", "sub/deep/c.nii.gz"]
    os.mkfifo(tree / "k.nii")
    assert {"image": str(tree / "k.nii")} in nifti_datalist(tree)  # reading reports it
    assert nifti_datalist(tree / "G.Nii") == [{"image": str(tree / "G.Nii")}]
    with pytest.raises(ValueError, match=r"k.nii is not a .nii or .nii.gz file"):
        nifti_datalist(tree / "k.nii")


@pytest.mark.parametrize("name", ["A.NII.GZ", "A.NII", "a.nii.GZ", "a.b.nii.gz"])
def test_result_is_looked_for_where_it_is_written(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = make_volume(tmp_path / "in" / name)
    saved, _ = save(path, tmp_path / "out")
    assert nifti_datalist(tmp_path / "in", results=tmp_path / "out", skip_existing=True) == []
    with pytest.raises(FileExistsError, match=re.escape(str(saved))):
        nifti_datalist(path, results=tmp_path / "out")


def test_sources_that_are_no_inputs(tree):
    for name, error, found in (
        ("absent", FileNotFoundError, "does not exist"),
        ("absent.nii", FileNotFoundError, "does not exist"),
        ("empty", FileNotFoundError, "holds no .nii or .nii.gz file"),
        ("notes.txt", ValueError, "is not a .nii or .nii.gz file"),
        ("e.mha", ValueError, "is not a .nii or .nii.gz file"),
        ("f.gz", ValueError, "is not a .nii or .nii.gz file"),
    ):
        for source in (tree / name, [tree / "b.nii", tree / name]):
            with pytest.raises(error, match=f"^{re.escape(str(tree / name))} {found}.*$"):
                nifti_datalist(source)


def test_two_files_whose_results_would_collide(tree):
    (tree / "twin").mkdir()
    for name in ("a.nii.gz", "a.nii"):
        (tree / "twin" / name).touch()
        with pytest.raises(ValueError, match=rf"{tree / 'a.nii.gz'} and {tree / 'twin' / name} have the same name"):
            nifti_datalist([tree / "a.nii.gz", tree / "twin" / name])


def test_datalist_of_a_link_to_a_listed_file_is_no_collision(tree):
    (tree / "links").mkdir()
    (tree / "links" / "b.nii").symlink_to(tree / "b.nii")
    assert len(nifti_datalist(tree)) == 4


def test_results_are_not_replaced(tree, tmp_path):
    results = tmp_path / "results"
    listed = nifti_datalist(tree, results=results)
    assert listed == nifti_datalist(tree)
    assert not results.exists()
    results.mkdir()
    (results / "other_seg.nii.gz").touch()
    (results / "b_mask.nii.gz").touch()
    assert nifti_datalist(tree, results=results) == listed
    with pytest.raises(FileExistsError, match=r"b_mask.nii.gz exists already"):
        nifti_datalist(tree, results=results, postfix="mask")
    (results / "c_seg.nii.gz").touch()
    with pytest.raises(FileExistsError, match=r"c_seg.nii.gz exists already"):
        nifti_datalist(tree, results=str(results))
    assert nifti_datalist(tree, results=results, overwrite=True) == listed
    (results / "c_seg.nii.gz").unlink()
    with pytest.raises(FileExistsError, match=r"b_mask.nii.gz exists already"):
        nifti_datalist(tree, results=results, postfix=["seg", "mask"])


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        write_volume(tmp_path / "in" / f"{name}.nii.gz", shape=(12, 12, 12))
    return tmp_path / "in"


def test_channels_in_files_of_their_own_are_one_case(tmp_path):
    for name in ("p_0000", "p_0001", "q_0000", "q_0001", "whole"):
        write_volume(tmp_path / "in" / f"{name}.nii.gz")
    listed = nifti_datalist(tmp_path / "in", results=tmp_path / "out", channels=2)
    names = [item["image"] for item in listed]
    whole = str(tmp_path / "in" / "whole.nii.gz")
    assert names == [*([str(tmp_path / "in" / f"{n}_000{c}.nii.gz") for c in range(2)] for n in "pq"), whole]
    assert len(nifti_datalist(tmp_path / "in")) == 5  # with one channel each is a case
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p_0000_seg.nii.gz").write_bytes(b"mine")
    left = nifti_datalist(tmp_path / "in", results=tmp_path / "out", channels=2, skip_existing=True)
    assert left == listed[1:]
    (tmp_path / "in" / "q_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"q_0000.nii.gz: expected 2 files, one per channel, q_0000 to q_0001, got 1"):
        nifti_datalist(tmp_path / "in", channels=2)


def test_volume_that_lacks_a_result_is_run_again(tmp_path, folder):
    results = tmp_path / "out"
    results.mkdir()
    for name in ("a_seg", "a_scale", "b_seg", "c_seg", "d_seg", "d_scale"):
        (results / f"{name}.nii.gz").write_bytes(b"mine")
    (results / "d_seg.nii.gz").write_bytes(b"")  # no program finishes with an empty file
    with pytest.raises(ValueError, match="skip_existing: expected overwrite=false with it, got true; choose one"):
        nifti_datalist(folder, overwrite=True, skip_existing=True)
    with pytest.raises(ValueError, match='Got "x", expected a value from: yes, true'):
        nifti_datalist(folder, overwrite="x")
    left = nifti_datalist(folder, results=results, postfix=["seg", "scale"], skip_existing=True)
    assert [Path(item["image"]).name[0] for item in left] == ["b", "c", "d"]


@pytest.mark.parametrize("more", [{"overwrite": True}, {"skip_existing": True}, {}])
def test_input_is_never_replaced_nor_segmented_as_a_result(tmp_path, folder, more):
    """A folder with images a and a_seg, and results into the same folder."""
    write_volume(folder / "a_seg.nii.gz", shape=(12, 12, 12))
    if more != {"skip_existing": True}:
        found = f"{folder / 'a_seg.nii.gz'}: expected room for the result of {folder / 'a.nii.gz'}, got another input; "
        with pytest.raises(FileExistsError, match="^" + re.escape(found)):
            nifti_datalist(folder, results=folder, **more)
        linked = tmp_path / "linked"
        linked.symlink_to(folder)
        with pytest.raises(FileExistsError, match="got another input"):
            nifti_datalist(folder, results=linked, **more)
        return
    with pytest.warns(UserWarning, match=r"^1 input\(s\) left out as results of other inputs, such as .*a_seg"):
        left = nifti_datalist(folder, results=folder, **more)
    assert [Path(item["image"]).name for item in left] == ["b.nii.gz", "c.nii.gz", "d.nii.gz"]


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


# Writing.


FLIPPED = np.diag([-1, 1, 1, 1])
HEADERS = {
    "scanner": {"codes": (1, 1)},
    "sform": {"codes": (4, 0)},
    "qform": {"codes": (0, 2)},
    "neither": {"codes": (0, 0)},
    "disagreeing": {"codes": (2, 1), "qform": PERMUTED},  # the sform counts, the qform stays
    "permuted": {"sform": PERMUTED, "qform": PERMUTED, "codes": (3, 3)},
    "flipped": {"sform": FLIPPED, "qform": FLIPPED},
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_label_map_has_the_header_of_its_image(tmp_path, suffix, header, kind):
    path = make_volume(tmp_path / f"scan{suffix}", kind=kind, **header)
    saved, labels = save(path, tmp_path / "out")
    before, after = raw_header(path), raw_header(saved)
    assert after["sizeof_hdr"] == {nib.Nifti1Image: 348, nib.Nifti2Image: 540}[kind]
    differing = {name for name in before if before[name] != after[name]}
    assert differing <= VALUE_FIELDS
    assert (after["datatype"], after["bitpix"]) == (2, 8)
    assert (after["cal_min"], after["cal_max"]) == (0, 0)
    image, label_map = nib.load(path), nib.load(saved)
    assert type(label_map) is kind
    np.testing.assert_array_equal(label_map.affine, image.affine)
    assert label_map.header.get_xyzt_units() == ("mm", "sec")
    assert [e.get_content() for e in label_map.header.extensions] == [e.get_content() for e in image.header.extensions]
    assert label_map.header.get_slope_inter() in ((1, 0), (None, None))
    assert label_map.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label_map.dataobj), labels)


def test_scaled_intensities_leave_no_trace_in_the_labels(tmp_path):
    image = nib.load(make_volume(tmp_path / "plain.nii"))
    image.header.set_slope_inter(0.25, -100)
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine, image.header), tmp_path / "scan.nii")
    assert raw_header(tmp_path / "scan.nii")["scl_slope"] != 1
    saved, labels = save(tmp_path / "scan.nii", tmp_path / "out")
    np.testing.assert_array_equal(nib.load(saved).get_fdata(), labels)


@pytest.mark.parametrize("shape", [(6, 5, 1), (1, 6, 5), (6, 1, 1), (6, 5, 4, 1)])
def test_slices_and_a_time_axis_of_one(tmp_path, shape):
    path = make_volume(tmp_path / "scan.nii.gz", shape=shape)
    saved, labels = save(path, tmp_path / "out")
    assert nib.load(saved).shape == shape[:3]
    np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), labels.reshape(shape[:3]))
    before, after = raw_header(path), raw_header(saved)
    for header in (before, after):
        header["dim"], header["pixdim"] = header["dim"][1:4], header["pixdim"][:4]
    assert {name for name in before if before[name] != after[name]} <= VALUE_FIELDS
    np.testing.assert_array_equal(nib.load(saved).affine, nib.load(path).affine)


@pytest.mark.parametrize("affine", [PERMUTED, OBLIQUE])
def test_itk_sees_the_label_map_where_it_sees_the_image(tmp_path, affine):
    path = make_volume(tmp_path / "scan.nii.gz", sform=affine, qform=affine)
    saved, labels = save(path, tmp_path / "out")
    image, label_map = itk.imread(str(path)), itk.imread(str(saved))
    for read in ("GetSpacing", "GetOrigin"):
        np.testing.assert_array_equal(list(getattr(label_map, read)()), list(getattr(image, read)()))
    np.testing.assert_array_equal(
        itk.array_from_matrix(label_map.GetDirection()), itk.array_from_matrix(image.GetDirection())
    )
    np.testing.assert_array_equal(itk.array_from_image(label_map).T, labels)
    loaded = LoadImaged("pred", reader=ITKReader(), ensure_channel_first=True)({"pred": saved})["pred"]
    np.testing.assert_allclose(loaded.affine, affine, atol=1e-5)


def writing(**options):
    return functools.partial(InputGridWriter, **options)


def test_earlier_label_map_is_replaced_only_if_writing(tmp_path):
    path = make_volume(tmp_path / "scan.nii")
    saved, _ = save(path, tmp_path / "out", torch.zeros(1, *SHAPE))
    before = saved.read_bytes()
    with pytest.raises(RuntimeError, match=r"scan_seg.nii.gz exists already; choose another output_dir, or set overw"):
        save(path, tmp_path / "out", torch.ones(1, *SHAPE))
    with pytest.raises(RuntimeError, match="exists already"):
        save(path, tmp_path / "out", torch.ones(1, *SHAPE), writer=writing(overwrite="false", skip_existing="false"))
    save(path, tmp_path / "out", torch.ones(1, *SHAPE), writer=writing(skip_existing=True))
    assert saved.read_bytes() == before
    save(path, tmp_path / "out", torch.ones(1, *SHAPE), writer=writing(overwrite=True))
    assert np.unique(nib.load(saved).dataobj) == [1]
    assert list((tmp_path / "out").iterdir()) == [saved]


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}, {"overwrite": True}])
def test_writer_never_replaces_its_own_input(tmp_path, options):
    (tmp_path / "in").mkdir()
    path = make_volume(tmp_path / "in" / "scan_seg.nii.gz")
    before = path.read_bytes()
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    for folder in ("in", "linked"):
        with pytest.raises(RuntimeError, match=r"scan_seg.nii.gz is the input itself; choose another output_dir"):
            save(path, tmp_path / folder, output_postfix="", writer=writing(**options))
        with pytest.raises(FileExistsError, match=r"got another input|exists already"):
            nifti_datalist(path, results=tmp_path / folder, postfix="")
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}, {"overwrite": True}])
def test_empty_file_is_no_label_map(tmp_path, options):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg.nii.gz").touch()
    saved, labels = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out", writer=writing(**options))
    np.testing.assert_array_equal(nib.load(saved).get_fdata(), labels)


def test_file_that_comes_while_the_label_map_is_made_is_kept(tmp_path, monkeypatch):
    def meanwhile(image, target, save=nib.save):
        save(image, target)
        (tmp_path / "out" / "scan_seg.nii.gz").write_bytes(b"mine")

    path = make_volume(tmp_path / "scan.nii")
    monkeypatch.setattr(nib, "save", meanwhile)
    with pytest.raises(RuntimeError, match=r"scan_seg.nii.gz exists already"):
        save(path, tmp_path / "out")
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"mine"]


def test_values_that_the_data_type_does_not_hold_are_errors(tmp_path):
    path, labels = make_volume(tmp_path / "scan.nii"), torch.ones(1, *SHAPE)
    for value in (float("nan"), float("inf"), 300, -1, 1.7):
        labels[0, 2, 1, 3] = value
        found = (
            rf"scan.nii: expected values that uint8 holds as they are, got {re.escape(f'{value:g}')}; choose another"
        )
        with pytest.raises(RuntimeError, match=found):
            save(path, tmp_path / "out", labels)
        assert list((tmp_path / "out").iterdir()) == []
    saved, values = save(path, tmp_path / "out", labels, output_dtype="float32")
    np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), values)
    saved, _ = save(path, tmp_path / "1000", torch.full((1, *SHAPE), 1000.0), output_dtype="int16")
    assert (nib.load(saved).get_data_dtype(), np.unique(nib.load(saved).dataobj)) == (np.int16, [1000])


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path):
    (tmp_path / "out").mkdir()
    stale, fresh, other = (
        tmp_path / "out" / f".{name}"
        for name in ("node-7-1-0123abcd-scan_seg.nii.gz", "b-1-0123abcd-scan_seg.nii.gz", "a-1-0123abcd-scan_x.nii.gz")
    )
    for file in (stale, fresh, other):
        file.write_bytes(b"half of it")
    for file in (stale, other):
        os.utime(file, (time.time() - 4000,) * 2)
    saved, _ = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted([saved, fresh, other])  # which may be another node's work


def test_label_map_of_another_shape_is_an_error(tmp_path):
    path = make_volume(tmp_path / "scan.nii")
    for shape in ((5, 6, 4), (6, 5, 3), (6, 5, 1), (3, 5, 8)):
        with pytest.raises(RuntimeError) as raised:
            save(path, tmp_path / "out", torch.zeros(1, *shape))
        text = f"{path}: expected a label map of shape {SHAPE}, got {np.zeros(shape).squeeze().shape}; invert the pred"
        assert text in str(raised.value)
        assert not list((tmp_path / "out").glob("*"))


def test_image_that_is_not_nifti(tmp_path):
    path = tmp_path / "scan.mgz"
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), path)
    pred = MetaTensor(torch.zeros(1, *SHAPE), meta={"filename_or_obj": str(path)})
    with pytest.raises(RuntimeError, match=r"scan.mgz: expected a NIfTI file, got MGHImage"):
        SaveImaged("pred", output_dir=tmp_path / "out", writer=InputGridWriter, print_log=False)({"pred": pred})


def test_folder_for_results(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    check_output_dir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match=r"mine.txt exists already"):
        check_output_dir(tmp_path, files=["*.txt"])
    check_output_dir(tmp_path, files=["*.txt"], overwrite=True)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"output_dir: expected a folder .*No space left on device"):
        check_output_dir(tmp_path / "new")


def test_workers_load_for_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(16), raising=False)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["fork", "spawn"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert loader_workers("cpu") == loader_workers(torch.device("cpu")) == 0
    assert loader_workers("cuda:1") == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # processes that share the cores
    assert loader_workers("cuda") == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(1))
    assert loader_workers("cuda") == 0
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])  # as on Windows
    assert loader_workers("cuda") == 0
