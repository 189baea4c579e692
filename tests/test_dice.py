"""The benchmark of Dice against size: samples, splits, trainings, measurements, on made-up volumes."""

import copy
import dataclasses
import json
import math

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation
from torch import nn

from benchmarks.dice import costs, datasets, evaluating, networks, protocol, runs, sampling, training
from benchmarks.dice.costs import gmacs
from benchmarks.dice.datasets import CLASSES, FOLDERS, FOLDS, MODALITIES, Volume, split
from benchmarks.dice.evaluating import measure, measure_slices
from benchmarks.dice.networks import ENTRIES, HALF, Entry, brought, inside, once, over
from benchmarks.dice.sampling import Augmentation, Bank, resampling
from benchmarks.dice.stages import ESTIMATOR_RATE, LATE_COST, Stages, rate_at, times
from benchmarks.dice.training import RECIPES, Run, Trainer, finish
from benchmarks.dice.zooming import resized, size_of
from monai_scaleequiv import ScaleCanonicalizer, ScalePyramid
from tests.conftest import shared

CPU = torch.device("cpu")
STILL = Augmentation(rotation=0.0, flips=(), gain=0.0, offset=0.0, noise=0.0)


def made_up(shape=(8, 9, 8), seed=0, dataset="hippocampus", spacing=(1.0, 1.0, 1.0), channels=1):
    """Random bright voxels, and an organ whose first class is darker and its second darker still."""
    rng = np.random.default_rng(seed)
    image = rng.integers(120, 256, (channels, *shape)).astype(np.uint8)
    label = np.zeros(shape, np.uint8)
    for k in range(len(CLASSES[dataset])):
        label[1 + k : 4 + k, 2:6, 1 + k : 6] = k + 1
    image[:, label > 0] = 100 // label[label > 0]
    return Volume(dataset, f"case_{seed:03d}", image, label, spacing)


# Sampling


def slow_line(line, points, width):
    """A mirrored line at these points: Keys' cubic, widened, from every mirrored voxel that it reaches."""

    def kernel(x):
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    n, found = len(line), []
    for point in points:
        total = weights = 0.0
        for voxel in range(math.ceil(point - 2 * width), math.floor(point + 2 * width) + 1):
            at = voxel % (2 * n)
            weight = kernel((point - voxel) / width)
            total, weights = total + weight * line[at if at < n else 2 * n - 1 - at], weights + weight
        found.append(total / weights)
    return found


@pytest.mark.parametrize("step", [0.4, 1.0, -1.0, 1.7, -2.3])
def test_resampling_matrix_against_a_slow_loop(step):
    line = np.random.default_rng(0).standard_normal(11)
    for size, centre in ((6, 5.0), (7, 0.2), (16, 9.9), (30, 4.3)):
        points = [centre + (i - (size - 1) / 2) * step for i in range(size)]
        matrix = resampling(11, size, *(torch.tensor([x], dtype=torch.float64) for x in (centre, step)))[0]
        expected = slow_line(line, points, max(abs(step), 1))
        np.testing.assert_allclose(matrix.numpy() @ line, expected, atol=1e-12)
        other_way = resampling(11, size, *(torch.tensor([x], dtype=torch.float64) for x in (centre, -step)))[0]
        np.testing.assert_allclose(other_way.flip(0).numpy(), matrix.numpy(), atol=1e-12)


def still_plan(bank, **changes):
    """One step that takes a sample of each volume's middle, as it is, but for the changes."""
    batch, axes = len(bank.images), bank.axes
    plan = bank.plan(1, batch, STILL, 0)
    numbers = {"centre": [(n - 1) / 2 for n in bank.images.shape[2:]], "step": [1.0] * axes, "rotation": np.eye(axes)}
    for name, value in (numbers | changes).items():
        value = torch.as_tensor(np.array(value), dtype=torch.float32)
        plan[name] = value.expand(1, batch, *value.shape).contiguous()
    plan["case"] = torch.arange(batch)[None]
    return plan


@pytest.mark.parametrize("axes", [2, 3])
def test_points_of_a_sample(axes):
    """Of an image whose channels are its coordinates, a sample tells where it was taken."""
    size, shape = (12, 8, 16)[:axes], (30, 26, 34)[:axes]
    bank = Bank([made_up((4, 4, 1) if axes == 2 else (4, 4, 4), dataset="brats")], size, 2, CPU)
    bank.images = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))[None].float()
    bank.labels = torch.zeros((1, *shape), dtype=torch.uint8)
    turn = sampling._rotations(np.deg2rad([9.0, -13.0, 7.0] if axes == 3 else [15.0]))
    centre, step = [14.3, 12.0, 16.8][:axes], [0.8, -0.5, 0.9][:axes]
    image, _ = bank.sample(still_plan(bank, centre=centre, step=step, rotation=turn), torch.tensor([0]))
    offsets = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij"), -1)
    turned = (offsets[..., ::-1] @ turn)[..., ::-1]  # the plan's matrices take the last axis first
    is_in_box = (np.abs(turned) <= (np.array([15, 10, 20])[:axes] - 1) / 2).all(-1)  # outside it is mirrored
    assert is_in_box.mean() > 0.8
    found, expected = image[0].movedim(0, -1).numpy(), np.array(centre) + np.array(step) * turned
    np.testing.assert_allclose(found[is_in_box], expected[is_in_box], atol=2e-3)


