"""SEUNet: the shared network test, what is particular to it, and its place in a MONAI pipeline."""

from __future__ import annotations

import inspect

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

from monai_scaleequiv import SEUNet, make_phantom_dataset
from tests.network_tests import NetworkTests

SMALL = {"channels": (4, 8), "strides": (2,), "scales": (1.0, 0.8)}
IN_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **SMALL}
IN_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **SMALL}
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
    ]
    ill_arguments = [  # noqa: RUF012
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"channels": (4,)}, "no less than 2"),
        ({"strides": ()}, "should equal"),
        ({"strides": (0, 1, 1)}, "strides must be at least 1"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"num_res_units": -1}, "num_res_units must be"),
        ({"scales": ()}, "scales must hold"),
        ({"scale_size": 3}, "scale_size must be"),
        ({"projection": "sum"}, "mode must be one of"),
        ({"adn_ordering": "NNA"}, "adn_ordering must"),
        ({"out_channels": 0}, "out_channels and channels must be"),
    ]
    export_case = ({**IN_3D, **DEEP, "num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))


@pytest.mark.slow
def test_compile_in_2d_trains_with_one_compilation_per_size():
    net = SEUNet(2, 1, 2, channels=(4, 8), strides=(2,))
    compiled = torch.compile(net, dynamic=False)
    for size in [(16, 18), (13, 11)]:
        compiled(torch.rand(2, 1, *size)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_arguments_are_those_of_monais_unet():
    ours, theirs = (list(inspect.signature(net).parameters.values()) for net in (SEUNet, UNet))
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    differ = {p.name for p, q in zip(ours, theirs, strict=False) if str(p.default).upper() != str(q.default).upper()}
    assert differ == {"kernel_size", "up_kernel_size", "act", "norm"}


@pytest.mark.parametrize("norm", ["BATCH", "INSTANCE"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 1), (3, 1, 8), (4, 4, 4), (5, 7, 13)])
def test_any_size_comes_back(size, training, norm):
    net = SEUNet(**{**IN_3D, **DEEP, "norm": norm}).train(training)
    y = net(torch.randn(1, 1, *size))
    assert y.shape[2:] == size
    assert y.isfinite().all()


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
