"""Input lists, checks of volumes, and label maps on the input's own grid."""

from __future__ import annotations

import errno
import functools
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKReader, MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImaged, SaveImaged

from monai_scaleequiv import (
    CheckLabeld,
    CheckVolumed,
    InputGridWriter,
    MillimetreWindowInferer,
    PrepareBatchSpacing,
    TakeScaleMapd,
    claim_output_dir,
    make_phantom_dataset,
    nifti_datalist,
)

SHAPE = (6, 5, 4)
# Axes permuted and flipped, voxels 0.5 x 3 x 1.25 mm; and the same turned by 0.3 about the last axis.
PERMUTED = np.array([[0, 3.0, 0, -20], [0, 0, -1.25, 31.5], [0.5, 0, 0, 7.25], [0, 0, 0, 1]])
TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0, 0], [np.sin(0.3), np.cos(0.3), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
OBLIQUE = TURN @ PERMUTED
# What may differ between the headers of a label map and its image.
VALUE_FIELDS = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max"}


def make_volume(
    path,
    shape=SHAPE,
    sform=OBLIQUE,
    qform=OBLIQUE,
    codes=(1, 1),
    kind=nib.Nifti1Image,
    dtype=np.int16,
):
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
    image = LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)({"image": path})["image"]
    if labels is None:
        labels = torch.arange(image[0].numel()).reshape(image.shape) % 3
    data = {"pred": MetaTensor(labels.float(), meta=image.meta)}
    SaveImaged(
        "pred",
        output_dir=folder,
        separate_folder=False,
        resample=False,
        print_log=False,
        **{"output_dtype": "uint8", "output_postfix": "seg", "writer": InputGridWriter, **options},
    )(data)
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


@pytest.mark.parametrize("kind", [str, Path])
def test_datalist_of_a_folder(tree, kind):
    expected = [{"image": str(tree / name)} for name in ("a.nii.gz", "b.nii", "sub/deep/c.nii.gz")]
    assert nifti_datalist(kind(tree)) == expected


def test_datalist_takes_capital_letters_and_files_alone(tree):
    for name in ("sub/D.NII.GZ", "G.Nii"):
        (tree / name).touch()
    for name in ("h.nii", "i.nii.gz"):
        (tree / name).mkdir()
    (tree / "h.nii" / "j.nii").touch()
    os.mkfifo(tree / "k.nii")
    found = [str(Path(item["image"]).relative_to(tree)) for item in nifti_datalist(tree)]
    assert found == ["G.Nii", "a.nii.gz", "b.nii", "h.nii/j.nii", "sub/D.NII.GZ", "sub/deep/c.nii.gz"]
    assert nifti_datalist(tree / "G.Nii") == [{"image": str(tree / "G.Nii")}]
    with pytest.raises(ValueError, match=r"k.nii is neither a file nor a folder"):
        nifti_datalist(tree / "k.nii")


@pytest.mark.parametrize("name", ["A.NII.GZ", "A.NII", "a.nii.GZ", "a.b.nii.gz"])
def test_result_is_looked_for_where_it_is_written(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = make_volume(tmp_path / "in" / name)
    saved, _ = save(path, tmp_path / "out")
    assert nifti_datalist(tmp_path / "in", results=tmp_path / "out", skip_existing=True) == []
    with pytest.raises(FileExistsError, match=re.escape(str(saved))):
        nifti_datalist(path, results=tmp_path / "out")


def test_datalist_of_one_file_under_another_key(tree):
    assert nifti_datalist(tree / "b.nii", key="label") == [{"label": str(tree / "b.nii")}]


def test_datalist_of_several_keeps_the_order_given_and_drops_repeats(tree):
    several = [tree / "sub", str(tree / "b.nii"), tree / "a.nii.gz", tree / "b.nii"]
    expected = [{"image": str(tree / name)} for name in ("sub/deep/c.nii.gz", "b.nii", "a.nii.gz")]
    assert nifti_datalist(several) == expected


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("absent", FileNotFoundError, "absent does not exist"),
        ("absent.nii", FileNotFoundError, "absent.nii does not exist"),
        ("empty", FileNotFoundError, "empty holds no .nii or .nii.gz file"),
        ("notes.txt", ValueError, "notes.txt is not a .nii or .nii.gz file"),
        ("e.mha", ValueError, "e.mha is not a .nii or .nii.gz file"),
        ("f.gz", ValueError, "f.gz is not a .nii or .nii.gz file"),
    ],
)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_datalist_refuses(tree, source, error, told, in_a_list):
    path = tree / source
    with pytest.raises(error) as refused:
        nifti_datalist([tree / "b.nii", path] if in_a_list else path)
    assert told in str(refused.value)
    assert str(tree) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_datalist_refuses_two_files_whose_results_would_collide(tree, name):
    twin = tree / "twin" / name
    twin.parent.mkdir()
    twin.touch()
    with pytest.raises(ValueError, match="have the same name") as refused:
        nifti_datalist(tree)
    assert str(twin) in str(refused.value)
    assert str(tree / "a.nii.gz") in str(refused.value)


