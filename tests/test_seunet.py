"""SEUNet: the shared network test, what is particular to it, and its place in a MONAI pipeline."""

from __future__ import annotations

import copy
import inspect
import io

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.engines import SupervisedTrainer
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    LoadImaged,
    NormalizeIntensityd,
    RandFlipd,
    RandSpatialCropd,
    SpatialPadd,
)

from monai_scaleequiv import SEUNet, make_phantom_dataset, relative_error, rescale
from tests.network_tests import NetworkTests

SMALL = {"channels": (4, 8), "strides": (2,), "grid": "fixed", "scales": (1.0, 0.8), "sigma": 1.0}
IN_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **SMALL}
IN_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **SMALL}
OWN_2D, OWN_3D = ({**case, "grid": "own", "scales": (1.0, 1.5), "sigma": 0.95} for case in (IN_2D, IN_3D))
DEEP = {"channels": (4, 4, 8, 8), "strides": (1, 2, 2)}


class TestSEUNet(NetworkTests):
    network = SEUNet
    cases = [  # noqa: RUF012
        (IN_2D, (1, 1, 16, 18), (1, 2, 16, 18)),
        (IN_3D, (1, 1, 9, 10, 11), (1, 2, 9, 10, 11)),
        ({**IN_2D, **DEEP, "num_res_units": 2}, (2, 1, 17, 15), (2, 2, 17, 15)),
        ({**IN_3D, **DEEP, "num_res_units": 2, "in_channels": 3}, (1, 3, 9, 8, 7), (1, 2, 9, 8, 7)),
        ({**IN_3D, "num_res_units": 1, "strides": (1,), "scale_size": 2}, (1, 1, 5, 6, 7), (1, 2, 5, 6, 7)),
        ({**IN_3D, **DEEP, "strides": (2, 2, (1, 2, 2))}, (1, 1, 7, 16, 15), (1, 2, 7, 16, 15)),
        ({**IN_3D, "projection": "max", "act": "PRELU", "dropout": 0.1}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, "norm": ("group", {"num_groups": 2}), "adn_ordering": "AN"}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, "norm": "instance", "bias": False, "max_order": 3}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, "kernel_size": (5, 5, 3), "up_kernel_size": 3, "sigma": 0.8}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, "act": ("elu", {"alpha": 0.5}), "scales": (1.0,)}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, **DEEP, "spacing": (0.8, 0.8, 3.0)}, (1, 1, 16, 9, 3), (1, 2, 16, 9, 3)),
        ({**IN_2D, "kernel_size": None, "sigma": 0.8}, (1, 1, 16, 18), (1, 2, 16, 18)),
    ]
    ill_arguments = [  # noqa: RUF012
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"channels": (4,)}, "no less than 2"),
        ({"strides": ()}, "should equal"),
        ({"grid": "coarse"}, "grid must be one of"),
        ({"strides": (0, 1, 1)}, "strides must be whole numbers of at least 1"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"num_res_units": -1}, "num_res_units must be"),
        ({"scales": ()}, "scales must hold"),
        ({"scale_size": 3}, "scale_size must be"),
        ({"projection": "sum"}, "mode must be one of"),
        ({"adn_ordering": "NNA"}, "adn_ordering must"),
        ({"spacing": (1.0, -1.0, 1.0)}, "spacing must be"),
        ({"out_channels": 0}, "out_channels and channels must be"),
    ]
    export_case = ({**IN_3D, **DEEP, "num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    equivariance = (
        {**IN_3D, "kernel_size": 7, "up_kernel_size": 7, "sigma": 1.25, "scales": (1.0, 0.9, 0.81)},
        (54, 54, 54),
        (60, 60, 60),
        3e-3,
    )


class TestSEUNetOnOwnGrids(NetworkTests):
    network = SEUNet
    variant = "_own_grid"
    cases = [  # noqa: RUF012
        (OWN_2D, (1, 1, 16, 18), (1, 2, 16, 18)),
        (OWN_3D, (1, 1, 9, 10, 11), (1, 2, 9, 10, 11)),
        ({**OWN_2D, **DEEP, "num_res_units": 2, "in_channels": 3}, (2, 3, 17, 15), (2, 2, 17, 15)),
        (
            {**OWN_3D, "kernel_size": 5, "act": "RELU", "norm": "BATCH", "dropout": 0.1},
            (1, 1, 8, 8, 8),
            (1, 2, 8, 8, 8),
        ),
        ({**OWN_3D, "projection": "attentive", "out_channels": 3}, (1, 1, 8, 8, 8), (1, 3, 8, 8, 8)),
        ({**OWN_3D, "strides": ((1, 2, 2),), "scales": (0.8, 1.0)}, (1, 1, 5, 7, 9), (1, 2, 5, 7, 9)),
        ({**OWN_3D, "spacing": (0.8, 0.8, 3.0)}, (1, 1, 16, 9, 3), (1, 2, 16, 9, 3)),
    ]
    ill_arguments = [  # noqa: RUF012
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"grid": "coarse"}, "grid must be one of"),
        ({"sigma": 1.25}, "belong to grid='fixed'"),
        ({"scales": (1.0, -1.0)}, "scales must hold"),
        ({"projection": "sum"}, "mode must be one of"),
        ({"spacing": 0.0}, "spacing must be"),
    ]
    export_case = ({**OWN_3D, "num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    equivariance = ({**OWN_3D, "scales": (1.0, 1.5, 2.25)}, (36, 36, 36), (54, 54, 54), 1e-6)


@pytest.mark.slow
def test_compile_in_2d_trains_with_one_compilation_per_size():
    net = SEUNet(**IN_2D)
    compiled = torch.compile(net, dynamic=False)
    for size in [(16, 18), (13, 11)]:
        compiled(torch.rand(2, 1, *size)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_arguments_are_those_of_monais_unet():
    ours, theirs = (list(inspect.signature(net).parameters.values()) for net in (SEUNet, UNet))
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    differ = {p.name for p, q in zip(ours, theirs, strict=False) if str(p.default).upper() != str(q.default).upper()}
    assert differ == {"kernel_size", "up_kernel_size", "act", "norm"}
    assert {p.default for p in ours if p.name in differ} == {None}  # the grid's own


@pytest.mark.parametrize("case", [IN_3D, OWN_3D], ids=["fixed", "own"])
@pytest.mark.parametrize("norm", ["BATCH", "INSTANCE"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 1), (3, 1, 8), (4, 4, 4), (5, 7, 13)])
def test_any_size_comes_back(size, training, norm, case):
    net = SEUNet(**{**case, **DEEP, "norm": norm}).train(training)
    y = net(torch.randn(1, 1, *size))
    assert y.shape[2:] == size
    assert y.isfinite().all()


@pytest.mark.parametrize("case", [IN_2D, OWN_2D], ids=["fixed", "own"])
def test_projections_of_both_grids(case):
    for projection in ("mean", "max", "logsumexp", "attentive"):
        net = SEUNet(**{**case, "projection": projection})
        assert net(torch.rand(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_own_grids_hold_monais_unet():
    net = SEUNet(3, 1, 2, channels=(4, 8), strides=(2,), scales=(1.0,), projection="mean").eval()
    unet = UNet(3, 1, 2, channels=(4, 8), strides=(2,)).eval()
    unet.load_state_dict({k.removeprefix("pyramid.network."): v for k, v in net.state_dict().items()})
    x = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(net(x), unet(x))


def test_own_grids_at_another_spacing_see_the_same_body():
    net = SEUNet(**{**OWN_3D, "scales": (2.0, 4.0), "projection": "mean"}).eval()  # no grid finer than the coarse image
    image = rescale(torch.rand(1, 1, 6, 6, 6), (16, 16, 16))
    coarse = rescale(image, (16, 16, 8))
    with torch.no_grad():
        expected = rescale(net(image), (16, 16, 8))
        found, blind = net.at_spacing((1.0, 1.0, 2.0))(coarse), net(coarse)
    assert relative_error(found, expected) < 1e-6
    assert relative_error(blind, expected) > 1e-2
    assert net.at_spacing((1.0, 1.0, 2.0)).state_dict().keys() == net.state_dict().keys()


def test_surplus_strides_are_mentioned():
    with pytest.warns(UserWarning, match="last 1 values of `strides`"):
        SEUNet(**{**IN_2D, "strides": (2, 2)})


def test_far_corners_do_not_meet_in_evaluation():
    """Sliding windows may be stitched: what is far away does not change the answer, unlike under batch statistics."""
    net = SEUNet(**IN_3D)
    x = torch.randn(1, 1, 8, 8, 64)
    net(x)
    changed = x.clone()
    changed[..., -1] += 100
    with torch.no_grad():
        net.eval()
        # Gaussian down-sampling has no edge, but 48 voxels away nothing of it is left in single precision.
        torch.testing.assert_close(net(changed)[..., :16], net(x)[..., :16], atol=1e-4, rtol=0)
        assert (net(changed) - net(x)).abs().max() > 0.01


def trained(**args) -> SEUNet:
    """A network whose running statistics are not the initial ones, in evaluation mode."""
    net = SEUNet(**{**IN_3D, **args})
    net(torch.randn(2, 1, 12, 12, 12))
    return net.eval()


def same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(keep_vars=True), b.state_dict(keep_vars=True)
    return ours.keys() == theirs.keys() and all(ours[k] is theirs[k] for k in ours)


def test_spacing_changes_neither_the_names_nor_the_shapes_of_weights():
    shapes = [
        {k: v.shape for k, v in SEUNet(**{**IN_3D, **DEEP, "spacing": r}).state_dict().items()}
        for r in (1.0, 0.5, (2.0, 2.0, 2.0), (0.8, 0.8, 5.0))
    ]
    assert all(s == shapes[0] for s in shapes)


def test_coarse_axes_are_down_sampled_less():
    net = SEUNet(**{**IN_3D, **DEEP})  # strides 1, 2, 2
    assert net.total_stride == [4, 4, 4]
    assert net.at_spacing((1.0, 2.0, 4.0)).total_stride == [4, 2, 1]
    assert net.at_spacing((0.5, 1.5, 3.0)).total_stride == [8, 3, 1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (0.75, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_the_same_weights_see_the_same_at_another_spacing(spacing):
    net = SEUNet(**{**IN_3D, "kernel_size": 7, "up_kernel_size": 7, "sigma": 1.25})
    x = rescale(torch.randn(1, 1, 9, 9, 9), (48, 48, 48))
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.momentum = 1.0
    net(x)
    size = [round(48 / r) for r in spacing]
    inner = (..., *(slice(n // 4, n - n // 4) for n in size))
    with torch.no_grad():
        found, image = rescale(net.eval()(x), size)[inner], rescale(x, size)
        assert relative_error(net.at_spacing(spacing)(image)[inner], found) < 4e-3
        assert relative_error(net(image)[inner], found) > 0.02  # blind to spacing


def test_at_spacing_shares_every_weight_and_leaves_no_trace():
    net = trained()
    state, keys = torch.random.get_rng_state(), list(net.state_dict())
    twin = net.at_spacing((1.0, 1.0, 3.0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert same_tensors(net, twin)
    assert list(net.state_dict()) == keys
    assert twin is net.at_spacing(torch.tensor([1.0, 0.9999999, 3.0]))
    assert net.at_spacing(1.0) is net
    assert twin not in list(net.modules())
    for r in range(2, 11):
        net.at_spacing(float(r))
    assert len(net._twins) == 8
    assert net.at_spacing((1.0, 1.0, 3.0)) is not twin  # the least recently used went first
    with pytest.raises(ValueError, match="spacing must be"):
        net.at_spacing((1.0, 2.0))


def test_training_at_one_spacing_trains_all():
    net = trained()
    twin = net.train().at_spacing((1.0, 1.0, 2.0))
    assert twin.training
    x, before = torch.randn(2, 1, 8, 8, 8), copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    twin(x).square().mean().backward()
    optimizer.step()
    unchanged = [k for k, v in net.state_dict().items() if torch.equal(v, before[k])]
    assert unchanged in ([], [k for k in unchanged if k.endswith("conv.bias")])  # batch norm takes a bias away
    net.eval()
    assert not any(m.training for m in twin.modules())
    net.downs.train()  # part of the network only
    assert [m.training for m in net.at_spacing((1.0, 1.0, 2.0)).modules()] == [m.training for m in net.modules()]


def test_at_spacing_follows_loaded_weights_copies_and_dtypes():
    net, other, x = trained(), trained(), torch.randn(1, 1, 8, 8, 4)
    spacing = (1.0, 1.0, 2.0)
    with torch.no_grad():
        expected = other.at_spacing(spacing)(x)
        assert (net.at_spacing(spacing)(x) - expected).abs().max() > 0.01
        net.load_state_dict(copy.deepcopy(other.state_dict()))
        torch.testing.assert_close(net.at_spacing(spacing)(x), expected)
        net.load_state_dict(trained().state_dict(), assign=True)
        assert same_tensors(net, net.at_spacing(spacing))
        buffer = io.BytesIO()
        torch.save(other, buffer)
        buffer.seek(0)
        for twin in (copy.deepcopy(other), torch.load(buffer, weights_only=False)):
            assert len(twin._twins) == 0
            torch.testing.assert_close(twin.at_spacing(spacing)(x), expected)
            assert same_tensors(twin, twin.at_spacing(spacing))
            assert not same_tensors(twin, other)
        double = other.double().at_spacing(spacing)(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_networks_at_a_spacing_can_be_scripted_and_leave_the_original_scriptable():
    net, x = trained(), torch.randn(1, 1, 8, 8, 4)
    twin = net.at_spacing((1.0, 1.0, 2.0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(twin)(x), twin(x))
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantom_dataset(folder, cases=4, size=(24, 32, 24))
    names = [f"phantom_{i:03d}.nii.gz" for i in range(4)]
    return [{"image": folder / "imagesTr" / n, "label": folder / "labelsTr" / n} for n in names]


@pytest.mark.parametrize("network", [SEUNet, UNet])
def test_drop_in_for_unet_in_a_monai_pipeline(network, phantoms):
    keys = ["image", "label"]
    deterministic = [LoadImaged(keys, ensure_channel_first=True), NormalizeIntensityd("image")]
    random = [SpatialPadd(keys, 24), RandSpatialCropd(keys, (16, 24, 16), random_size=False), RandFlipd(keys, 0.5)]
    dataset = CacheDataset(phantoms, Compose(deterministic + random), progress=False)
    loader = DataLoader(dataset, batch_size=2, shuffle=True)
    net = network(spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)
    losses = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=loader,
        network=net,
        optimizer=torch.optim.Adam(net.parameters(), 0.02),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        decollate=False,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    assert np.mean(losses[-2:]) < np.mean(losses[:2])

    net.eval()
    metric = DiceMetric(include_background=False)
    discrete = AsDiscrete(argmax=True, to_onehot=3)
    for batch in DataLoader(CacheDataset(phantoms, Compose(deterministic), progress=False), batch_size=1):
        with torch.no_grad():
            logits = sliding_window_inference(batch["image"], (16, 16, 16), 2, net, overlap=0.25)
        assert logits.shape == (1, 3, 24, 32, 24)
        metric([discrete(p) for p in decollate_batch(logits)], [AsDiscrete(to_onehot=3)(batch["label"][0])])
    assert 0 <= metric.aggregate().item() <= 1