@pytest.mark.parametrize("axis", range(3))
def test_rotation_takes_labels_with_it(axis):
    volume = made_up((16, 16, 16))
    bank = Bank([volume], (12, 12, 12), 3, CPU)
    straight = bank.sample(still_plan(bank), torch.tensor([0]))
    angles = np.zeros(3)
    angles[axis] = np.pi / 2
    turned = bank.sample(still_plan(bank, rotation=sampling._rotations(angles)), torch.tensor([0]))
    plane = [2 + i for i in range(3) if i != 2 - axis]
    ways = [k for k in (1, 3) if torch.allclose(turned[0], straight[0].rot90(k, plane), atol=1e-3)]
    assert len(ways) == 1
    assert torch.equal(turned[1], straight[1].rot90(ways[0], plane))
    assert not torch.equal(turned[1], straight[1])


def expected_in_plane(angle):
    return [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]


def test_rotations_are_rotations():
    for n in (1, 3):
        turns = sampling._rotations(np.random.default_rng(0).uniform(-3, 3, (5, n)))
        unit = np.broadcast_to(np.eye(turns.shape[1]), turns.shape)
        np.testing.assert_allclose(turns @ np.swapaxes(turns, 1, 2), unit, atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(turns), 1)
    angles = np.array([0.3, -0.5, 0.7])  # of the second axis' plane, scipy counts the other way
    expected = Rotation.from_euler("XYZ", angles * [1, -1, 1]).as_matrix()
    np.testing.assert_allclose(sampling._rotations(angles), expected, atol=1e-12)
    np.testing.assert_allclose(sampling._rotations(angles[2:]), expected_in_plane(0.7))


def test_sample_is_a_box_of_image_and_label_mirrored_at_the_border():
    volumes = [made_up((10, 11, 9), 1), made_up((12, 9, 10), 2)]
    bank = Bank(volumes, (8, 8, 8), 3, CPU)
    low, high = (-3, 1, 4), (5, 9, 12)  # beyond the first axis' beginning, inside, beyond the last's end
    centre = [(a + b - 1) / 2 for a, b in zip(low, high, strict=True)]
    box = tuple(slice(a + 12, b + 12) for a, b in zip(low, high, strict=True))
    for step in ([1, 1, 1], [-1, 1, -1]):
        image, label = bank.sample(still_plan(bank, centre=centre, step=step), torch.tensor([0]))
        for i, volume in enumerate(volumes):
            for found, whole in ((image, volume.normalised()[0].numpy()), (label, volume.label)):
                # The bank mirrors its volumes out to the largest, and samples mirror that
                to_largest = [(0, m - n) for n, m in zip(whole.shape, (12, 11, 10), strict=True)]
                mirrored = np.pad(np.pad(whole, to_largest, "symmetric"), 12, "symmetric")
                expected = mirrored[box][:: step[0], :: step[1], :: step[2]]
                np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=2e-3)


def test_brightness_and_noise_of_a_sample():
    bank = Bank([made_up((8, 8, 8))], (8, 8, 8), 3, CPU)
    still, _ = bank.sample(still_plan(bank), torch.tensor([0]))
    brighter, _ = bank.sample(still_plan(bank, gain=1.5, offset=-0.25), torch.tensor([0]))
    torch.testing.assert_close(brighter, 1.5 * still - 0.25)
    noisy, _ = bank.sample(still_plan(bank, noise=0.5), torch.tensor([0]))
    assert (noisy - still).std() == pytest.approx(0.5, rel=0.2)


def test_boxes_stay_inside_and_half_of_them_are_at_an_organ():
    label = np.zeros((20, 21, 7), np.uint8)
    label[9:11, 10:12, 3] = 1
    volume = Volume("brats", "a", np.ones((1, 20, 21, 7), np.uint8), label, (1, 1, 1))
    bank = Bank([volume], (6, 6, 8), 2, CPU)
    bank.sizes, bank.inside = [(20, 21, 7)], [np.flatnonzero(label)]
    plan = bank.plan(100, 6, Augmentation(octaves=0.9), 0)
    centre, length = plan["centre"], plan["step"].abs() * torch.tensor([6, 6, 8])
    inside_image = (centre - length / 2 >= -0.5001) & (centre + length / 2 <= torch.tensor([20, 21, 7]) - 0.4999)
    assert inside_image[length <= torch.tensor([20, 21, 7])].all()
    in_middle = (centre - (torch.tensor([20, 21, 7]) - 1) / 2).abs() < 1e-5
    assert in_middle[length > torch.tensor([20, 21, 7])].all()
    at_organ = [tuple(x) in {(a, b) for a in (9, 10) for b in (10, 11)} for x in centre[..., :2].flatten(0, 1).tolist()]
    assert 0.42 < np.mean(at_organ) < 0.58
    # The others are anywhere
    elsewhere = centre[..., :2].flatten(0, 1)[~torch.tensor(at_organ)]
    assert (elsewhere.amin(0) < 4).all()
    assert (elsewhere.amax(0) > 15).all()