def test_datalist_of_a_link_to_a_listed_file_is_no_collision(tree):
    (tree / "links").mkdir()
    (tree / "links" / "b.nii").symlink_to(tree / "b.nii")
    assert len(nifti_datalist(tree)) == 4


def test_datalist_refuses_to_replace_results(tree, tmp_path):
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


def volume(shape=(1, 4, 4, 4), affine=None, file="scan.nii.gz"):
    return MetaTensor(torch.rand(shape), affine=affine, meta={"filename_or_obj": file})


@pytest.mark.parametrize(
    "affine", [torch.eye(4), torch.from_numpy(OBLIQUE), torch.diag(torch.tensor([-0.05, 0.05, 0.05, 1]))]
)
def test_good_volume_passes_unchanged(affine):
    data = {"image": volume(affine=affine), "label": volume(affine=affine), "other": "text"}
    before = {key: data[key].clone() for key in ("image", "label")}
    checked = CheckVolumed(["image", "label"])(data)
    assert set(checked) == set(data)
    for key in ("image", "label"):
        assert checked[key] is data[key]
        assert torch.equal(checked[key], before[key])
        assert torch.equal(checked[key].affine, before[key].affine)
        assert checked[key].meta["filename_or_obj"] == "scan.nii.gz"
        assert checked[key].applied_operations == []


def spoiled(*positions, value=float("nan")):
    bad = volume()
    for position in positions:
        bad[(0, *position)] = value
    return bad


def changed_affine(row, column, value):
    affine = torch.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (volume((1, 4, 4)), r"expected 3 spatial axes, got shape \(4, 4\)"),
        (volume((1, 4, 4, 4, 5)), r"expected 3 spatial axes, got shape \(4, 4, 4, 5\)"),
        (volume((3, 4, 4, 4)), r"expected 1 channel\(s\), got 3"),
        (spoiled((0, 0, 0)), "got 1 NaN or infinite"),
        (spoiled((0, 0, 0), (1, 2, 3), (3, 3, 3)), "got 3 NaN or infinite"),
        (spoiled((0, 0, 0), value=float("inf")), "got 1 NaN or infinite"),
        (spoiled((0, 0, 0), (0, 0, 1), value=-float("inf")), "got 2 NaN or infinite"),
        (volume(affine=changed_affine(1, 1, 0)), "expected an invertible affine"),
        (volume(affine=changed_affine(1, 1, float("nan"))), "expected an invertible affine"),
        (volume(affine=changed_affine(0, 3, float("nan"))), "expected an invertible affine"),
        (volume(affine=changed_affine(2, 3, float("inf"))), "expected an invertible affine"),
    ],
)
def test_bad_volume_is_refused_by_name(bad, told):
    with pytest.raises(ValueError, match=f"^scan.nii.gz, image: .*{told}") as refused:
        CheckVolumed(["good", "image"])({"good": volume(file="good.nii.gz"), "image": bad})
    assert "\n" not in str(refused.value)


