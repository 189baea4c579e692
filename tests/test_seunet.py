"""SEUNet: the shared network test, what is particular to it, and its place in a MONAI pipeline."""

import copy
import dataclasses
import inspect
import io
from functools import partial
from types import MethodType

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch.nn.utils import parametrize, prune

from monai_scaleequiv import PerScale, ScaleFilters, ScaleProjection, SEUNet, rescale
from monai_scaleequiv.layers import SpacedResample, SteerableConv
from monai_scaleequiv.metrics import relative_error
from monai_scaleequiv.nets._checkpoint import set_checkpointing
from tests.network_tests import DeepSupervisionTests, NetworkTests, kept

FILTERS = {"scales": (1.0, 0.8), "sigma": 1.0}
SMALL = {"in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,), "filters": FILTERS}
IN_2D, IN_3D = {"spatial_dims": 2, **SMALL}, {"spatial_dims": 3, **SMALL}
DEEP = {"channels": (4, 4, 8, 8), "strides": (1, 2, 2)}


def with_filters(**change) -> dict:
    return {**IN_3D, "filters": {**FILTERS, **change}}


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
        ({**with_filters(max_order=3), "norm": "instance", "bias": False}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        (with_filters(kernel_size=(5, 5, 3), sigma=0.8), (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**with_filters(scales=(1.0,)), "act": ("elu", {"alpha": 0.5})}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**with_filters(spacing=(0.8, 0.8, 3.0)), **DEEP}, (1, 1, 16, 9, 3), (1, 2, 16, 9, 3)),
        ({**IN_2D, "filters": {"kernel_size": None, "sigma": 0.8}}, (1, 1, 16, 18), (1, 2, 16, 18)),
        ({**IN_2D, "act": None, "norm": None}, (1, 1, 8, 8), (1, 2, 8, 8)),
        ({**IN_2D, "projection": "attentive"}, (1, 1, 8, 8), (1, 2, 8, 8)),
        ({**IN_2D, "projection": ScaleProjection("logsumexp")}, (1, 1, 8, 8), (1, 2, 8, 8)),
        ({**IN_3D, "train_scales": 1}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
    ]
    ill_arguments = [  # noqa: RUF012
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"channels": (4,)}, "no less than 2"),
        ({"strides": ()}, "should equal"),
        ({"strides": (0, 1, 1)}, "strides must be whole numbers of at least 1"),
        ({"filters": {"kernel_size": 4}}, "kernel_size must be odd"),
        ({"filters": {"grid": "own"}}, "filters must be a ScaleFilters"),
        ({"num_res_units": -1}, "num_res_units must be"),
        ({"filters": {"scales": ()}}, "scales must hold"),
        ({"scale_size": 3}, "scale_size must be"),
        ({"train_scales": 0}, "train_scales must be a whole number of at least 1, got 0"),
        ({"train_scales": 1.5}, "train_scales must be a whole number of at least 1, got 1.5"),
        ({"train_scales": 3}, "train_scales must be at most the 2 scales there are, got 3"),
        ({"train_scales": 1, "scale_size": 2}, "scales that do not interact, scale_size 1, got 2"),
        ({"train_scales": 1, "projection": "attentive"}, "expected a projection without weights, got attentive"),
        ({"projection": "sum"}, "mode must be one of"),
        ({"adn_ordering": "NNA"}, "adn_ordering must"),
        ({"filters": {"spacing": (1.0, -1.0, 1.0)}}, "spacing must be"),
        ({"filters": {"spacing": (1.0, 1.0)}}, "spacing must be"),
        ({"out_channels": 0}, "out_channels must be a whole number"),
    ]
    export_case = ({**IN_3D, **DEEP, "num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    dynamic_case = ({**IN_3D, "strides": ((1, 2, 2),), "num_res_units": 1}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    checkpoint_case = {**IN_3D, **DEEP, "strides": (2, 2, 1), "num_res_units": 2, "dropout": 0.2}, (2, 1, 13, 12, 11)
    equivariance = (
        with_filters(kernel_size=7, sigma=1.25, scales=(1.0, 0.9, 0.81)),
        (54, 54, 54),
        (60, 60, 60),
        3e-3,
    )


class TestDeepSupervisionOfSEUNet(DeepSupervisionTests):
    network = SEUNet
    cases = [  # noqa: RUF012
        ({**IN_2D, **DEEP, "strides": 3 * (2,), "projection": "attentive"}, (2, 1, 25, 20), [(25, 20), (7, 5), (4, 3)]),
        (
            {**IN_3D, "channels": (4, 4, 8), "strides": (1, (1, 2, 2)), "num_res_units": 1, "use_checkpoint": True},
            (2, 1, 6, 12, 16),
            [(6, 12, 16), (6, 6, 8)],
        ),
    ]


def test_deep_supervision_at_another_spacing():
    net = SEUNet(**{**IN_3D, **DEEP}, dsdepth=3)
    sizes = [list(y.shape[2:]) for y in net(torch.rand(1, 1, 16, 16, 4), spacing=[1.0, 1.0, 4.0])]
    assert sizes == [[16, 16, 4], [8, 8, 4], [4, 4, 4]]


@pytest.mark.slow
def test_compile_in_2d_trains_with_one_compilation_per_size():
    net = SEUNet(**IN_2D)
    compiled = torch.compile(net, dynamic=False)
    for size in [(16, 18), (13, 11)]:
        compiled(torch.rand(2, 1, *size)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_checkpointing_follows_to_another_spacing():
    net = SEUNet(**IN_3D, use_checkpoint=True)
    plain = copy.deepcopy(net)
    set_checkpointing(plain, False)
    x = torch.rand(2, 1, 8, 8, 4)
    for network in (plain, net):
        network(x, spacing=[1.0, 1.0, 2.0]).square().mean().backward()
    for p, q in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=0, rtol=0)
    assert kept(net.at_spacing([1.0, 1.0, 2.0]), x) < 0.7 * kept(plain.at_spacing([1.0, 1.0, 2.0]), x)


def test_arguments_are_those_of_monais_unet():
    ours, theirs = (inspect.signature(net).parameters for net in (SEUNet, UNet))
    shared = [name for name in theirs if name not in ("kernel_size", "up_kernel_size")]  # those are the filters'
    assert list(ours)[: len(shared)] == shared
    differ = {n for n in shared if str(ours[n].default).upper() != str(theirs[n].default).upper()}
    assert differ == {"act", "norm"}


def test_arguments_can_be_read_back():
    net = SEUNet(**{**IN_3D, **DEEP, "norm": ("group", {"num_groups": 2}), "projection": "max", "scale_size": 2})
    arguments = {name: getattr(net, name) for name in inspect.signature(SEUNet).parameters}
    again = SEUNet(**arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.filters == net.filters == ScaleFilters(**FILTERS)


@pytest.mark.parametrize("norm", ["BATCH", "INSTANCE", None])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 1), (3, 1, 8), (4, 4, 4), (5, 7, 13)])
def test_any_size_comes_back(size, training, norm):
    net = SEUNet(**{**IN_3D, **DEEP, "norm": norm}).train(training)
    y = net(torch.randn(1, 1, *size))
    assert y.shape[2:] == size
    assert y.isfinite().all()