def test_plan_is_a_function_of_the_seed_alone():
    bank, augmentation = Bank([made_up(seed=i) for i in range(5)], (8, 8, 8), 3, CPU), Augmentation(octaves=1.0)
    plan = bank.plan(10, 3, augmentation, 7)
    torch.rand(3)
    again, other = (bank.plan(10, 3, augmentation, seed) for seed in (7, 8))
    assert all(torch.equal(plan[name], again[name]) for name in plan)
    assert not any(torch.equal(plan[name], other[name]) for name in plan)
    assert sorted(plan["case"].flatten()[:10].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert 0.5 <= plan["step"].abs().min() < 0.65
    assert 1.6 < plan["step"].abs().max() <= 2
    assert {1, -1} == set(plan["step"][..., 0].sign().flatten().tolist())
    assert (plan["step"][..., 1:] > 0).all()


def test_batches_of_slices_of_one_volume():
    volumes = [made_up((8, 9, n), n, "acdc") for n in (6, 7, 8)]
    bank = Bank(volumes, (8, 8), 4, CPU)
    of = torch.tensor(bank.of_volume)[bank.plan(6, 4, STILL, 0, is_grouped=True)["case"]]
    assert (of == of[:, :1]).all()
    assert sorted(of[:3, 0].tolist()) == [0, 1, 2]
    torch.testing.assert_close(bank.images[6, :, :8, :9].float(), volumes[1].normalised()[..., 0], atol=1e-3, rtol=0)


def test_whole_images_of_sizes_that_fit():
    bank = Bank([made_up((10, 11, 9), 1), made_up((12, 9, 10), 2)], (8, 12, 8), 3, CPU)
    plan = bank.plan(30, 2, Augmentation(octaves=1.0, is_whole=True, flips=(), rotation=0), 0)
    assert set(plan["size"].flatten().tolist()) == {4, 8, 12, 16, 20, 24}
    torch.testing.assert_close(plan["step"] * plan["size"][:, None], torch.tensor([8.0, 12, 8]).expand(30, 2, 3))
    middle = (torch.tensor(bank.sizes)[plan["case"]] - 1) / 2
    torch.testing.assert_close(plan["centre"], middle)
    image, label = bank.sample(plan, torch.tensor([3]), plan["size"][3].tolist())
    assert image.shape == label.shape == (2, 1, *plan["size"][3].tolist())


# Zooming and volumes


def by_scipy(image, size):
    step = [n / m for n, m in zip(image.shape, size, strict=True)]
    smooth = gaussian_filter(image, [0.5 * max(s * s - 1, 0) ** 0.5 for s in step], mode="reflect")
    offset = [(s - 1) / 2 for s in step]
    return affine_transform(smooth, step, offset, output_shape=tuple(size), order=3, mode="reflect")


@pytest.mark.parametrize("size", [(6, 17, 7), (18, 5, 14), (9, 12, 2)])
def test_lines_one_after_the_other_are_what_scipy_does_to_the_image(size):
    image = np.random.default_rng(0).standard_normal((9, 12, 7))
    found = resized(torch.from_numpy(image)[None, None], size)[0, 0]
    np.testing.assert_allclose(found.numpy(), by_scipy(image, size), atol=2e-6)


def test_sizes_under_test_conditions():
    assert size_of((40, 56, 7), "0.5") == [20, 28, 4]
    assert size_of((40, 56, 7), "z2") == [40, 56, 4]
    assert size_of((1, 1, 1), "0.1") == size_of((1, 1, 2), "z9") == [1, 1, 1]


def test_normalised_leaves_the_outside_at_zero():
    volume = made_up(dataset="brats", channels=2)
    volume.image[:, :3] = 0
    for image, raw in zip(volume.normalised(), volume.image, strict=True):
        values = image[raw > 0]
        assert values.mean().abs() < 1e-5
        assert values.std() == pytest.approx(1, abs=1e-5)
        assert (image[raw == 0] == 0).all()


def test_volume_at_another_voxel_size():
    volume = made_up((16, 18, 3), dataset="acdc", spacing=(1.5, 1.0, 8.0))
    volume.image[:, 8:] = 1  # beside bright voxels, where splines go below
    new = volume.resampled(1.25)
    assert new.label.shape == new.image.shape[1:] == (19, 14, 3)
    assert new.spacing == (1.25, 1.25, 8.0)
    expected = np.stack([by_scipy(volume.image[0, ..., i].astype(float), (19, 14)) for i in range(3)], -1)
    np.testing.assert_allclose(new.image[0], expected.round().clip(1, 255), atol=1)
    assert new.image.min() == 1  # 0 would be the outside, which is left at the mean
    each = [np.stack([by_scipy((volume.label == k)[..., i] * 1.0, (19, 14)) for i in range(3)], -1) for k in range(4)]
    assert (new.label == np.argmax(each, 0)).mean() > 0.999


def write_nifti(path, array, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def test_prepared_volumes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("hippocampus", "acdc"):
        for part, high in (("imagesTr", 900.0), ("labelsTr", 3)):
            array = rng.uniform(0, high, (5, 6, 7)).astype(np.float32 if high > 3 else np.uint8)
            write_nifti(tmp_path / FOLDERS[name] / part / "case_1.nii.gz", array, (1.0, 2.0, 3.0))
    brain = np.zeros((8, 8, 8), np.float32)
    brain[2:6, 1:7, 3:8] = rng.uniform(50, 90, (4, 6, 5))
    for modality in MODALITIES:
        write_nifti(tmp_path / FOLDERS["brats"] / "a" / f"a_{modality}.nii.gz", brain, (2.0, 2.0, 2.0))
    tumour = np.zeros((8, 8, 8), np.uint8)
    tumour[3, 2, 5:7] = 1, 4
    write_nifti(tmp_path / FOLDERS["brats"] / "a" / "a_seg.nii.gz", tumour, (2.0, 2.0, 2.0))
    datasets.prepare(str(tmp_path / "cases"), str(tmp_path))
    (volume,) = datasets.load("hippocampus", tmp_path / "cases")
    assert (volume.name, volume.spacing, volume.image.shape) == ("case_1", (1.0, 2.0, 3.0), (1, 5, 6, 7))
    assert (volume.image.min(), volume.image.max()) == (1, 255)
    (volume,) = datasets.load("brats", tmp_path / "cases")
    assert volume.image.shape == (4, 4, 6, 5)
    assert np.argwhere(volume.label).tolist() == [[1, 1, 2], [1, 1, 3]]
    assert volume.label.max() == 1


# Splits


def listed(dataset, count):
    voxels = np.linspace(1.2, 1.8, count)
    empty = np.zeros((1, 1, 1), np.uint8)
    return [Volume(dataset, f"{i:03d}", empty[None], empty, (v, v, 5.0)) for i, v in enumerate(voxels)]


@pytest.mark.parametrize(
    ("dataset", "count", "settings"),
    [
        ("hippocampus", 208, {"scale": (126, 40), "validation": (126, 42)}),
        ("brats", 30, {"scale": (25, 5), "validation": (20, 5)}),
        ("acdc", 75, {"half": (37, 38), "validation": (28, 9), "coarse": (37, 38)}),
    ],
)
def test_nobody_trains_for_his_own_test(dataset, count, settings):
    volumes, tested_in = listed(dataset, count), []
    for fold in range(FOLDS if dataset == "brats" else 1):
        held_out = {v.name for v in split(dataset, volumes, next(iter(settings)), fold)[1]}
        tested_in += held_out
        for setting, sizes in settings.items():
            pool, test = ([v.name for v in part] for part in split(dataset, volumes, setting, fold))
            assert (len(pool), len(test)) == (len(set(pool)), len(set(test))) == sizes
            assert not set(pool) & set(test)
            if setting == "validation":
                assert not held_out & {*pool, *test}
    assert len(tested_in) == len(set(tested_in))
    if dataset == "brats":
        assert len(tested_in) == count
    if dataset == "acdc":
        pool, test = split(dataset, volumes, "coarse", 0)
        assert min(v.spacing[0] for v in pool) > 1.5 >= max(v.spacing[0] for v in test)


def test_data_sets_have_as_many_volumes_as_the_protocol_wants():
    folders = {name: shared("data", folder) for name, folder in FOLDERS.items()}
    volumes = {}
    for name, folder in folders.items():
        files = sorted(folder.glob("*/*_seg.nii.gz") if name == "brats" else folder.glob("labelsTr/*.nii.gz"))
        volumes[name] = listed(name, len(files))
        for volume, file in zip(volumes[name], files, strict=True):
            volume.spacing = nibabel.load(file).header.get_zooms()[:3]
    for run in (run for group in [*protocol.selection(), *protocol.protocol({})] for run in group):
        pool, _ = split(run.dataset, volumes[run.dataset], run.setting, run.fold)
        assert len(pool) >= run.volumes, run.name


# Networks


def small_image(axes, channels=1):
    return torch.randn(1, channels, *(12, 16, 20)[:axes])


@pytest.mark.parametrize("name", list(ENTRIES))
def test_ways_to_apply_a_network_change_nothing_in_it(name):
    entry = ENTRIES[name]
    axes = 2 if entry.unit else 3
    net = entry.build(axes, 1, 3)
    facts = [(key, id(module), module.extra_repr()) for key, module in net.named_modules()]
    own = {id(p) for p in net.parameters()}
    told = [[1.2 / entry.unit] * axes] if entry.unit else []
    for wrap in entry.tests.values():
        wrapped = wrap(net).eval()
        assert {id(p) for p in wrapped.parameters()} <= own
        if name != "published_aug":  # which is slow
            with torch.no_grad():
                y = wrapped(small_image(axes), *told)
            assert y.shape == (1, 3, *(12, 16, 20)[:axes])
    assert [(key, id(module), module.extra_repr()) for key, module in net.named_modules()] == facts


@pytest.mark.parametrize("axes", [2, 3])
@torch.no_grad()
def test_what_the_ways_compute(axes):
    net, x = networks.unet(axes, 1, 3).eval(), torch.randn(1, 1, *(16, 24, 8)[:axes])
    torch.testing.assert_close(once(net)(x), net(x))
    torch.testing.assert_close(over((1.0,))(net)(x), net(x).log_softmax(1))
    pyramid = networks.pyramid()(axes, 1, 3).eval()
    assert once(pyramid) is pyramid
    wider = over((1.0,))(pyramid)
    assert wider.projection is pyramid.projection
    torch.testing.assert_close(wider(x), pyramid.network(x).log_softmax(1))
    assert over(HALF)(networks.seunet(axes, 1, 3)).spatial_dims == axes
    canonical = networks.canonical()(axes, 1, 3).eval()
    torch.testing.assert_close(inside(once)(canonical)(x), canonical.network(x))
    nn.init.constant_(canonical.estimator.last.bias, 1.0)  # as if all images were twice too large
    torch.testing.assert_close(inside(once)(canonical)(x), canonical.network(x))
    assert not torch.allclose(canonical(x), canonical.network(x))
    # What averages over scales stands within, on the copy that the canonicaliser makes of the image
    averaged = ScalePyramid(canonical.network, HALF, "logsumexp", axes)
    expected = ScaleCanonicalizer(averaged, axes, 1, size_divisor=1).eval()
    expected.estimator = canonical.estimator
    torch.testing.assert_close(brought(over(HALF))(canonical)(x), expected(x))


@torch.no_grad()
def test_two_scales_at_a_time():
    net, x = networks.two_scales_at_a_time(2, 1, 3), torch.randn(1, 1, 16, 24)
    whole = networks.pyramid()(2, 1, 3)
    whole.load_state_dict(net.state_dict())
    torch.testing.assert_close(net.eval()(x), whole.eval()(x))
    pairs = [
        ScalePyramid(net.network, [HALF[i], HALF[j]], spatial_dims=2).train()(x) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    drawn = [net.train()(x) for _ in range(20)]
    seen = {i for y in drawn for i, pair in enumerate(pairs) if torch.allclose(y, pair, atol=1e-5)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("spacing", [1.0, 1.3])
def test_seunet_of_one_scale_at_a_time(spacing):
    """A step computes the scale that was drawn, evaluation the whole, both for the voxel size that they are told."""
    net, x = networks.one_scale_at_a_time(3, 1, 2), torch.randn(1, 1, 9, 12, 8)
    expected = [net.whole.at_spacing(spacing).at_scales([i])(x) for i in range(4)]
    drawn = [(net.draw(), net.drawn, net.train()(x, [spacing] * 3)) for _ in range(30)]
    assert {i for _, i, _ in drawn} == {0, 1, 2, 3}
    for _, i, y in drawn:
        torch.testing.assert_close(y, expected[i])
    torch.testing.assert_close(net.eval()(x, [spacing] * 3), net.whole.at_spacing(spacing)(x))


@pytest.mark.parametrize(
    ("axes", "channels", "classes", "names"),
    [
        (3, 1, 3, protocol.MAIN), (3, 4, 2, protocol.MAIN),
        (2, 1, 4, ("unet_aug", "unet_resampled_aug", "pyramid_mm_aug", "seunet_one_scale_mm_aug")),
    ],
)  # fmt: skip
def test_networks_that_are_compared_have_as_many_parameters(axes, channels, classes, names):
    nets = [ENTRIES[name].build(axes, channels, classes) for name in names]
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert max(counts) < 1.1 * min(counts), counts


# Trainings


@pytest.fixture
def small_recipes(monkeypatch):
    for name, size in (("hippocampus", (8, 8, 8)), ("acdc", (16, 16))):
        monkeypatch.setitem(RECIPES, name, RECIPES[name] | {"size": size, "batch": 2})


def trainer_of(network, steps=4, dataset="hippocampus", seed=3):
    shape, setting = ((16, 16, 2), "half") if dataset == "acdc" else ((8, 9, 8), "scale")
    voxels = (1.2, 1.5, 1.8)
    volumes = [made_up(shape, i, dataset, (v, v, 5.0)) for i, v in enumerate(voxels)]
    return Trainer(Run(dataset, network, 3, seed, setting=setting, steps=steps), volumes, CPU)


def test_learning_rate_rises_straight_and_falls_as_a_cosine():
    found = [rate_at(i, 20, 8.0) for i in range(20)]
    assert found[:3] == [4.0, 8.0, 8.0]
    assert found[2:] == pytest.approx([4 + 4 * math.cos(math.pi * i / 18) for i in range(18)])
    assert rate_at(0, 1, 8.0) == 8.0


@pytest.mark.parametrize(
    ("network", "dataset"),
    [
        ("unet_aug", "hippocampus"), ("canon_unet", "hippocampus"), ("unet_whole_aug", "hippocampus"),
        ("pyramid_mm_aug", "acdc"), ("canon_late", "hippocampus"),
    ],
)  # fmt: skip
def test_training_that_was_stopped_goes_on_bit_for_bit(network, dataset, small_recipes, tmp_path, monkeypatch):
    if "whole" in network:  # half of which is the least that a norm takes
        monkeypatch.setitem(RECIPES, dataset, RECIPES[dataset] | {"size": (16, 16, 16)})
    straight = trainer_of(network, dataset=dataset)
    finish([straight])
    stopped = trainer_of(network, dataset=dataset)
    stopped.advance()
    stopped.advance()
    stopped.save(tmp_path / "a_0.005.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a_0.005.pt"]
    torch.rand(9)
    resumed = trainer_of(network, dataset=dataset)
    resumed.load(tmp_path / "a_0.005.pt")
    assert (resumed.done, resumed.at.item()) == (2, 2)
    finish([resumed])
    assert resumed.done == straight.done == 4
    assert (straight.lost > 0).all()
    assert torch.equal(resumed.lost, straight.lost)
    ours, theirs = resumed.net.state_dict(), straight.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    last = times(4, 3)[3] if network == "canon_late" else 3
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(rate_at(last, 4, 5e-3))


def test_copies_join_late_and_the_estimator_is_trained_rarely_before(small_recipes):
    trainer = trainer_of("canon_late", steps=9)
    assert (trainer.stages.alone, trainer.stages.every) == (7, 4)
    estimator, seen = trainer.net.estimator.last.bias, []
    trainer.net.network.network.register_forward_pre_hook(lambda net, args: seen.append(1))
    for i in range(9):
        seen.clear()
        before = estimator.clone()
        trainer.advance()
        assert len(seen) == (1 if i < 7 else len(HALF))
        assert torch.equal(estimator, before) == (i in (1, 2, 3, 5, 6))
    trainer.net.eval()
    seen.clear()
    trainer.net(torch.randn(1, 1, 16, 16, 16))
    assert len(seen) == len(HALF)


def test_learning_rate_follows_the_time_of_the_steps():
    """Three steps that last 1 and two that last more."""
    total = 3 + 2 * LATE_COST
    assert times(5, 3) == pytest.approx([5 * t / total for t in (0, 1, 2, 3, 3 + LATE_COST)])
    assert times(3, 3) == [0, 1, 2]


def test_estimator_is_trained_by_itself_at_the_end(small_recipes, monkeypatch, tmp_path):
    """On samples near their own size; what segments stays as it is, and a stopped training goes on."""
    entry = dataclasses.replace(ENTRIES["canon_unet_after"], estimator_last=3)
    monkeypatch.setitem(ENTRIES, "canon_unet_after", entry)
    trainer = trainer_of("canon_unet_after", steps=8)
    rates = Stages(8, entry).rates(4.0)
    assert rates == [rate_at(i, 5, 4.0) for i in range(5)] + [rate_at(i, 3, ESTIMATOR_RATE) for i in range(3)]
    zoom = 1 / trainer.plan["step"].abs()
    assert (zoom[:5].log2().abs() > 0.25).any()
    assert (zoom[5:].log2().abs() < 0.26).all()
    parts = trainer.net.network, trainer.net.estimator
    for step in range(8):
        before = [copy.deepcopy(part.state_dict()) for part in parts]
        trainer.advance()
        same = [
            [torch.equal(old[name], value) for name, value in part.state_dict().items()]
            for part, old in zip(parts, before, strict=True)
        ]
        assert [all(part) for part in same] == [step >= 5, step < 5]
        assert trainer.net.weight == 0
        if step == 6:
            trainer.save(tmp_path / "stopped.pt")
    resumed = trainer_of("canon_unet_after", steps=8)
    resumed.load(tmp_path / "stopped.pt")
    finish([resumed])
    assert torch.equal(resumed.lost, trainer.lost)
    assert (trainer.lost > 0).all()
    images = [volume.normalised()[None] for volume in trainer.volumes]
    means = [torch.cat([n.estimator(n._seen(x, 0.0)) for x in images]).mean().abs() for n in (resumed.net, trainer.net)]
    assert means[0] < 1e-6 < means[1]  # centred when it was finished


def test_a_network_that_is_canonicalised_later_is_trained_like_a_plain_one(small_recipes, monkeypatch):
    """To the last bit: the two differ by what the estimator does."""
    monkeypatch.setitem(ENTRIES, "canon_unet_after", dataclasses.replace(ENTRIES["canon_unet_after"], estimator_last=2))
    plain, later = trainer_of("unet_aug", steps=4), trainer_of("canon_unet_after", steps=6)
    finish([plain])
    finish([later])
    assert torch.equal(later.lost[:4], plain.lost)
    ours, theirs = later.net.network.state_dict(), plain.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_no_more_than_half_of_a_short_training_is_the_estimators():
    assert [Stages(n, ENTRIES["canon_unet_after"]).last for n in (3700, 1000, 8, 1)] == [500, 500, 4, 0]


def test_steps_take_the_plan_in_order(small_recipes):
    trainer, seen = trainer_of("seunet_one_scale_mm_aug", dataset="acdc", steps=3), []
    trainer.net.register_forward_pre_hook(lambda net, args: seen.append(args))
    rates = []
    for i in range(3):
        seen.clear()
        trainer.advance()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        image, _ = trainer.bank.sample(trainer.plan, torch.tensor([i]))
        volume = trainer.bank.of_volume[trainer.plan["case"][i, 0]]
        assert torch.equal(seen[0][0], image)
        assert seen[0][1] == pytest.approx([(1.2, 1.5, 1.8)[volume] / 1.25] * 2)
    assert rates == pytest.approx([rate_at(i, 3, 5e-3) for i in range(3)])


def test_other_side_as_channels(small_recipes):
    """In training and in the test the same: the second half of the channels shows the first mirrored."""
    trainer = trainer_of("unet_mirrored_aug")
    images, sizes = trainer.bank.images, trainer.bank.sizes
    for image, size in zip(images, sizes, strict=True):
        torch.testing.assert_close(image[1, : size[0]], image[0, : size[0]].flip(0))
    volumes, seen = [made_up((8, 12, 8), 1)], []
    net = trainer.net.eval()
    net.register_forward_hook(lambda net, given, y: seen.append(given[0]))
    measure(
        net, dataclasses.replace(ENTRIES["unet_mirrored_aug"], tests={"own": lambda net: net}), volumes, ("1",), CPU
    )
    own = volumes[0].normalised()[0]
    torch.testing.assert_close(seen[0], torch.stack([own, own.flip(0)])[None])


def test_whole_images_are_of_the_plans_sizes(monkeypatch):
    monkeypatch.setitem(RECIPES, "hippocampus", RECIPES["hippocampus"] | {"size": (16, 16, 16)})
    trainer, seen = trainer_of("unet_whole_aug", steps=3), []
    trainer.net.register_forward_pre_hook(lambda net, args: seen.append(list(args[0].shape[2:])))
    finish([trainer])
    assert seen == trainer.sizes
    assert len({tuple(size) for size in seen}) > 1


def test_checkpoints_on_the_way_hold_the_seconds_so_far(small_recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    clock = iter(range(100))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    trainers = [trainer_of("unet_aug", 2, seed=seed) for seed in (0, 1)]
    finish(trainers, [tmp_path / "0.pt", tmp_path / "1.pt"])
    # Read at the start, after each of two steps, and for each trainer at the end
    assert [torch.load(tmp_path / f"{i}.pt")["seconds"] for i in (0, 1)] == [2.0, 2.0]
    assert [trainer.seconds for trainer in trainers] == [3.0, 4.0]
    finish([trainer_of("unet_aug", 1)])  # without checkpoints


def test_seed_gives_the_weights_of_the_beginning(small_recipes):
    one, same, other = (trainer_of("unet_aug", seed=seed).net.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_loss_on_each_copy(small_recipes):
    trainer = trainer_of("pyramid_deep")
    x, labels = trainer.bank.sample(trainer.plan, torch.tensor([0]))
    y = trainer.net(x)
    copies = trainer.net.projection.scales_answers.unbind(1)
    expected = trainer.criterion(y, labels) + 0.5 * torch.stack([trainer.criterion(c, labels) for c in copies]).mean()
    torch.testing.assert_close(trainer.loss(y, labels), expected)


def test_cost_of_a_canonicaliser_is_not_that_of_one_images_estimate(small_recipes):
    trainer = trainer_of("canon_unet")
    expected = gmacs(trainer)
    nn.init.constant_(trainer.net.estimator.last.bias, -1.0)
    assert gmacs(trainer) == pytest.approx(expected, rel=0.02)  # the first time makes matrices that are kept
    assert expected > gmacs(trainer_of("unet_aug"))
    assert trainer.net.estimator.last.bias.item() == -1


def test_cost_in_millimetres_is_not_that_of_the_first_volume(small_recipes):
    trainer = trainer_of("pyramid_mm_aug", dataset="acdc")
    expected = gmacs(trainer)
    trainer.spacings = [[0.6, 0.6]] * 4
    assert gmacs(trainer) == pytest.approx(expected, rel=0.02)


def test_costs_of_networks(small_recipes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "load", lambda *_: [made_up(seed=i) for i in range(84)])
    for names in (["unet_aug", "nobody"], ["unet_aug"]):
        costs.main(str(tmp_path / "new"), "", networks=names)
    rows = json.loads((tmp_path / "new" / "costs_hippocampus_cpu.json").read_text())
    assert rows["unet_aug"].keys() == {"gmacs", "parameters", "seconds_per_step", "machine"}
    assert rows["nobody"]["error"].startswith("KeyError")
    assert len(capsys.readouterr().out.splitlines()) == 2  # done once


def test_costs_of_a_network_with_two_kinds_of_steps(small_recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "load", lambda *_: [made_up(seed=i) for i in range(84)])
    done = []
    monkeypatch.setattr(costs, "seconds_per_step", lambda trainer: done.append(trainer.done) or len(done))
    costs.main(str(tmp_path), "", networks=["canon_unet_after_1000"])
    row = json.loads((tmp_path / "costs_hippocampus_cpu.json").read_text())["canon_unet_after_1000"]
    assert done == [0, costs.CHEAP // 2]  # the second from where the estimator is trained by itself
    assert (row["seconds_per_step"], row["seconds_per_estimator_step"], row["estimator_steps"]) == (1, 2, 1000)


# Measurements


class Bright(nn.Module):
    """Logits that follow from intensities: organs are darker, the second class most."""

    spatial_dims = 3

    def __init__(self, classes=3, shift=0):
        super().__init__()
        self.classes, self.shift, self.seen = classes, shift, []

    def forward(self, x, spacing=None):
        self.seen.append((tuple(x.shape), spacing))
        levels = torch.tensor([0.1, -1.7, -2.8, -3.3])[: self.classes].view(-1, *[1] * (x.dim() - 2))
        return -5 * (x.roll(self.shift, -2)[:, :1] - levels) ** 2


def slow_dice(prediction, truth, classes):
    rows = []
    for k in range(1, classes):
        a, b = prediction == k, truth == k
        rows.append(round(2 * (a & b).sum() / (a.sum() + b.sum()), 4) if b.any() else None)
    return rows


def test_dice_of_rescaled_images_against_a_slow_computation():
    volumes = [made_up((10, 12, 9), 1), made_up((12, 9, 11), 2)]
    net = Bright()
    found = measure(net, Entry(None, 0.0, {"own": lambda net: net}), volumes, ("1", "0.6", "1.7", "z2"), CPU)
    for condition, scale in (("1", [1, 1, 1]), ("0.6", [0.6] * 3), ("1.7", [1.7] * 3), ("z2", [1, 1, 0.5])):
        for i, volume in enumerate(volumes):
            size = (12, 12, 12)  # the largest of each axis, made even
            padding = [(0, m - n) for n, m in zip(volume.label.shape, size, strict=True)]
            image = np.pad(volume.normalised()[0].numpy(), padding, "symmetric")
            seen = by_scipy(image, [round(n * s) for n, s in zip(size, scale, strict=True)])
            logits = net(torch.from_numpy(seen)[None, None].float())
            mine = nn.functional.interpolate(logits.softmax(1), size, mode="trilinear").argmax(1)[0].numpy()
            mine = mine[tuple(slice(n) for n in volume.label.shape)]
            expected = slow_dice(mine, volume.label, 3)
            assert found["own"]["dice"][condition][i] == pytest.approx(expected, abs=2e-3), condition
    assert found["own"]["dice"].keys() == {"1", "0.6", "1.7", "z2"}
    assert found["own"]["hd95"].keys() == {"1"}
    assert found["oracle"]["dice"].keys() == {"1", "z2"}
    assert 0 < np.mean(found["own"]["dice"]["0.6"]) < np.mean(found["own"]["dice"]["1"])


def test_volumes_in_parts_are_measured_alike(monkeypatch):
    volumes = [made_up((10, 12, 9), i) for i in range(3)]
    entry = Entry(None, 0.0, {"own": lambda net: net, "four": lambda net: net})
    whole = measure(Bright(), entry, volumes, ("1", "0.6"), CPU)
    monkeypatch.setattr(evaluating, "MOST_VOXELS", 2600)
    assert measure(Bright(), entry, volumes, ("1", "0.6"), CPU) == whole
    assert whole.keys() == {"own", "four", "oracle"}
    larger = [made_up((10, 12, 9), i, "brats") for i in range(2)]
    assert measure(Bright(2), entry, larger, ("1",), CPU).keys() == {"own", "oracle"}


def test_hausdorff_distance_is_in_millimetres():
    volume = made_up((12, 14, 12), spacing=(1.0, 2.5, 4.0))
    volume.label[:] = 0
    volume.label[3:9, 3:9, 3:9] = 1
    volume.image[:] = np.where(volume.label, 50, 200)
    entry = Entry(None, 0.0, {"own": lambda net: net})
    found = measure(Bright(2, shift=1), entry, [volume], ("1",), CPU)["own"]
    assert found["hd95"]["1"][0][0] == 2.5  # one voxel along the second axis
    assert found["dice"]["1"][0] == [pytest.approx(5 / 6, abs=1e-4), None]  # no voxel of the other class


def test_slices_at_their_own_and_another_voxel_size():
    volume = made_up((12, 15, 3), dataset="acdc", spacing=(1.4, 1.8, 8.0))
    net = Bright(4)
    entry = Entry(None, 0.0, {"own": lambda net: net}, unit=2.0)
    found = measure_slices(net, entry, [volume], ("own", "1.5"), CPU)["own"]
    (own, told), (other, told_other) = net.seen
    assert (own, other) == ((3, 1, 12, 15), (3, 1, 11, 18))
    assert told == pytest.approx([0.7, 0.9])
    assert told_other == pytest.approx([12 * 1.4 / 11 / 2, 15 * 1.8 / 18 / 2])
    logits = net(volume.normalised().movedim(-1, 0)).argmax(1).movedim(0, -1).numpy()
    assert found["dice"]["own"][0] == pytest.approx(slow_dice(logits, volume.label, 4), abs=1e-4)
    assert found["hd95"].keys() == {"own"}
    slices = [by_scipy(volume.normalised()[0, ..., i].numpy(), (11, 18)) for i in range(3)]
    logits = net(torch.from_numpy(np.stack(slices))[:, None].float())
    mine = nn.functional.interpolate(logits.softmax(1), (12, 15), mode="bilinear").argmax(1).movedim(0, -1).numpy()
    assert found["dice"]["1.5"][0] == pytest.approx(slow_dice(mine, volume.label, 4), abs=5e-3)
    net.seen.clear()
    measure_slices(net, Entry(None, 0.0, {"own": lambda net: net}), [volume], ("own",), CPU)
    assert net.seen[0][1] is None


# Protocol and runs


def test_runs_of_the_protocol_have_names_of_their_own():
    groups = [*protocol.selection(), *protocol.protocol({"unet": 0.01, "pyramid": 0.0025, "canon": 0.02})]
    names = [run.name for group in groups for run in group]
    assert len(names) == len(set(names)) > 100
    for group in groups:
        alike = {(run.dataset, run.setting, run.volumes, run.match, run.steps) for run in group}
        assert len(alike) == 1, group  # these run beside each other
        assert {run.network for run in group} <= ENTRIES.keys()
    rates = {(run.network, run.learning_rate) for group in groups[len(protocol.selection()) :] for run in group}
    assert {("unet_aug", 0.01), ("canon_pyramid", 0.02), ("pyramid_mm_aug", 0.0025), ("seunet_aug", 5e-3)} <= rates
    assert len(rates) == len({network for network, _ in rates})
    assert [len(part) for part in protocol._split(groups, 2)[:2]] == [2, 1]
    assert [run for part in protocol._split(groups, 2) for run in part] == [run for group in groups for run in group]


def test_learning_rates_are_the_best_over_all_scales(tmp_path):
    assert protocol.chosen_rates(tmp_path) == {}
    groups = {group[0].network: group for group in protocol.selection()[:3]}
    for network, levels in {"unet_aug": (0.7, 0.6, 0.8), "pyramid_aug": (0.5, 0.6)}.items():
        for run, level in zip(groups[network], levels, strict=False):
            dice = {"0.5": [[level, None], [level, level]], "1": [[1 - level / 2, 1 - level / 2]]}
            report = {"tests": {"own": {"dice": dice}, "half": {"dice": {"1": [[1 - level]]}}}}
            (tmp_path / f"{run.name}.json").write_text(json.dumps(report))
    assert protocol.chosen_rates(tmp_path) == {"unet": 1e-2, "pyramid": 5e-3}


def test_runs_leave_reports_and_are_not_done_again(tmp_path, capfd):
    """In processes of their own; a network that does not exist is a line, and the others finish."""
    arrays = {}
    for i in range(86):
        volume = made_up(seed=i)
        arrays |= {f"{volume.name}/{k}": np.array(getattr(volume, k)) for k in ("image", "label", "spacing")}
    np.savez(tmp_path / "hippocampus.npz", **arrays)
    run = Run("hippocampus", "segresnet_aug", 3, setting="validation", steps=1)
    groups = [[*runs.variants(run, network=["nobody"])], [*runs.variants(run, volumes=[9])], [run]]
    output = tmp_path / "results"
    runs.do(groups, str(tmp_path), str(output), workers=1, keep=[run.name])
    shown = capfd.readouterr().out
    assert "hippocampus_nobody_3_0_0_validation_steps_1_0.005: FAILED" in shown
    assert "KeyError: 'nobody'" in shown
    assert "expected 9 volumes to train with, got 4" in shown
    assert sorted(path.name for path in output.iterdir()) == [f"{run.name}.json", f"{run.name}_weights.pt"]
    report = json.loads((output / f"{run.name}.json").read_text())
    assert report.keys() == {
        *("dataset", "network", "volumes", "seed", "fold", "setting", "match", "steps", "learning_rate"),
        *("parameters", "gmacs", "training_seconds", "device", "torch", "loss"),
        *("test_seconds", "cases", "classes", "tests"),
    }  # fmt: skip
    assert report["cases"] == [f"case_{i:03d}" for i in range(40, 82)]
    assert report["tests"].keys() == {"own", "oracle"}
    assert {len(rows) for found in report["tests"].values() for rows in found["dice"].values()} == {42}
    runs.do(groups[2:], str(tmp_path), str(output), workers=1)
    assert capfd.readouterr().out == ""


def test_report_of_a_finished_training(small_recipes, tmp_path, monkeypatch):
    """Its checkpoint goes, and what was trained is what is measured."""
    monkeypatch.setitem(evaluating.CONDITIONS, "hippocampus", ("1", "z2"))
    trainer = trainer_of("unet_aug", 2)
    finish([trainer])
    (tmp_path / f"{trainer.run.name}.pt").write_text("")
    test = [made_up(seed=i) for i in (8, 9)]
    report = runs.tested(trainer, test, tmp_path, keep_weights=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{trainer.run.name}.json"]
    expected = measure(trainer.net, ENTRIES["unet_aug"], test, ("1", "z2"), CPU)
    assert report["tests"] == expected
    assert runs.mean([[0.5, None], [0.75, 1.0]]) == 0.75


def test_cases_that_were_not_prepared_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--cases: expected .*brats\.npz, found none; .*prepare"):
        datasets.load("brats", tmp_path)
