"""The reader and the checks in pipelines: each fault made for real, in files and in memory; windows in millimetres."""

import os
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    DeleteItemsd,
    EnsureChannelFirstd,
    Flipd,
    LoadImage,
    LoadImaged,
    Spacingd,
)

from monai_scaleequiv.data import CheckedNibabelReader, read_volume, root_cause
from monai_scaleequiv.inferers import MillimetreSlidingWindowInferer
from monai_scaleequiv.transforms import CheckLabeld, CheckVolumed, MirrorChannelsd, foreground

from .fault_files import SHAPE, cut, flip_stored_byte, write_volume


def turned(spacing):
    c, s = np.cos(0.4), np.sin(0.4)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ np.diag([*spacing, 1.0])


def read(*checks):
    return Compose([LoadImaged("image", reader=CheckedNibabelReader()), EnsureChannelFirstd("image"), *checks])


def error_of(transform, data):
    """The one line that a transform raises for data."""
    with pytest.raises((ValueError, RuntimeError)) as raised:
        transform(data)
    text = str(root_cause(raised.value))
    assert "\n" not in text
    return text


def volume(affine=None, shape=(1, *SHAPE), file="scan.nii.gz"):
    affine = None if affine is None else torch.as_tensor(np.asarray(affine, dtype=np.float64))
    return MetaTensor(torch.rand(shape), affine=affine, meta={"filename_or_obj": file})


def forms(volume):
    """A volume alone, as the batch of a loader, and with an axis in front as MONAI Label puts it."""
    return volume, list_data_collate([{"image": volume}])["image"], volume[None]


# Files.


def test_truncated_nii_gz(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30))
    for share in (1 - 4 / file.stat().st_size, 0.95, 0.5, 0.05):  # at first it lacks the checksum alone
        cut(file, share)
        found = f"{file}: expected a whole gzip stream, got one that is cut off; copy or download it again."
        assert error_of(read(), {"image": file}) == found
    loader = DataLoader(Dataset([{"image": str(file)}], read()), num_workers=1)  # and in the worker of a loader
    assert error_of(lambda data: next(iter(loader)), None) == found


@pytest.mark.parametrize("name", ["a.nii.gz", "a.NII.GZ", "a.Nii.gz"])
def test_one_flipped_byte_in_nii_gz(tmp_path, name):
    file = write_volume(tmp_path / "a.nii.gz", shape=(30, 30, 30)).rename(tmp_path / name)
    sound = read()({"image": file})["image"]
    flip_stored_byte(file)
    if name != "a.Nii.gz":  # nibabel knows two ways of writing it
        unchecked = LoadImage(reader="NibabelReader", ensure_channel_first=True)(file)
        assert not torch.equal(torch.as_tensor(unchecked), torch.as_tensor(sound))  # silent, which is what is wrong
    for reader in (CheckedNibabelReader(), CheckedNibabelReader, "monai_scaleequiv.data.CheckedNibabelReader"):
        found = f"{file}: expected a sound gzip stream, got a damaged one"  # not what MONAI's next reader takes it for
        assert error_of(LoadImage(reader=reader), file).startswith(found)


def spoiled(file, place, value):
    """A .nii file with other bytes in its header."""
    content = bytearray(file.read_bytes())
    content[place : place + len(value)] = value
    file.write_bytes(content)
    return file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_names_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a.nii")  # opening it would wait for a writer, for ever
    (tmp_path / "b.NII.gz").mkdir()
    for name, got in (
        ("a.nii", "a file, got a pipe or a device; give the file itself."),
        ("b.NII.gz", "a file, got a folder; give the file itself."),
        ("c\0.nii", "a file, got none; restore it."),
    ):
        file = f"{tmp_path}/{name}"
        assert error_of(LoadImage(reader=CheckedNibabelReader()), file) == f"{file}: expected {got}"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_all_that_the_norm_allows_is_read(tmp_path, kind):
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
        loaded = read()({"image": str(file)})["image"]
        np.testing.assert_array_equal(loaded[0], np.asarray(image.dataobj))
        np.testing.assert_allclose(loaded.affine, nib.load(file).affine, atol=1e-5)
        assert type(read_volume(file)[0]) is kind
    spoiled(files[0], len(files[0].read_bytes()) - 1, b"\1")
    assert "expected 480 bytes of voxels, got more of them" in error_of(read(), {"image": files[0]})


