"""Each scale on its own grid: exact equivariance around any network, in voxels and in millimetres."""

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from monai_scaleequiv import (
    RepUXNet,
    ScaleProjection,
    ScalePyramid,
    SEUNet,
    assert_scale_equivariant,
    equivariance_error,
    rescale,
)
from monai_scaleequiv.maths import _rescaling
from tests.network_tests import NetworkTests

SCALES = (1.0, 1.5)
# builder, spatial dimensions, edge of the image, number that sizes must be multiples of
NETWORKS = {
    "UNet": (lambda: UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1), 3, 24, 4),
    "DynUNet": (lambda: DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]), 3, 24, 4),
    "SegResNet": (lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), 3, 24, 2),
    "SwinUNETR": (
        lambda: SwinUNETR(1, 2, depths=(1,) * 4, num_heads=(1,) * 4, feature_size=12, spatial_dims=2),
        2,
        64,
        32,
    ),
    "SEUNet": (lambda: SEUNet(3, 1, 2, (4, 8), (2,), filters={"scales": (1.0, 0.8)}), 3, 24, 2),
    "RepUXNet": (lambda: RepUXNet(3, 1, 2, (1, 1), (4, 4), 7, 4), 3, 24, 4),
}


class TestPyramidOfUNets(NetworkTests):
    """The shared network test on a pyramid around MONAI's UNet."""

    stored, name_prefix = "seunet_own_grid_logits.npz", "pyramid."
    cases = [  # noqa: RUF012
        ({}, (1, 1, 9, 10, 11), (1, 2, 9, 10, 11)),
        ({"spatial_dims": 2, "strides": (1, 2, 2), "channels": (4, 4, 8, 8)}, (2, 1, 17, 15), (2, 2, 17, 15)),
        ({"norm": "BATCH", "dropout": 0.1, "strides": ((1, 2, 2),)}, (1, 1, 5, 7, 9), (1, 2, 5, 7, 9)),
        ({"scales": (0.8, 1.0), "projection": "attentive", "out_channels": 3}, (1, 1, 8, 8, 8), (1, 3, 8, 8, 8)),
    ]
    ill_arguments = [  # noqa: RUF012
        ({"scales": ()}, "scales must hold at least one"),
        ({"projection": "median"}, "mode must be one of"),
    ]
    export_case = ({"num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    dynamic_case = ({}, *export_case[1:])
    checkpoint_case = {"num_res_units": 1, "norm": "BATCH", "dropout": 0.2}, (2, 1, 8, 8, 6)
    equivariance = ({"scales": (1.0, 1.5, 2.25), "in_channels": 1, "spatial_dims": 3}, (36,) * 3, (54,) * 3, 1e-6)

    def test_ill_input(self):
        net, x, _ = self.exported()
        with pytest.raises(ValueError, match="expected input of shape"):
            net(x[0])

    @staticmethod
    def network(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), scales=SCALES,
        projection="logsumexp", use_checkpoint=False, **args,
    ):  # fmt: skip
        network = UNet(spatial_dims, in_channels, out_channels, channels, strides, **args)
        joined = ScaleProjection(projection, channels=out_channels)
        return ScalePyramid(network, scales, joined, spatial_dims, use_checkpoint=use_checkpoint)


def smooth_image(*size: int) -> torch.Tensor:
    """Noise that the largest test scale can still hold."""
    coarse = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, *(max(n // 3, 1) for n in size))))
    return rescale(coarse, size).to(torch.get_default_dtype())


def unet(spatial_dims: int = 3, out_channels: int = 2) -> nn.Module:
    return UNet(spatial_dims, 1, out_channels, (4, 8), (2,), num_res_units=1)


class Square(nn.Module):
    """A network for which everything can be worked out by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x * x], dim=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_before_the_projection_whatever_the_network(name, float64):
    build, spatial_dims, edge, divisor = NETWORKS[name]
    network, size = build(), [edge * 3 // 2] * spatial_dims
    image = smooth_image(*[edge] * spatial_dims)
    pyramid = ScalePyramid(network, SCALES, "mean", spatial_dims, size_divisor=divisor)
    reading = assert_scale_equivariant(pyramid, image, size, tolerance=1e-28, control=network, margin=0.0)
    assert reading.interior is not None


def test_copies_and_answers_against_the_definition(float64):
    image = smooth_image(8, 6, 10)
    pyramid = ScalePyramid(Square(), (1.0, 2.0), "mean")
    copy = rescale(image, (4, 3, 5))
    expected = (Square()(image) + rescale(Square()(copy), (8, 6, 10))) / 2
    torch.testing.assert_close(pyramid(image), expected, atol=1e-12, rtol=0)


def test_smoothing_is_a_gaussian_on_every_copy(float64):
    image = smooth_image(8, 6, 10)
    pyramid = ScalePyramid(nn.Identity(), (1.0, 2.0), "mean", smoothing=0.5)
    copies = rescale(image, (8, 6, 10), 0.5), rescale(image, (4, 3, 5), 0.5)
    expected = (copies[0] + rescale(copies[1], (8, 6, 10))) / 2
    torch.testing.assert_close(pyramid(image), expected, atol=1e-12, rtol=0)


def test_any_size_is_mirrored_up_to_the_divisor():
    sizes = []
    net = unet()
    net.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    x = torch.rand(2, 1, 7, 9, 5)
    assert ScalePyramid(net, SCALES, size_divisor=2)(x).shape == (2, 2, 7, 9, 5)
    assert sizes == [(8, 10, 6), (6, 6, 4)]


def test_sizes_are_rounded_from_half_a_voxel():
    """The copies of 96 voxels hold 1.87 times its voxels where the divisor allows it, else 2.0 times."""
    for divisor, expected in ((1, [96, 76, 60, 48]), (4, [96, 76, 60, 48]), (8, [96, 80, 64, 48])):
        pyramid = ScalePyramid(Square(), size_divisor=divisor)
        assert [pyramid._copy_size([96] * 3, step)[0] for step in pyramid._steps(None)] == expected
    pyramid = ScalePyramid(Square(), (1.0, 4.0))
    assert [pyramid._copy_size([1, 2, 7], step) for step in pyramid._steps(None)] == [[1, 2, 7], [1, 1, 2]]


@pytest.mark.parametrize("projection", ["logsumexp", "max", "mean"])
def test_warm_forward_stays_on_its_device(projection):
    """No tensor is made on the host and copied, which stops the device's stream and cannot be captured in a graph."""
    x = torch.rand(2, 1, 16, 12, 8, device="meta")
    pyramid = ScalePyramid(unet(), SCALES, projection, voxel_size=1.0, with_scale_map=True).to("meta")

    class OnHost(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            tensors = [t for t in pytree.tree_leaves((args, y)) if isinstance(t, torch.Tensor)]
            seen.extend(func for t in tensors if t.device.type != "meta")
            return y

    class FromNumbers(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.extend([func] * (func in (torch.tensor, torch.as_tensor, torch.from_numpy)))
            return func(*args, **(kwargs or {}))

    seen: list = []
    _rescaling._kept.clear()
    with OnHost(), FromNumbers():
        pyramid(x, [1.0, 1.0, 2.0])
        assert seen  # the control: matrices are computed on the host, once
        seen.clear()
        pyramid(x, [1.0, 1.0, 2.0]).sum().backward()
        assert not seen
        torch.tensor(pyramid.scales, device="meta")
        assert seen.pop() is torch.tensor  # the control of the other way, from numbers


def test_voxel_size_does_not_matter_in_millimetres(float64):
    """The same head at 1 mm and at 2/3 mm or 2 mm: with scales in voxels the answer changes, in mm it does not."""
    torch.manual_seed(1)
    network = unet()
    image = smooth_image(24, 24, 24)
    for size, spacing in (((36, 36, 36), [2 / 3] * 3), ((24, 24, 12), [1.0, 1.0, 2.0])):
        pyramid = ScalePyramid(network, (1.5, 2.0), "mean", voxel_size=1.0, size_divisor=2).eval()
        rescaled = rescale(rescale(image, (24, 24, 12)), size)
        same = rescale(rescaled, image.shape[2:])
        with torch.no_grad():
            found = rescale(pyramid(same, spacing=[1.0, 1.0, 1.0]), size)
            expected = pyramid(rescaled, spacing=spacing)
            blind = ScalePyramid(network, (1.5, 2.0), "mean", size_divisor=2).eval()
            control = rescale(blind(same), size), blind(rescaled)
        assert error(found, expected) < 1e-20
        assert error(*control) > 0.05


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().sum() / expected.square().sum())


def metatensor(x: torch.Tensor, *spacing: float) -> MetaTensor:
    return MetaTensor(x, affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


def test_spacing_comes_from_the_metatensor():
    pyramid = ScalePyramid(unet(), SCALES, voxel_size=1.0, size_divisor=2).eval()
    x = torch.rand(1, 1, 8, 8, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            pyramid(metatensor(x, 1.0, 1.0, 2.5)).as_tensor(), pyramid(x, spacing=[1.0, 1.0, 2.5])
        )
    with pytest.raises(ValueError, match="expected a MetaTensor, for its voxel size, or the argument spacing"):
        pyramid(x)
    for bad in ([1.0, 1.0], [1.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="spacing must hold a voxel size above 0"):
            pyramid(x, spacing=bad)


def test_each_image_of_a_batch_has_its_own_spacing():
    pyramid = ScalePyramid(unet(), SCALES, voxel_size=1.0, size_divisor=2).eval()
    images = [metatensor(torch.rand(1, 8, 8, 6), 1.0, 1.0, z) for z in (1.0, 2.0)]
    batch = MetaTensor(torch.stack([i.as_tensor() for i in images]), affine=torch.stack([i.affine for i in images]))
    batch.is_batch = True
    with torch.no_grad():
        y = pyramid(batch)
        for i, image in enumerate(images):
            torch.testing.assert_close(y[i].as_tensor(), pyramid(image[None]).as_tensor()[0], atol=1e-5, rtol=1e-5)


def test_sliding_windows_hand_on_the_spacing():
    pyramid = ScalePyramid(unet(), SCALES, voxel_size=1.0, size_divisor=2).eval()
    x = metatensor(torch.rand(1, 1, 8, 8, 6), 1.0, 1.0, 2.5)
    with torch.no_grad():
        whole = sliding_window_inference(x, (8, 8, 6), 1, pyramid, spacing=[1.0, 1.0, 2.5])
        torch.testing.assert_close(torch.as_tensor(whole), torch.as_tensor(pyramid(x)))


@pytest.mark.parametrize("out_channels", [1, 3])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scale_map_names_the_scale_that_answers(out_channels, spatial_dims):
    class Sure(nn.Module):
        """Sure of the last class on copies of half the size, of nothing on others."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(x.shape[0], out_channels, *x.shape[2:])
            logits[:, -1] = 5.0 if x.shape[-1] == 4 else 0.5
            return logits

    pyramid = ScalePyramid(Sure(), (1.0, 2.0), "logsumexp", spatial_dims, voxel_size=0.5, with_scale_map=True)
    y = pyramid(torch.zeros(2, 1, *[8] * spatial_dims), spacing=[0.5] * spatial_dims)
    assert y.shape == (2, out_channels + 1, *[8] * spatial_dims)
    torch.testing.assert_close(y[:, -1], torch.full_like(y[:, -1], 1.0))  # mm


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_single_images_are_convolved_in_halves_and_batches_are_not(use_checkpoint):
    network, batches = nn.Conv3d(4, 4, 3, padding=1), []
    network.register_forward_hook(lambda _, args, y: batches.append(type(y.grad_fn).__name__))
    pyramid = ScalePyramid(network, SCALES, use_checkpoint=use_checkpoint)
    for count, made_by in ((1, "CatBackward0"), (2, "ConvolutionBackward0")):
        batches.clear()
        pyramid(torch.rand(count, 4, 6, 6, 6)).sum().backward()
        assert batches[:2] == [made_by] * 2
        assert len(set(batches)) == 1  # also when it is computed a second time


def test_size_divisor_follows_from_the_networks_strides():
    deep = UNet(3, 1, 2, (4, 8, 8, 8), (2, (1, 2, 2), 2))
    assert ScalePyramid(deep).size_divisor == [4, 8, 8]
    assert ScalePyramid(SEUNet(3, 1, 2, (4, 8, 8), (1, 2))).size_divisor == [1, 1, 1]  # takes any size
    assert ScalePyramid(deep, size_divisor=(2, 4, 4)).size_divisor == [2, 4, 4]
    assert ScalePyramid(Square()).size_divisor == [1, 1, 1]


@pytest.fixture
def octaves(float64) -> ScalePyramid:
    """Octaves outside, steps within the octave inside: six sizes from three scales on two grids."""
    filters = {"scales": [0.8**i for i in range(3)], "kernel_size": 7, "sigma": 1.25}
    network = SEUNet(2, 1, 2, (4, 8), (2,), filters=filters)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0
    network(smooth_image(80, 80))  # statistics of an image, as after training
    return ScalePyramid(network, (1.0, 2.0), "mean", spatial_dims=2).eval()


def test_octaves_around_a_steerable_network_at_a_whole_octave(octaves):
    assert_scale_equivariant(octaves, smooth_image(24, 24), (48, 48), 1e-24, control=octaves.network, margin=0.0)


def test_octaves_around_a_steerable_network_at_a_step_inside_the_octave(octaves):
    image = rescale(torch.randn(1, 1, 12, 12), (96, 96))
    for edge, tolerance in ((96, 6e-3), (48, 3e-2)):  # on either grid, what enters the inner projection moves by one
        copy_of_image = rescale(image, (edge, edge))
        assert_scale_equivariant(octaves.network, copy_of_image, (edge * 5 // 4,) * 2, tolerance, margin=0.25)
    joined, alone = (equivariance_error(n, image, (120, 120), margin=0.25) for n in (octaves, octaves.network))
    assert joined.projected < 0.5 * alone.projected


@pytest.mark.parametrize("mode", ["mean", "max", "logsumexp", "attentive"])
@pytest.mark.parametrize("channels", [1, 3])
def test_projections(mode, channels, float64):
    projection = ScaleProjection(mode, channels=channels)
    x = torch.randn(2, 4, channels, 3, 4, 5)
    y = projection(x)
    if mode == "logsumexp":
        mean = torch.softmax(x, 2).mean(1) if channels > 1 else torch.sigmoid(x).mean(1)
        expected = mean.log() if channels > 1 else torch.logit(mean)
    else:
        expected = x.amax(1) if mode == "max" else x.mean(1)  # attention starts as the mean
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(projection(x.flip(1)), y, atol=1e-12, rtol=0)  # no scale is special


def test_attention_learns_and_weights_sum_to_one():
    projection = ScaleProjection("attentive", channels=2)
    nn.init.normal_(projection.attention[2].weight)
    constant = torch.randn(1, 1, 2, 3, 3).expand(1, 4, 2, 3, 3)
    torch.testing.assert_close(projection(constant), constant[:, 0])
    projection(torch.randn(1, 4, 2, 3, 3)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in projection.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1.0, 0.0)}, "scales must hold at least one"),
        ({"projection": "attentive"}, "channels must be given"),
        ({"scales": (1.0, 65.0)}, "scales must be from 1/64"),
        ({"voxel_size": 0.0}, "voxel_size must be one number above 0"),
        ({"size_divisor": 0}, "size_divisor must be a whole number of at least 1"),
        ({"smoothing": -1.0}, "smoothing must be a number of at least 0"),
    ],
)
def test_ill_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ScalePyramid(Square(), **change)


def test_a_network_of_several_answers_is_refused():
    dynunet = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4] * 3, deep_supervision=True)
    for network in (SEUNet(2, 1, 2, (4, 8, 8), (2, 2), dsdepth=2), dynunet):
        with pytest.raises(ValueError, match=r"network must give one answer, got a \w+ with deep supervision"):
            ScalePyramid(network, spatial_dims=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_in_voxels_and_millimetres():
    for voxel_size, spacing in ((None, None), (1.0, [1.0, 1.0, 2.0])):
        pyramid = ScalePyramid(unet(), SCALES, voxel_size=voxel_size, size_divisor=2).eval()
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(pyramid), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        for size in ((8, 8, 6), (9, 7, 5)):
            x = torch.rand(1, 1, *size)
            torch.testing.assert_close(loaded(x, spacing), pyramid(x, spacing))


def test_dropout_of_the_network_inside():
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
    net, image = ScalePyramid(UNet(**args), spatial_dims=2, dropout=0.5), torch.rand(1, 1, 16, 16)
    assert not torch.equal(net(image), net(image))
    assert torch.equal(net.eval()(image), net(image))
    for network, dropout in ((UNet(**args), 1.5), (torch.nn.Conv2d(1, 2, 3, padding=1), 0.5)):
        with pytest.raises(ValueError, match="dropout: expected 0 to 1, and layers of dropout in the network, got"):
            ScalePyramid(network, spatial_dims=2, dropout=dropout)