def test_plain_tensor_is_named_by_its_key():
    assert CheckVolumed("image")({"image": torch.zeros(1, 2, 2, 2)})["image"].shape == (1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"^image: expected finite"):
        CheckVolumed("image")({"image": torch.full((1, 2, 2, 2), torch.nan)})


def test_remedy_is_a_choice():
    with pytest.raises(ValueError, match=r"voxel\(s\); check the weights\.$"):
        CheckVolumed("image", remedy="check the weights")({"image": spoiled((0, 0, 0))})


def labels(*values, affine=OBLIQUE, shape=(1, 4, 4, 4)):
    label_map = torch.zeros(shape)
    label_map.view(-1)[: len(values)] = torch.tensor(values, dtype=torch.float32)
    return MetaTensor(label_map, affine=torch.as_tensor(affine), meta={"filename_or_obj": "truth.nii.gz"})


def moved(millimetres):
    affine = OBLIQUE.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    "label", [labels(), labels(0, 1, 2), labels(1, affine=moved(0.05)), labels(2).as_tensor()], ids=range(4)
)
def test_good_label_map_passes_unchanged(label):
    data = {"image": volume(affine=torch.from_numpy(OBLIQUE)), "label": label}
    before = label.clone()
    checked = CheckLabeld("label", num_classes=3)(data)
    assert set(checked) == {"image", "label"}
    assert checked["label"] is label
    assert torch.equal(torch.as_tensor(label), torch.as_tensor(before))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (labels(0, 3), "whole numbers from 0 to 2, got 3"),
        (labels(0, 255), "whole numbers from 0 to 2, got 255"),
        (labels(-1), "whole numbers from 0 to 2, got -1"),
        (labels(0, 1.5), r"whole numbers from 0 to 2, got 1\.5"),
        (labels(float("nan")), "whole numbers from 0 to 2, got nan"),
        (labels(1, shape=(1, 4, 4, 5)), r"expected the image's shape \(4, 4, 4\), got \(4, 4, 5\)"),
        (labels(1, affine=moved(0.5)), r"expected the image's grid, got one whose corners are up to 0\.5 mm away"),
        (labels(1, affine=OBLIQUE @ np.diag([1, 1, 1.2, 1])), "expected the image's grid"),
        (labels(1, affine=np.eye(4)), "expected the image's grid"),
    ],
)
def test_bad_label_map_is_refused_by_name(label, told):
    with pytest.raises(ValueError, match=f"^truth.nii.gz, label: .*{told}") as refused:
        CheckLabeld("label", num_classes=3)({"image": volume(affine=torch.from_numpy(OBLIQUE)), "label": label})
    assert "\n" not in str(refused.value)


def test_channels_and_dimensions_are_a_choice():
    CheckVolumed("image", channels=3, spatial_dims=2)({"image": volume((3, 4, 4))})
    with pytest.raises(ValueError, match="expected 3 channel"):
        CheckVolumed("image", channels=3, spatial_dims=2)({"image": volume((1, 4, 4))})
    with pytest.raises(ValueError, match="expected 2 spatial axes"):
        CheckVolumed("image", channels=3, spatial_dims=2)({"image": volume((3, 4, 4, 4))})


def test_missing_key():
    with pytest.raises(KeyError, match="label"):
        CheckVolumed(["image", "label"])({"image": volume()})
    assert set(CheckVolumed(["image", "label"], allow_missing_keys=True)({"image": volume()})) == {"image"}


def four_dimensional(path):
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4, 2), np.float32), np.eye(4)), path)


def with_nan(path):
    values = np.zeros(SHAPE, np.float32)
    values[1:3, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def with_nan_affine(path):
    affine = np.eye(4)
    affine[0, 3] = np.nan
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine), path)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (four_dimensional, "got 2; choose the channel"),
        (with_nan, "got 2 NaN or infinite"),
        (with_nan_affine, "invertible affine"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path, write, told):
    path = tmp_path / "bad.nii.gz"
    write(path)
    read = Compose([LoadImaged("image", reader="NibabelReader", ensure_channel_first=True), CheckVolumed("image")])
    with pytest.raises(RuntimeError) as refused:
        read({"image": path})
    error = refused.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert str(error).startswith(f"{path}, image: ")
    assert told in str(error)