def test_several_modalities_from_one_file_or_several(tmp_path):
    values = np.random.default_rng(0).random((*SHAPE, 2)).astype(np.float32)
    parts = [write_volume(tmp_path / f"a_000{c}.nii.gz", values[..., c]) for c in range(2)]
    whole = write_volume(tmp_path / "a.nii.gz", values)
    check = read(CheckVolumed("image", channels=2))
    for source in (whole, parts):
        loaded = check({"image": source})["image"]
        np.testing.assert_array_equal(loaded, np.moveaxis(values, -1, 0))
    assert f"{whole}, image: expected 1 channel(s), got 2; choose" in error_of(
        read(CheckVolumed("image")), {"image": whole}
    )
    write_volume(parts[1], affine=np.diag([1, 1, 3, 1]))
    error = error_of(check, {"image": parts})
    assert error.startswith(f"{parts[1]}: expected the grid of {parts[0]}, got one whose corners are up to 6 mm away")


def test_volume_that_would_fill_the_memory(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz")
    assert error_of(LoadImage(reader=CheckedNibabelReader(max_voxels=119)), file) == (
        f"{file}: expected at most 119 voxels, got 6 x 5 x 4 = 120 (4.47e-07 GiB as float32); split it, or raise "
        "max_voxels."
    )
    LoadImage(reader=CheckedNibabelReader(max_voxels=120))(file)
    # By their headers alone, which is what counts before anything is read.
    file = spoiled(write_volume(tmp_path / "b.nii"), 42, np.array([1200, 1200, 900], "<i2").tobytes())
    assert "expected 5184000000 bytes of voxels, got 480" in error_of(read(), {"image": file})
    spoiled(file, 42, np.array([1300, 1300, 1300], "<i2").tobytes())
    found = f"{file}: expected at most 2.15e+09 voxels, got 1300 x 1300 x 1300 = "
    assert error_of(read(), {"image": file}).startswith(found)
    colours = write_volume(tmp_path / "c.nii", np.ones(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    spoiled(colours, 40, np.array([7] + [32767] * 7, "<i2").tobytes())
    assert "expected at most 2.15e+09 voxels, got 32767 x" in error_of(read(), {"image": colours})


# Volumes in memory.


def with_value(value, *positions):
    bad = volume()
    for position in positions or [(0, 0, 0)]:
        bad[(0, *position)] = value
    return bad


def affine_with(row, column, value):
    affine = np.eye(4)
    affine[row, column] = value
    return affine


BAD_VOLUMES = [
    (volume(shape=(1, 4, 4)), "expected 3 spatial axes, got shape (4, 4); stack"),
    (volume(shape=(2, 4, 4, 4, 5)), "expected 3 spatial axes, got shape (4, 4, 4, 5); split"),
    (volume(shape=(3, 4, 4, 4)), "expected 1 channel(s), got 3; choose"),
    (with_value(torch.nan), "expected finite values, got 1 NaN or infinite voxel(s); replace them"),
    (with_value(-torch.inf, (0, 0, 0), (1, 2, 3)), "expected finite values, got 2 NaN or infinite voxel(s)"),
    (volume(affine_with(1, 1, 0)), "expected an invertible affine, got [[1.0, 0.0"),
    (volume(affine_with(1, 1, np.nan)), "expected an invertible affine"),
    (volume(affine_with(2, 3, np.inf)), "expected an invertible affine"),
    (volume(affine_with(0, 1, 0.2)), "expected axes at right angles within 0.01, got a cosine of 0.196"),
    (volume(affine_with(1, 1, 1000)), "expected voxel sizes from 0.01 to 100 mm, got 1 x 1000 x 1; "),
    (volume(affine_with(1, 1, 1e-5)), "expected voxel sizes from 0.01 to 100 mm, got 1 x 1e-05 x 1; "),
]


@pytest.mark.parametrize(("bad", "found"), BAD_VOLUMES)
def test_bad_volume(bad, found):
    shapes = forms(bad) if bad.dim() == 4 else [bad]  # what has too few or too many axes has no batch
    for form in shapes:
        error = error_of(CheckVolumed(["good", "image"]), {"good": volume(), "image": form})
        assert error.startswith(f"scan.nii.gz, image: {found}")


@pytest.mark.parametrize("affine", [None, turned((1, 2, 3)), np.diag([-0.05, 0.05, 0.05, 1]), affine_with(0, 1, 0.005)])
def test_good_volume_passes_unchanged(affine):
    for image in (*forms(volume(affine)), torch.zeros(1, 2, 2, 2), torch.zeros(2, 1, 3, 3, 3)):
        before = image.clone()
        checked = CheckVolumed("image")({"image": image, "other": "text"})
        assert set(checked) == {"image", "other"}
        assert checked["image"] is image
        assert torch.equal(image, before)


def test_choices_of_the_volume_check():
    CheckVolumed("image", channels=3, spatial_dims=2)({"image": volume(shape=(3, 4, 4))})
    CheckVolumed("image", max_shear=0.3)({"image": volume(affine_with(0, 1, 0.2))})
    CheckVolumed("image", spacing_range=(0, 1000))({"image": volume(affine_with(1, 1, 1e-5))})
    with pytest.raises(KeyError, match="label"):
        CheckVolumed(["image", "label"])({"image": volume()})
    assert set(CheckVolumed(["image", "label"], allow_missing_keys=True)({"image": volume()})) == {"image"}
    for options, error in (
        ({"fill": "max"}, 'fill: expected a finite number, "min" or None'),
        ({"fill": float("nan")}, 'fill: expected a finite number, "min" or None, got nan'),
        ({"fill": -float("inf")}, 'fill: expected a finite number, "min" or None, got -inf'),
        ({"fill": 1e39}, 'fill: expected a finite number, "min" or None, got 1e\\+39'),
        ({"spacing_range": (2, 1)}, "spacing_range: expected two rising sizes"),
    ):
        with pytest.raises(ValueError, match=error):
            CheckVolumed("image", **options)


@pytest.mark.parametrize(("fill", "value"), [("min", -2.0), (0, 0.0), (1.5, 1.5)])
def test_fill_of_voxels_that_are_not_finite(fill, value):
    image = volume()
    image[0, 1, 1, 1], image[0, 0, 0, 0], image[0, 2, 2, 2] = -2, torch.nan, -torch.inf
    for form in forms(image):
        with pytest.warns(UserWarning, match=r"^scan.nii.gz, image: 2 NaN or infinite voxel\(s\) replaced by"):
            filled = CheckVolumed("image", fill=fill)({"image": form})["image"]
        assert filled[..., 0, 0, 0] == filled[..., 2, 2, 2] == value
        assert int((torch.as_tensor(filled) != torch.as_tensor(form)).sum()) == 2
        assert filled.meta["filename_or_obj"] == form.meta["filename_or_obj"]
        assert torch.isnan(form[..., 0, 0, 0])  # the input stays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound = volume()
        assert CheckVolumed("image", fill="min")({"image": sound})["image"] is sound
    hopeless = torch.full((1, *SHAPE), torch.nan)
    assert error_of(CheckVolumed("image", fill="min"), {"image": hopeless}).startswith(
        "image: expected finite values, "
    )


# Resampling.


@pytest.mark.parametrize("affine", [turned((1, 2, 3)), turned((-0.7, 1.3, 0.4)), np.diag([3, 1, 2, 1])])
@pytest.mark.parametrize("pixdim", [(1, 1.5, 0.8), 2.0])
def test_size_after_resampling_is_the_one_foreseen(affine, pixdim):
    image = volume(affine, shape=(1, 9, 8, 7))
    done = Spacingd("image", pixdim=pixdim)({"image": image})["image"]
    voxels = done[0].numel()
    for form in forms(image):
        check = CheckVolumed("image", pixdim=pixdim, max_voxels=voxels)
        assert check({"image": form})["image"] is form
        error = error_of(CheckVolumed("image", pixdim=pixdim, max_voxels=voxels - 1), {"image": form})
        assert f"got {' x '.join(map(str, done.shape[1:]))} = " in error


def test_resampling_that_blows_up():
    image = volume(np.diag([90, 90, 90, 1]), shape=(1, 16, 16, 16))
    assert error_of(CheckVolumed("image", pixdim=(0.1, 0.1, 0.1)), {"image": image}) == (
        "scan.nii.gz, image: expected at most 5.37e+08 voxels after resampling, got 13501 x 13501 x 13501 = 2.46e+12 "
        "(9.17e+03 GiB as float32) from 16 x 16 x 16; correct the voxel size in its header, or raise max_voxels."
    )
    for pixdim in (1e-20, 1e-300, (1, 1e-300, 1)):  # so small that the count overflows
        error = error_of(CheckVolumed("image", pixdim=pixdim), {"image": volume(np.eye(4))})
        assert "expected at most 5.37e+08 voxels after resampling" in error
    flat = MetaTensor(torch.rand(1, 9, 8), affine=torch.diag(torch.tensor([1.0, 2.0, 1.0])))
    done = Spacingd("image", pixdim=(0.5, 0.7))({"image": flat})["image"]
    check = CheckVolumed("image", pixdim=(0.5, 0.7), max_voxels=done[0].numel() - 1, spatial_dims=2)
    assert f"got {done.shape[1]} x {done.shape[2]} = " in error_of(check, {"image": flat})


def test_voxel_sizes_that_make_no_sense():
    nan, inf = float("nan"), float("inf")
    for pixdim in (inf, [nan, 1, 1], [-1, 1, 1], 0, [0.8, 0.8], [1, 1, 1, 1], [], "1", ["1", 1, 1], [1, None, 1]):
        with pytest.raises(ValueError, match=r"^pixdim: expected 3 finite numbers above 0, got .*; give a voxel"):
            CheckVolumed("image", pixdim=pixdim)


# Label maps.

OBLIQUE = turned((0.5, 3.0, 1.25))


def labels(*values, affine=OBLIQUE, shape=(1, 4, 4, 4)):
    label_map = torch.zeros(shape)
    label_map.view(-1)[: len(values)] = torch.tensor(values, dtype=torch.float32)
    return MetaTensor(label_map, affine=torch.as_tensor(affine), meta={"filename_or_obj": "truth.nii.gz"})


def moved(millimetres):
    affine = OBLIQUE.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.parametrize("label", [labels(), labels(0, 1, 2), labels(1, affine=moved(0.05)), labels(2).as_tensor()])
def test_good_label_map_passes_unchanged(label):
    image = volume(OBLIQUE, shape=(2, 4, 4, 4))
    given = forms(label) if isinstance(label, MetaTensor) else [label, label[None]]
    for form, other in zip(given, forms(image), strict=False):
        before = form.clone()
        checked = CheckLabeld("label", num_classes=3)({"image": other, "label": form})
        assert checked["label"] is form
        assert torch.equal(torch.as_tensor(form), torch.as_tensor(before))


def test_labels_are_rounded():
    data = {"image": volume(OBLIQUE, shape=(1, 4, 4, 4)), "label": labels(0.99999994, 1.9995, -0.0002)}
    for form in forms(data["label"]):
        rounded = CheckLabeld("label", num_classes=3)({**data, "label": form})["label"]
        assert rounded.as_tensor().flatten()[:4].tolist() == [1, 2, 0, 0]
        assert isinstance(rounded, MetaTensor)
        assert rounded.meta["filename_or_obj"] == form.meta["filename_or_obj"]


BAD_LABELS = [
    (labels(0, 3), "expected whole numbers from 0 to 2, got 3; "),
    (labels(0, 255), "expected whole numbers from 0 to 2, got 255; "),
    (labels(-1), "expected whole numbers from 0 to 2, got -1; "),
    (labels(0, 1.5), "expected whole numbers from 0 to 2, got 1.5; "),
    (labels(0, 1.002), "expected whole numbers from 0 to 2, got 1.00199997"),
    (labels(torch.nan), "expected finite values, got 1 NaN"),
    (labels(1, shape=(2, 4, 4, 4)), "expected 1 channel(s), got 2"),
    (labels(1, shape=(1, 4, 4, 5)), "expected the shape (4, 4, 4) of scan.nii.gz, image, got (4, 4, 5); pair"),
    (labels(1, affine=moved(0.5)), "expected the grid of scan.nii.gz, image, got one whose corners are up to 0.5 mm"),
    (labels(1, affine=np.eye(4)), "expected the grid of scan.nii.gz, image"),
]  # fmt: skip


@pytest.mark.parametrize(("label", "found"), BAD_LABELS)
def test_bad_label_map(label, found):
    for form, image in zip(forms(label), forms(volume(OBLIQUE, shape=(1, 4, 4, 4))), strict=True):
        error = error_of(CheckLabeld("label", num_classes=3), {"image": image, "label": form})
        assert error.startswith(f"truth.nii.gz, label: {found}")


def test_short_names_build():
    for config in (
        {"_target_": "CheckVolumed", "keys": "image"},
        {"_target_": "CheckLabeld", "keys": "label", "num_classes": 3},
        {"_target_": "CheckedNibabelReader"},
        {"_target_": "ArgmaxInvertd", "keys": "pred", "transform": {"_target_": "Compose"}, "orig_keys": "image"},
        {"_target_": "MillimetreSlidingWindowInferer", "roi_size": [8, 8, 8]},
    ):
        built = ConfigParser({"item": config}).get_parsed_content("item")
        assert type(built).__name__ == config["_target_"]


# Windows in millimetres.


def windows_seen(image, roi_size, voxels, **options):
    seen = []

    def network(x, spacing):
        seen.append((tuple(x.shape[2:]), spacing))
        return 2 * x

    y = MillimetreSlidingWindowInferer(roi_size)(image, network, **options)
    torch.testing.assert_close(torch.as_tensor(y), 2 * torch.as_tensor(image))
    assert all(spacing == pytest.approx(voxels) for _, spacing in seen)
    return {size for size, _ in seen}


def test_windows_are_in_millimetres():
    image = torch.rand(1, 1, 30, 20, 9)
    voxels = [0.5, 1.0, 2.0]
    assert windows_seen(image, [10.0, 10.0, 10.0], voxels, spacing=voxels) == {(20, 10, 5)}
    for form in forms(MetaTensor(image[0], affine=torch.as_tensor(turned(voxels))))[1:]:
        assert windows_seen(form, [10.0, 10.0, 10.0], voxels) == {(20, 10, 5)}
    assert windows_seen(image, [40, 40, 40], [1, 1, 1], spacing=[1, 1, 1]) == {(30, 20, 9)}
    assert windows_seen(image, [-1, 10, 0], voxels, spacing=voxels) == {(30, 10, 9)}  # MONAI's way to say all
    assert windows_seen(image[..., :2], [10, 30, 10], [30, 1, 30], spacing=[30, 1, 30]) == {(1, 20, 1)}


def test_windows_without_one_voxel_size():
    infer, network = MillimetreSlidingWindowInferer([4, 4, 4]), torch.nn.Identity()
    with pytest.raises(ValueError, match=r"^spacing: expected one, or a MetaTensor, got Tensor"):
        infer(torch.rand(1, 1, 4, 4, 4), network)
    mixed = [{"image": volume(np.diag([1, 1, size, 1]))} for size in (1, 1.5)]
    with pytest.raises(ValueError, match=r"^spacing: expected one voxel size in a batch, got .*; set batch_size to 1"):
        infer(list_data_collate(mixed)["image"], network)
    for roi_size, spacing in (([4, 4], [1, 1]), ([4, 4, 4], [1, 1]), ([4, 4], [1, 1, 1])):
        with pytest.raises(ValueError, match=r"^spacing: expected 3 numbers, for spacing as for roi_size, got"):
            MillimetreSlidingWindowInferer(roi_size)(torch.rand(1, 1, 4, 4, 4), network, spacing=spacing)
    with pytest.raises(ValueError, match=r"^roi_size: expected edges in mm, got none"):
        MillimetreSlidingWindowInferer([])


def test_mirrored_channels_are_monai_s_own_transforms():
    """In one step, with the image's own affine and operations, so that Invertd works as if it was not there."""
    data = {"image": MetaTensor(torch.rand(2, 5, 4, 3), affine=OBLIQUE), "label": torch.ones(1)}
    crop = Compose([CropForegroundd("image", source_key="image", select_fn=lambda x: x > 0.5)])
    for axis in range(3):
        parts = [CopyItemsd("image", names="other"), Flipd("other", axis), ConcatItemsd(["image", "other"], "image")]
        expected = Compose([crop, *parts, DeleteItemsd("other")])(data)
        found = MirrorChannelsd("image", axis)(crop(data))
        assert set(found) == set(expected)
        torch.testing.assert_close(found["image"], expected["image"], rtol=0, atol=0)
        torch.testing.assert_close(found["image"].affine, expected["image"].affine)
        assert found["image"].applied_operations == expected["image"].applied_operations != []
        torch.testing.assert_close(
            MirrorChannelsd("image", axis)({"image": crop(data)["image"][None]})["image"], found["image"][None]
        )
    assert MirrorChannelsd(["image", "other"], allow_missing_keys=True)(data)["image"].shape == (4, 5, 4, 3)
    for axis, dims in ((-1, 3), (3, 3), (2, 2)):
        with pytest.raises(ValueError, match=f"spatial_axis: expected an axis from 0 to {dims - 1}, got {axis};"):
            MirrorChannelsd("image", axis, dims)
    with pytest.raises(KeyError, match="other"):
        MirrorChannelsd("other")(data)


def test_empty_image_is_not_cropped_to_nothing():
    crop = CropForegroundd("image", source_key="image", select_fn=foreground)
    image = volume()
    image[:, :2] = 0
    assert crop({"image": image})["image"].shape[1] == SHAPE[0] - 2
    found = error_of(Compose([crop]), {"image": volume() * 0})
    assert found == "scan.nii.gz, image: expected voxels that vary, got none; look at the file."
