"""Phantoms: the same under a seed, laid out as the bundles read them, and of clearly varying size."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from monai_scaleequiv.data import make_phantom_dataset

CASES = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("phantom"), cases=CASES, seed=3)


def _volumes(dataset, key):
    return [nib.load(case[key]) for case in load_decathlon_datalist(dataset, data_list_key="training")]


def test_layout(dataset):
    description = json.loads(dataset.read_text())
    assert description["labels"] == {"0": "background", "1": "body", "2": "core"}
    assert description["numTraining"] == len(description["training"]) == CASES
    assert all(case["image"].startswith("./imagesTr/") for case in description["training"])


def test_volumes_share_a_realistic_grid(dataset):
    for image, label in zip(_volumes(dataset, "image"), _volumes(dataset, "label"), strict=True):
        assert image.shape == label.shape == (40, 56, 40)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_array_equal(image.affine[:3, :3], np.eye(3))
        assert (image.affine[:3, 3] < 0).all()
        assert image.header.get_xyzt_units()[0] == "mm"
        assert label.get_data_dtype() == np.uint8
        assert np.isfinite(image.get_fdata()).all()
    assert {image.get_data_dtype() for image in _volumes(dataset, "image")} == {np.dtype("int16"), np.dtype("float32")}


def test_labels_and_sizes(dataset):
    voxels = []
    for label in _volumes(dataset, "label"):
        values, counts = np.unique(np.asarray(label.dataobj), return_counts=True)
        assert values.tolist() == [0, 1, 2]
        voxels.append(counts[1] + counts[2])
    radii = np.cbrt(voxels)
    assert radii.max() / radii.min() > 1.5


def test_core_is_brighter_than_body_and_body_than_background(dataset):
    for image, label in zip(_volumes(dataset, "image"), _volumes(dataset, "label"), strict=True):
        means = [image.get_fdata()[np.asarray(label.dataobj) == k].mean() for k in range(3)]
        assert means == sorted(means)


def test_units_differ_between_volumes(dataset):
    means = [image.get_fdata().mean() for image in _volumes(dataset, "image")]
    assert max(means) > 10 * min(means)


def test_seed_decides(dataset, tmp_path):
    # Fewer cases must not change the first ones.
    same = make_phantom_dataset(tmp_path / "same", cases=2, seed=3).parent
    other = make_phantom_dataset(tmp_path / "other", cases=2, seed=4).parent
    for file in ("imagesTr/phantom_000.nii.gz", "labelsTr/phantom_001.nii.gz"):
        expected = (dataset.parent / file).read_bytes()
        assert (same / file).read_bytes() == expected
        assert (other / file).read_bytes() != expected


@pytest.mark.parametrize("name", ["imagesTr/phantom_001.nii.gz", "labelsTr/phantom_000.nii.gz", "dataset.json"])
def test_phantoms_replace_nothing(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{name} exists already; choose another folder or remove it"):
        make_phantom_dataset(tmp_path, cases=2, size=(16, 18, 20))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "wrong", [{"cases": 0}, {"cases": "many"}, {"seed": -1}, {"size": (40, 40)}, {"size": (8, 40, 40)}]
)
def test_wrong_arguments(tmp_path, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*expected"):
        make_phantom_dataset(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