@pytest.mark.parametrize("name", ["imagesTr/phantom_001.nii.gz", "labelsTr/phantom_000.nii.gz", "dataset.json"])
def test_phantoms_replace_nothing(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{name} exists already; choose another folder or remove it"):
        make_phantom_dataset(tmp_path, cases=2, size=(16, 18, 20))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"mine"


def test_phantoms_pass(tmp_path):
    make_phantom_dataset(tmp_path, cases=1, size=(16, 18, 20))
    read = Compose([LoadImaged("image", reader="NibabelReader", ensure_channel_first=True), CheckVolumed("image")])
    assert read(nifti_datalist(tmp_path / "imagesTr")[0])["image"].shape == (1, 16, 18, 20)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "header",
    [
        {"codes": (1, 1)},
        {"codes": (4, 0)},
        {"codes": (0, 2)},
        {"codes": (0, 0)},
        {"codes": (2, 1), "qform": PERMUTED},  # the two disagree: the sform counts, the qform stays
        {"sform": PERMUTED, "qform": PERMUTED, "codes": (3, 3)},
        {"sform": np.diag([-1, 1, 1, 1]), "qform": np.diag([-1, 1, 1, 1])},
    ],
    ids=["scanner", "sform", "qform", "neither", "disagreeing", "permuted", "flipped"],
)
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


def test_another_data_type(tmp_path):
    labels = torch.full((1, *SHAPE), 1000.0)
    saved, _ = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out", labels, output_dtype="int16")
    assert nib.load(saved).get_data_dtype() == np.int16
    assert np.unique(nib.load(saved).dataobj) == [1000]


def told_to(**options):
    return functools.partial(InputGridWriter, **options)


def test_earlier_label_map_is_replaced_only_if_told_to(tmp_path):
    path = make_volume(tmp_path / "scan.nii")
    saved, _ = save(path, tmp_path / "out", torch.zeros(1, *SHAPE))
    before = saved.read_bytes()
    with pytest.raises(RuntimeError, match=r"scan_seg.nii.gz exists already; choose another output_dir, or set overw"):
        save(path, tmp_path / "out", torch.ones(1, *SHAPE))
    save(path, tmp_path / "out", torch.ones(1, *SHAPE), writer=told_to(skip_existing=True))
    assert saved.read_bytes() == before
    save(path, tmp_path / "out", torch.ones(1, *SHAPE), writer=told_to(overwrite=True))
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
            save(path, tmp_path / folder, output_postfix="", writer=told_to(**options))
        with pytest.raises(FileExistsError, match=r"got another input|exists already"):
            nifti_datalist(path, results=tmp_path / folder, postfix="")
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}, {"overwrite": True}])
def test_empty_file_is_no_label_map(tmp_path, options):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg.nii.gz").touch()
    saved, labels = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out", writer=told_to(**options))
    np.testing.assert_array_equal(nib.load(saved).get_fdata(), labels)


@pytest.mark.parametrize("has_links", [True, False])
def test_file_that_comes_while_the_label_map_is_made_is_kept(tmp_path, monkeypatch, has_links):
    def meanwhile(image, target, save=nib.save):
        save(image, target)
        (tmp_path / "out" / "scan_seg.nii.gz").write_bytes(b"mine")

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = make_volume(tmp_path / "scan.nii")
    monkeypatch.setattr(nib, "save", meanwhile)
    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    with pytest.raises(RuntimeError, match=r"scan_seg.nii.gz exists already"):
        save(path, tmp_path / "out")
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"mine"]


def test_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    saved, labels = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out")
    np.testing.assert_array_equal(nib.load(saved).get_fdata(), labels)
    assert list((tmp_path / "out").iterdir()) == [saved]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 300, -1, 1.7])
