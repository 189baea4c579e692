"""Label maps: the same as from MONAI's parts, in the memory of few class maps; a GPU that is too small."""

import json
import sys

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Rotated,
    Spacingd,
)

from monai_scaleequiv.data import CheckedNibabelReader
from monai_scaleequiv.inferers import MillimetreSlidingWindowInferer
from monai_scaleequiv.transforms import ArgmaxInvertd

from . import memory_run
from .fault_files import write_volume

GIB = 2**30
PERMUTED = np.array([[0, 1.7, 0, -9], [0, 0, -0.8, 30], [1.5, 0, 0, 4], [0, 0, 0, 1]])
FINE = np.array([[0, -0.6, 0, -9], [0.9, 0, 0, 30], [0, 0, 2.5, 4], [0, 0, 0, 1]])


def sheared(cosine, spacing, turn=0.0):
    """Axes of a file of which two have that cosine, turned about the third."""
    axes = np.eye(3)
    axes[:2, 1] = [cosine, np.sqrt(1 - cosine**2)]
    angle = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = angle @ axes * spacing
    return affine


CASES = {
    "plain": ((30, 21, 26), np.eye(4)),
    "flipped": ((13, 30, 9), np.diag([-1.0, -1, 1, 1])),
    "permuted": ((30, 21, 26), PERMUTED),
    "fine": ((13, 30, 9), FINE),
    "sheared": ((30, 25, 6), sheared(0.0099, [1.2, -0.8, 2.5], 0.4)),
}
STEPS = {
    "no more": [],
    "cropped": [CenterSpatialCropd("image", (9, 8, 7))],
    "flipped": [Flipd("image", spatial_axis=1)],
    "turned": [Rotated("image", (0.3, 0, 0.2))],
}