def test_none_means_none():
    modules = [type(m).__name__ for m in SEUNet(**{**IN_3D, "act": None, "norm": None}).modules()]
    assert not {"ScaleNorm", "PerScale"} & set(modules)


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


def test_coarse_axes_are_down_sampled_less():
    net = SEUNet(**{**IN_3D, **DEEP})  # strides 1, 2, 2
    assert net.total_stride == [4, 4, 4]
    assert net.at_spacing((1.0, 2.0, 4.0)).total_stride == [4, 2, 1]
    assert net.at_spacing((0.5, 1.5, 3.0)).total_stride == [8, 3, 1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (0.75, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_the_same_weights_see_the_same_at_another_spacing(spacing):
    net = SEUNet(**with_filters(kernel_size=7, sigma=1.25))
    x = rescale(torch.randn(1, 1, 9, 9, 9), (48, 48, 48))
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.momentum = 1.0
    net(x)
    size = [round(48 / r) for r in spacing]
    inner = (..., *(slice(n // 4, n - n // 4) for n in size))
    with torch.no_grad():
        found, image = rescale(net.eval()(x), size)[inner], rescale(x, size)
        assert relative_error(net(image, spacing=list(spacing))[inner], found) < 4e-3
        assert relative_error(net(image)[inner], found) > 0.02  # blind to spacing


SPACING = (1.0, 1.0, 2.0)


def rebuilt(net: SEUNet) -> SEUNet:
    """What a network built for the spacing from the start, with the same weights, is: the slow way."""
    arguments = {name: getattr(net, name) for name in inspect.signature(SEUNet).parameters}
    twin = SEUNet(**{**arguments, "filters": dataclasses.replace(net.filters, spacing=SPACING)})
    twin.load_state_dict(net.state_dict())
    return twin.to(next(net.parameters()).dtype).train(net.training)


def test_at_spacing_is_the_network_built_for_that_spacing():
    net, x = trained(**DEEP, num_res_units=2, scale_size=2), torch.randn(1, 1, 8, 9, 4)
    with torch.no_grad():
        expected = rebuilt(net)(x)
        torch.testing.assert_close(net.at_spacing(SPACING)(x), expected, atol=0, rtol=0)
        torch.testing.assert_close(net(x, spacing=list(SPACING)), expected, atol=0, rtol=0)
        torch.testing.assert_close(net.at_spacing((2.0, 2.0, 2.0)).at_spacing(SPACING)(x), expected, atol=0, rtol=0)
        assert (net(x) - expected).abs().max() > 0.01
    assert net.filters.spacing == 1.0


def test_at_spacing_shares_every_weight_and_leaves_no_trace():
    net = trained()
    state, keys, filters = torch.random.get_rng_state(), list(net.state_dict()), net.downs[0][2].conv.basis
    view = net.at_spacing(torch.tensor([1.0, 0.9999999, 3.0]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert same_tensors(net, view)
    assert list(net.state_dict()) == keys
    assert net.downs[0][2].conv.basis is filters
    assert view.filters.spacing == (1.0, 1.0, 3.0)
    assert net.at_spacing(1.0000001) is net
    assert not set(view.modules()) & set(net.modules())
    with pytest.raises(ValueError, match="spacing must be"):
        net.at_spacing((1.0, 2.0))
    with pytest.raises(ValueError, match="spacing must be"):
        net(torch.zeros(1, 1, 8, 8, 8), spacing=[1.0, 0.0, 1.0])


def test_training_at_one_spacing_trains_all():
    net = trained().train()
    x, before = torch.randn(2, 1, 8, 8, 8), copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x, spacing=list(SPACING)).square().mean().backward()
    optimizer.step()
    unchanged = [k for k, v in net.state_dict().items() if torch.equal(v, before[k])]
    assert unchanged in ([], [k for k in unchanged if k.endswith("conv.bias")])  # batch norm takes a bias away
    net.eval().downs.train()  # part of the network only
    assert [m.training for m in net.at_spacing(SPACING).modules()] == [m.training for m in net.modules()]


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def exchange_activations(net: SEUNet) -> None:
    for module in net.modules():
        if isinstance(module, PerScale) and isinstance(module.layer, torch.nn.SiLU):
            module.layer = torch.nn.ReLU()


def convs(net: SEUNet) -> list[torch.nn.Module]:
    return [m for m in net.modules() if isinstance(m, SteerableConv)]


class Sharded:
    """As torch's FSDP, whose classes make the network anew when they are called."""

    def __new__(cls, *args, **kwargs):
        raise TypeError("missing 5 required positional arguments")


def exchange_class(net: SEUNet) -> None:
    net.__class__ = type("ShardedSEUNet", (Sharded, SEUNet), {})


def double_by_method(module: torch.nn.Module) -> None:
    """As accelerate does for mixed precision."""
    before = module.forward.__func__
    module.forward = MethodType(lambda self, *args, **kwargs: 2 * before(self, *args, **kwargs), module)


def double_by_closure(module: torch.nn.Module) -> None:
    """As it is often written: bound to the module in name alone."""
    before = module.forward
    module.forward = MethodType(lambda self, *args, **kwargs: 2 * before(*args, **kwargs), module)


def double_by_kept_partial(module: torch.nn.Module) -> None:
    module.forward = partial(lambda module, before, *args: 2 * before(*args), module, module.forward)


class Kept:
    pass


def double_by_object(module: torch.nn.Module) -> None:
    """As diffusers does for its hooks."""
    kept = Kept()
    kept.forward = module.forward
    module.forward = partial(lambda module, *args: 2 * kept.forward(*args), module)


def double_by_partial(module: torch.nn.Module) -> None:
    """As accelerate does for its hooks."""
    module.before = module.forward
    module.forward = partial(lambda self, *args, **kwargs: 2 * self.before(*args, **kwargs), module)


def double_bottom(net: SEUNet) -> None:
    net.bottom.register_forward_hook(lambda _, args, y: 2 * y)


def double_resampled(net: SEUNet) -> None:
    resampling(net).register_forward_hook(lambda _, args, y: 2 * y)


def double_answer(net: SEUNet) -> None:
    net.register_forward_hook(lambda _, args, y: 2 * y)


def resampling(net: SEUNet) -> torch.nn.Module:
    return next(m for m in net.modules() if isinstance(m, SpacedResample))


# What users do to networks, and what it amounts to on one that is built for the spacing.
CHANGES = {
    "activation exchanged": (exchange_activations, exchange_activations),
    "pruned": (
        lambda net: [prune.l1_unstructured(m, "weight", 0.5) for m in convs(net)],
        lambda net: [prune.remove(prune.l1_unstructured(m, "weight", 0.5), "weight") for m in convs(net)],
    ),
    "parametrized": (
        lambda net: [parametrize.register_parametrization(m, "weight", Doubled()) for m in convs(net)],
        lambda net: [m.weight.mul_(2) for m in convs(net)],
    ),
    "hook": (double_bottom, double_bottom),
    "hook of the whole": (double_answer, double_answer),
    "forward replaced": (double_by_method, double_answer),
    "forward replaced by a partial": (double_by_partial, double_answer),
    "a layer's forward replaced": (lambda net: double_by_method(resampling(net)), double_resampled),
    "a layer's forward replaced by a partial": (lambda net: double_by_partial(resampling(net)), double_resampled),
    "weights through data": (lambda net: [p.data.mul_(0.9) for p in net.parameters()],) * 2,
    "class exchanged": (exchange_class, lambda net: None),
    "compiled": (lambda net: net.compile(backend="eager"), lambda net: None),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_at_spacing_follows_what_users_do_to_networks(name):
    net, x = trained(), torch.randn(1, 1, 8, 8, 4)
    twin, (change, same) = rebuilt(net), CHANGES[name]
    with torch.no_grad():
        before = net(x, spacing=list(SPACING))
        change(net)
        same(twin)
        found = net(x, spacing=list(SPACING))
        answers = [found, net.at_spacing(SPACING)(x), net(MetaTensor(x), spacing=list(SPACING)).as_tensor()]
        for y in answers:
            torch.testing.assert_close(y, twin(x), atol=1e-5, rtol=1e-5)
        assert name in ("compiled", "class exchanged") or (found - before).abs().max() > 1e-3
    net.at_spacing(SPACING)(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_forward_mode_follows_a_norm_that_is_folded_into_its_convolution(float64):
    net, x, tangent = trained(norm="batch"), torch.randn(1, 1, 8, 8, 4), torch.randn(1, 1, 8, 8, 4)
    expected = torch.func.jvp(net, (x,), (tangent,))[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.func.jvp(net, (x,), (tangent,))[1], expected)
    assert expected.any()


def replace_by_lambda(module: torch.nn.Module) -> None:
    before = module.forward
    module.forward = lambda *args: 2 * before(*args)


REPLACED = (replace_by_lambda, double_by_closure, double_by_kept_partial, double_by_object)


@pytest.mark.parametrize("replace", REPLACED)
def test_a_forward_that_no_copy_can_follow_never_answers_for_another_spacing(replace):
    net, other, x = trained(), trained(), torch.randn(1, 1, 8, 8, 4)
    other.load_state_dict(net.state_dict())
    expected, doubled = net(x, spacing=list(SPACING)), 2 * net(x)
    replace(net)
    torch.testing.assert_close(net(x), doubled)
    torch.testing.assert_close(net(x, list(SPACING)), 2 * expected)
    torch.testing.assert_close(net.at_spacing(SPACING)(x), expected)
    replace(next(m for m in other.modules() if isinstance(m, torch.nn.SiLU)))  # does the same wherever it stands
    other(x, spacing=list(SPACING))
    net, layer = other, resampling(other)
    replace(layer)
    with pytest.raises(ValueError, match=r"forward of a \w+: expected the class's own or .* use a forward hook"):
        net(x, spacing=list(SPACING))


def test_at_spacing_follows_loaded_weights_copies_and_dtypes():
    net, other, x = trained(), trained(), torch.randn(1, 1, 8, 8, 4)
    with torch.no_grad():
        expected = other.at_spacing(SPACING)(x)
        assert (net.at_spacing(SPACING)(x) - expected).abs().max() > 0.01
        net.load_state_dict(copy.deepcopy(other.state_dict()))
        torch.testing.assert_close(net.at_spacing(SPACING)(x), expected)
        net.load_state_dict(trained().state_dict(), assign=True)
        assert same_tensors(net, net.at_spacing(SPACING))
        buffer = io.BytesIO()
        torch.save(other.at_spacing(SPACING), buffer)
        buffer.seek(0)
        for view in (copy.deepcopy(other.at_spacing(SPACING)), torch.load(buffer, weights_only=False)):
            torch.testing.assert_close(view(x), expected)
            assert not same_tensors(view, other)
        double = other.double()(x.double(), spacing=list(SPACING))
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_networks_at_a_spacing_can_be_scripted_and_leave_the_original_scriptable():
    net, x = trained(), torch.randn(1, 1, 8, 8, 4)
    view = net.at_spacing(SPACING)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(view)(x), view(x))
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    with pytest.raises(torch.jit.Error, match=r"script network\.at_spacing"):
        torch.jit.script(net)(x, list(SPACING))


def test_networks_at_a_spacing_can_be_compiled_and_exported():
    net, x = trained(), torch.randn(1, 1, 8, 8, 4)
    view = net.at_spacing(SPACING)
    torch.compiler.reset()
    for whole in (torch.compile(view, backend="eager", fullgraph=True), torch.export.export(view, (x,)).module()):
        torch.testing.assert_close(whole(x), view(x))
    torch.testing.assert_close(torch.compile(net, backend="eager")(x, spacing=list(SPACING)), view(x))


@pytest.mark.parametrize("network", [SEUNet, UNet])
def test_drop_in_for_unet_under_sliding_windows(network):
    net = network(spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)
    x = torch.randn(2, 1, 16, 24, 16)
    optimizer, loss, losses = torch.optim.Adam(net.parameters(), 0.02), DiceCELoss(to_onehot_y=True, softmax=True), []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss(net(x), (x > 0).float() + (x > 1)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        logits = sliding_window_inference(torch.randn(1, 1, 24, 32, 24), (16, 16, 16), 2, net.eval(), overlap=0.25)
    assert logits.shape == (1, 3, 24, 32, 24)


def test_arguments_after_the_strides_go_by_name():
    """UNet's sixth is ``kernel_size``, which would be taken for ``num_res_units``."""
    with pytest.raises(TypeError, match="positional"):
        SEUNet(3, 1, 2, (4, 8), (2,), 3)