def test_values_that_the_data_type_does_not_hold_are_refused(tmp_path, value):
    labels = torch.ones(1, *SHAPE)
    labels[0, 2, 1, 3] = value
    path = make_volume(tmp_path / "scan.nii")
    told = rf"scan.nii: expected values that uint8 holds as they are, got {re.escape(f'{value:g}')}; choose another"
    with pytest.raises(RuntimeError, match=told):
        save(path, tmp_path / "out", labels)
    assert list((tmp_path / "out").iterdir()) == []
    save(path, tmp_path / "out", labels, output_dtype="float32")


def test_what_a_killed_process_left_is_removed_and_a_running_one_s_is_not(tmp_path):
    (tmp_path / "out").mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / "out" / f".{gone.pid}-scan_seg.nii.gz"
    others = [tmp_path / "out" / f".{name}" for name in (f"{gone.pid}-scan_x.nii.gz", "1-scan_seg.nii.gz", "mine")]
    for file in (stale, *others):
        file.write_bytes(b"half of it")
    saved, _ = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted([saved, *others])


@pytest.mark.parametrize("shape", [(5, 6, 4), (6, 5, 3), (6, 5, 1), (3, 5, 8)])
def test_label_map_of_another_shape_is_refused(tmp_path, shape):
    path = make_volume(tmp_path / "scan.nii")
    with pytest.raises(RuntimeError) as refused:
        save(path, tmp_path / "out", torch.zeros(1, *shape))
    grid = tuple(np.squeeze(np.zeros(shape)).shape)
    assert f"{path}: expected a label map of shape {SHAPE}, got {grid}; invert the prediction first." in str(
        refused.value
    )
    assert not list((tmp_path / "out").glob("*"))


def test_image_that_is_not_nifti_is_refused(tmp_path):
    path = tmp_path / "scan.mgz"
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), path)
    with pytest.raises(RuntimeError, match=r"scan.mgz: expected a NIfTI file, got MGHImage"):
        save(path, tmp_path / "out")


def test_interrupted_writing_leaves_the_earlier_label_map_and_nothing_else(tmp_path, monkeypatch):
    path = make_volume(tmp_path / "scan.nii.gz")
    saved, _ = save(path, tmp_path / "out", torch.ones(1, *SHAPE))
    before = saved.read_bytes()

    def cut(image, target):
        Path(target).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(nib, "save", cut)
    with pytest.raises(RuntimeError, match="no space left on device"):
        save(path, tmp_path / "out", torch.zeros(1, *SHAPE), writer=told_to(overwrite=True))
    assert saved.read_bytes() == before
    assert list((tmp_path / "out").iterdir()) == [saved]


def test_map_of_numbers(tmp_path):
    values = torch.linspace(0.8, 2.5, 6 * 5 * 4).reshape(1, *SHAPE)
    saved, _ = save(make_volume(tmp_path / "scan.nii"), tmp_path / "out", values, output_dtype="float32")
    assert nib.load(saved).get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), values[0].numpy())


def batch(*affines, **others):
    images = [MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.as_tensor(affine)) for affine in affines]
    return list_data_collate([{"image": image, **others} for image in images])


def test_spacing_of_a_batch():
    given = batch(OBLIQUE, PERMUTED @ np.diag([1 + 1e-6, 1, 1, 1]), label=MetaTensor(torch.ones(1, 4, 4, 4)))
    image, label, args, options = PrepareBatchSpacing()(given, torch.device("cpu"), dtype=torch.float64)
    assert image.dtype == label.dtype == torch.float64
    assert torch.equal(image, given["image"].double())
    assert (label.shape, args) == ((2, 1, 4, 4, 4), ())
    assert list(options) == ["spacing"]
    assert options["spacing"] == pytest.approx([0.5, 3.0, 1.25])
    assert all(isinstance(voxel, float) for voxel in options["spacing"])
    assert PrepareBatchSpacing()(batch(np.eye(4)))[1] is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (batch(np.eye(4), np.diag([1, 1, 1.5, 1])), r"\[1.0, 1.0, 1.0\] and \[1.0, 1.0, 1.5\] mm; set batch_size to 1"),
        (batch(np.diag([0.01, 0.01, 0.01, 1]), np.diag([0.0101, 0.01, 0.01, 1])), "expected one voxel size in a batch"),
        ({"image": torch.rand(1, 1, 4, 4, 4)}, "expected a MetaTensor, for its voxel size, got Tensor"),
    ],
)
def test_batch_without_one_spacing_is_refused(given, told):
    with pytest.raises(ValueError, match=f"^image: .*{told}") as refused:
        PrepareBatchSpacing()(given)
    assert "\n" not in str(refused.value)