def preprocessing(*more):
    return Compose(
        [
            LoadImaged("image", reader=CheckedNibabelReader()),
            EnsureChannelFirstd("image"),
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


def network(classes=5):
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(8, classes, 3, padding=1)
    )


def plain_labels(image, pred, transform):
    """What MONAI's transforms make of logits."""
    data = {"image": decollate_batch(image)[0], "pred": decollate_batch(pred.clone())[0]}
    invert = Invertd("pred", transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    return Compose([Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)])(data)["pred"]


@torch.no_grad()
def logits_of(image, net, roi=(16, 16, 16), batch=1, mode="gaussian", overlap=0.25):
    return SlidingWindowInferer(roi, batch, overlap, mode)(image, net)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", STEPS)
def test_label_map_is_that_of_monai(tmp_path, case, steps):
    transform = preprocessing(*STEPS[steps])
    image = loaded(noise(tmp_path, case), transform)
    pred = logits_of(image, network())
    expected = plain_labels(image, pred, transform)
    data = {"image": decollate_batch(image)[0], "pred": decollate_batch(pred)[0], "other": 3}
    found = ArgmaxInvertd("pred", transform, "image", num_classes=5)(data)
    assert (set(found), found["other"]) == ({"image", "pred", "other"}, 3)
    found = found["pred"]
    assert found.dtype == torch.uint8
    assert found.shape == (1, *CASES[case][0])
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert found.meta["filename_or_obj"] == expected.meta["filename_or_obj"]
    assert found.applied_operations == []
    assert len(np.unique(found)) == 5


@pytest.mark.parametrize("image_form", ["batch", "decollated", "indexed"])
@pytest.mark.parametrize("pred_form", ["batch", "decollated", "indexed", "plain", "half"])
def test_with_and_without_a_batch_axis(tmp_path, image_form, pred_form):
    transform = preprocessing()
    batch = loaded(noise(tmp_path, "permuted"), transform)
    single = decollate_batch(batch)[0]
    pred = logits_of(batch, network())
    expected = plain_labels(batch, pred, transform).numpy()
    images = {"batch": batch, "decollated": single, "indexed": single[None]}
    preds = {"batch": pred, "decollated": decollate_batch(pred)[0], "indexed": decollate_batch(pred)[0][None]}
    preds |= {"plain": pred.as_tensor()[0], "half": pred.as_tensor().half()}
    found = ArgmaxInvertd("pred", transform, "image")({"image": images[image_form], "pred": preds[pred_form]})["pred"]
    assert found.dim() == preds[pred_form].dim()
    equal = (found.numpy().reshape(expected.shape) == expected).mean()
    assert equal == 1 if pred_form != "half" else equal > 0.99
    assert images[image_form].applied_operations  # the image itself stays as it is
    assert np.asarray(images[image_form].affine).shape[-2:] == (4, 4)


def test_further_maps_and_windows_in_millimetres(tmp_path):
    transform = Compose([*preprocessing().transforms[:3]])
    image, net = loaded(noise(tmp_path, "permuted"), transform), network(4)
    with torch.no_grad():
        pred = MillimetreSlidingWindowInferer((20, 20, 20))(image, lambda x, spacing: net(x))
    orient = Invertd("pred", transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    expected = orient({"image": decollate_batch(image)[0], "pred": decollate_batch(pred.clone())[0]})["pred"]
    data = {"image": decollate_batch(image)[0], "pred": decollate_batch(pred)[0]}
    found = ArgmaxInvertd("pred", transform, "image", num_classes=3, maps_key="scale")(data)
    assert found["pred"].shape == found["scale"].shape == (1, *CASES["permuted"][0])
    np.testing.assert_array_equal(found["pred"][0].numpy(), expected[:3].argmax(0).numpy())
    np.testing.assert_array_equal(found["scale"][0].numpy(), expected[3].numpy())
    assert found["scale"].meta["filename_or_obj"] == found["pred"].meta["filename_or_obj"]


def test_equal_probabilities_give_the_first_class(tmp_path):
    transform = preprocessing()
    image = decollate_batch(loaded(noise(tmp_path), transform))[0]
    found = ArgmaxInvertd("pred", transform, "image")({"image": image, "pred": torch.ones(4, *image.shape[1:])})["pred"]
    assert found.max() == 0


def bad(shape=(2, 8, 9, 7), value=0.0):
    pred = torch.zeros(shape)
    pred[(0,) * len(shape)] = value
    return pred


@pytest.mark.parametrize(
    ("options", "pred", "found"),
    [
        ({"num_classes": 1}, None, "num_classes: expected 2 to 256, got 1"),
        ({"num_classes": 257}, None, "num_classes: expected 2 to 256, got 257"),
        ({"num_classes": 3}, bad(), r"image.nii, pred: expected 3 channel\(s\), got 2"),
        ({"num_classes": 2}, bad((3, 8, 9, 7)), r"image.nii, pred: expected 2 channel\(s\), got 3"),
        ({"num_classes": 2, "maps_key": "scale"}, bad(), r"image.nii, pred: expected 3 channel\(s\), got 2"),
        ({}, bad(value=torch.nan), r"expected finite values, got 1 NaN .*; check the weights, and try --amp=false"),
        ({}, bad(value=torch.inf), r"expected finite values, got 1 NaN or infinite"),
        ({}, bad((2, 8, 9, 8)), r"expected the shape \(8, 9, 7\) of the network's input, got \(8, 9, 8\)"),
        ({}, bad((2, 2, 8, 9, 7)), "pred: expected one volume at a time, got 2; decollate the batch"),
        ({"orig_keys": "plain"}, bad(), "expected an image with its transforms, got a plain tensor; use LoadImaged"),
    ],
)
def test_logits_that_do_not_fit(options, pred, found):
    image = MetaTensor(torch.rand(1, 8, 9, 7), meta={"filename_or_obj": "image.nii"})
    data = {"image": image, "plain": torch.rand(1, 8, 9, 7), "pred": pred}
    with pytest.raises(ValueError, match=found) as raised:
        ArgmaxInvertd(**{"keys": "pred", "transform": preprocessing(), "orig_keys": "image", **options})(data)
    assert "\n" not in str(raised.value)


# A GPU that is too small.


def test_out_of_memory_of_windows_put_together_on_a_gpu(monkeypatch):
    """Simulated: the sums fit the CPU alone."""
    tried = []

    def run(self, inputs, network, *args, device=None, buffer_steps=None, **kwargs):
        tried.append(str(device))
        if torch.device(device).type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return network(torch.Tensor(inputs), *args, spacing=kwargs["spacing"])

    class OnGpu(torch.Tensor):
        is_cuda, device = True, torch.device("cuda")

    monkeypatch.setattr(SlidingWindowInferer, "__call__", run)
    image = torch.rand(1, 1, 6, 6, 6).as_subclass(OnGpu)
    infer = MillimetreSlidingWindowInferer((4, 4, 4), buffer_steps=0)
    for _ in range(2):
        infer(image, lambda x, spacing: x, spacing=[1, 1, 1])
    assert tried == ["cuda", "cpu", "cpu"]  # the next image as large begins on the CPU
    assert isinstance(infer, SlidingWindowInfererAdapt)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("without_tf32")
def test_label_map_on_a_gpu(tmp_path):
    transform, net = preprocessing(), network().cuda()
    image = loaded(noise(tmp_path, "permuted"), transform).cuda()
    pred = logits_of(image, net)
    expected = plain_labels(image, pred, transform)
    data = {"image": decollate_batch(image)[0], "pred": decollate_batch(pred)[0]}
    assert torch.equal(ArgmaxInvertd("pred", transform, "image")(data)["pred"].cpu(), expected.cpu().to(torch.uint8))


# Memory, measured.


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "budget"), [(3, 3 * GIB), (16, 8 * GIB)])
def test_memory_of_a_volume_of_512_x_512_x_400(tmp_path, classes, budget):
    """The whole of the bundle's inference, with a 1 x 1 x 1 convolution; MONAI's own path needs more than allowed."""
    image = memory_run.write_image(tmp_path / "in" / "a.nii", (512, 512, 400))
    found = memory_run.measure(tmp_path / "ours", "bundle", classes, image)
    sys.stdout.write(f"{json.dumps(found)}\n")
    assert found["peak_bytes"] < budget
    if classes == 3:
        plain = memory_run.measure(tmp_path / "plain", "plain", classes, image, most=budget)
        assert plain["killed_at_bytes"] > budget


def test_memory_run_measures_what_it_says(tmp_path):
    image = memory_run.write_image(tmp_path / "in" / "a.nii", (24, 24, 24))
    found = memory_run.measure(tmp_path / "ours", "bundle", 3, image)
    assert 100 * 2**20 < found["peak_bytes"] < 2 * GIB
    assert "killed_at_bytes" in memory_run.measure(tmp_path / "killed", "plain", 3, image, most=50 * 2**20)


def test_probabilities_give_the_label_map_of_their_logits():
    # Resampled, for interpolation tells probabilities from their softmax.
    coarse = Compose([Spacingd("image", pixdim=(2, 2, 2))])
    image = coarse({"image": MetaTensor(torch.rand(1, 25, 27, 23))})["image"]
    logits = 9 * torch.randn(3, *image.shape[1:])
    found = [
        ArgmaxInvertd("pred", coarse, "image", softmax=softmax)({"image": image, "pred": pred})["pred"]
        for softmax, pred in ((True, logits.clone()), (False, logits.softmax(0)))
    ]
    assert torch.equal(*found)