def test_scale_map_is_taken_off():
    prediction = MetaTensor(torch.rand(4, 3, 3, 3), affine=torch.as_tensor(OBLIQUE), meta={"filename_or_obj": "a.nii"})
    given = {"pred": prediction, "image": "kept"}
    taken = TakeScaleMapd("pred", scale_key="sizes")(given)
    assert set(taken) == {"pred", "image", "sizes"}
    assert torch.equal(taken["pred"].as_tensor(), prediction.as_tensor()[:3])
    assert torch.equal(taken["sizes"].as_tensor(), prediction.as_tensor()[3:])
    assert set(given) == {"pred", "image"}
    assert given["pred"].shape[0] == 4
    assert taken["sizes"].meta["filename_or_obj"] == "a.nii"
    np.testing.assert_array_equal(taken["sizes"].affine, OBLIQUE)


def test_scale_maps_of_several_predictions():
    given = {"a": torch.rand(2, 3, 3), "b": torch.rand(3, 3, 3)}
    taken = TakeScaleMapd(["a", "b"], ["of_a", "of_b"])(given)
    assert {key: len(value) for key, value in taken.items()} == {"a": 1, "b": 2, "of_a": 1, "of_b": 1}
    assert set(TakeScaleMapd("pred", allow_missing_keys=True)({"a": 1})) == {"a"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pred": torch.rand(1, 3, 3, 3)}, "^pred: expected classes and a scale map, got 1 channel"),
        ({"pred": torch.rand(2, 3, 3, 3), "scale_map": 1}, "^scale_map: expected no such key"),
    ],
)
def test_prediction_without_scale_map_is_refused(given, told):
    with pytest.raises(ValueError, match=told) as refused:
        TakeScaleMapd("pred")(given)
    assert "\n" not in str(refused.value)


def windows_seen(image, spacing, window):
    seen = []

    def network(x, spacing):
        seen.append((tuple(x.shape[2:]), spacing))
        return 2 * x

    y = MillimetreWindowInferer(window)(image, network, spacing=spacing)
    torch.testing.assert_close(y, 2 * image)
    assert all(told == spacing for _, told in seen)
    return [size for size, _ in seen]


def test_windows_are_in_millimetres():
    image = torch.rand(1, 1, 30, 20, 9)
    assert set(windows_seen(image, [0.5, 1.0, 2.0], [10.0, 10.0, 10.0])) == {(20, 10, 5)}
    assert windows_seen(image, [1.0, 1.0, 1.0], [40, 40, 40]) == [(30, 20, 9)]
    assert set(windows_seen(image[..., :2], [30.0, 1.0, 30.0], [10, 30, 10])) == {(1, 20, 1)}


@pytest.mark.parametrize(("window", "spacing"), [([4, 4], [1, 1]), ([4, 4, 4], [1, 1]), ([4, 4], [1, 1, 1])])
def test_windows_need_every_axis(window, spacing):
    with pytest.raises(ValueError, match=r"^spacing: expected 3 numbers, for spacing as for window, got"):
        MillimetreWindowInferer(window)(torch.rand(1, 1, 4, 4, 4), torch.nn.Identity(), spacing=spacing)


@pytest.mark.parametrize("window", [[], [4, 0, 4], [-1, 4, 4]])
def test_windows_have_edges(window):
    with pytest.raises(ValueError, match=r"^window: expected edges above 0"):
        MillimetreWindowInferer(window)


def test_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"output_dir: expected a folder .*No space left on device"):
        claim_output_dir(tmp_path / "new")


def test_claimed_folder_keeps_what_it_holds(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    claim_output_dir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
