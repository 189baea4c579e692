"""RepUXNet: the shared network test, and that its large kernels learn, which the published ones do not."""

import copy
import inspect
import itertools

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch import nn
from torch.nn.utils import prune

from monai_scaleequiv import LargeKernelConv, RepUXNet
from monai_scaleequiv.maths import frequency_prior
from monai_scaleequiv.nets._repux_blocks import LargeKernelBlock, PriorKernelConv, ReceptiveBias, ScaledGradientConv
from tests.conftest import BUNDLES, rule_weight
from tests.network_tests import DeepSupervisionTests, NetworkTests

SMALL = {"depths": (1, 1), "feature_size": (4, 6), "kernel_size": 7, "hidden_size": 8}
IN_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **SMALL, "kernel_size": 15}
IN_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **SMALL}
MODES = ("fixed", "gradient", "learned")
SHORTCUT = {"layer_scale_init_value": 0.1, "depths": (2, 1)}


class TestRepUXNet(NetworkTests):
    network = RepUXNet
    cases = [  # noqa: RUF012
        (IN_2D, (1, 1, 16, 18), (1, 2, 16, 18)),
        (IN_3D, (1, 1, 9, 10, 11), (1, 2, 9, 10, 11)),
        ({**IN_3D, "in_channels": 3, "prior_mode": "gradient"}, (1, 3, 8, 8, 5), (1, 2, 8, 8, 5)),
        ({**IN_3D, "prior_mode": "learned", "kernel_size": (3, 5, 9)}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_2D, "prior_mode": "learned", "kernel_size": 1}, (2, 1, 8, 8), (2, 2, 8, 8)),
        ({**IN_3D, "frequency_prior": None, "res_block": False}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_3D, "deploy": True, "norm_name": "batch"}, (1, 1, 8, 8, 8), (1, 2, 8, 8, 8)),
        ({**IN_2D, **SHORTCUT, "drop_path_rate": 0.1}, (2, 1, 17, 15), (2, 2, 17, 15)),
        ({**IN_2D, "depths": (1,), "feature_size": (5,), "encoder_act": "relu"}, (1, 1, 7, 9), (1, 2, 7, 9)),
        ({**IN_2D, "full_size_channels": 2, "layer_scale_init_value": 1}, (1, 1, 9, 8), (1, 2, 9, 8)),
        ({**IN_2D, "encoder_norm": ("group", {"num_groups": 2})}, (1, 1, 8, 8), (1, 2, 8, 8)),
        ({**IN_2D, "encoder_norm": None, "encoder_act": None, "norm_name": None}, (1, 1, 8, 8), (1, 2, 8, 8)),
    ]
    ill_arguments = [  # noqa: RUF012
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"depths": ()}, "depths and feature_size must"),
        ({"in_channels": 0}, "in_channels must be a whole number"),
        ({"depths": (1, 0)}, "depths must be whole numbers"),
        ({"feature_size": (4, 8, 8)}, "the same length"),
        ({"feature_size": (4, 0)}, "feature_size must be whole numbers"),
        ({"kernel_size": 6}, "kernel_size must be odd"),
        ({"drop_path_rate": 1.0, "layer_scale_init_value": 0.1}, "drop_path_rate must be"),
        ({"drop_path_rate": 0.1, "layer_scale_init_value": None}, "without the shortcut of layer_scale_init_value"),
        ({"frequency_prior": 0.0}, "frequency_prior must be above 0"),
        ({"frequency_prior": float("inf")}, "frequency_prior must be above 0 and finite"),
        ({"frequency_prior": None, "prior_mode": "learned"}, "needs a frequency_prior"),
        ({"prior_mode": "bayes"}, "prior_mode must be one of"),
        ({"full_size_channels": 0}, "full_size_channels must be a whole number"),
    ]
    export_case = ({**IN_3D, "prior_mode": "learned", **SHORTCUT}, (1, 1, 12, 10, 8), (1, 1, 9, 11, 7))
    checkpoint_case = {**IN_3D, **SHORTCUT, "drop_path_rate": 0.2, "norm_name": "batch"}, (2, 1, 12, 10, 8)

    @classmethod
    def reference_logits(cls):
        """With the layer scale in the shape that it was saved in before version 0.2, (C, 1, 1, 1)."""
        args, shape, _ = cls.export_case
        net = cls.network(**args).double().eval()
        state = {}
        for name, value in net.state_dict().items():
            old = tuple(value.shape) + (1,) * 3 * name.endswith("layer_scale")
            weight = value if "num_batches" in name else rule_weight(name, old)
            state[name] = weight.abs() if "running_var" in name else weight
        net.load_state_dict(state)
        return net(torch.from_numpy(np.random.default_rng(0).standard_normal(shape))).detach().numpy()


class TestDeepSupervisionOfRepUXNet(DeepSupervisionTests):
    network = RepUXNet
    cases = [  # noqa: RUF012
        (IN_2D, (2, 1, 25, 20), [(25, 20), (13, 10)]),
        (
            {**IN_3D, "depths": (1, 1, 1), "feature_size": (4, 6, 6), "use_checkpoint": True},
            (2, 1, 6, 12, 16),
            [(6, 12, 16), (3, 6, 8), (2, 3, 4)],
        ),
    ]


def test_definition_can_be_read_back():
    for args, *_ in TestRepUXNet.cases:
        net = RepUXNet(**args)
        for deployed in (False, True):
            if deployed:
                net.switch_to_deploy()
            twin = RepUXNet(**{name: getattr(net, name) for name in inspect.signature(RepUXNet).parameters})
            assert repr(twin) == repr(net)
            assert {k: v.shape for k, v in twin.state_dict().items()} == {
                k: v.shape for k, v in net.state_dict().items()
            }


def test_none_leaves_norm_and_activation_out():
    net = RepUXNet(**{**IN_2D, "encoder_norm": None, "encoder_act": None, "norm_name": None})
    assert isinstance(net.stages[0].blocks[0].norm, nn.Identity)
    assert isinstance(net.stages[0].blocks[0].act, nn.Identity)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in net.modules())


@torch.no_grad()
def test_pruned_kernels_are_the_current_ones():
    for mode in MODES:
        net, x = RepUXNet(**{**IN_2D, "prior_mode": mode}).eval(), torch.randn(1, 1, 48, 48)
        before = net(x)
        for conv in large_kernels(net):
            prune.l1_unstructured(conv, "weight" if mode == "gradient" else "unscaled_weight", 0.0)
        torch.testing.assert_close(net(x), before)
        getattr(large_kernels(net)[0], "weight_mask" if mode == "gradient" else "unscaled_weight_mask").zero_()
        pruned = net(x)
        assert not torch.allclose(pruned, before)
        net.switch_to_deploy()
        torch.testing.assert_close(net(x), pruned)


def test_shipped_weights_give_the_logits_that_they_gave(float64):
    net = RepUXNet(3, 1, 3, depths=(1, 1, 1), feature_size=(8, 16, 32), kernel_size=21, hidden_size=64)
    file = BUNDLES / "repuxnet_hippocampus_segmentation" / "models" / "model.pt"
    net.double().eval().load_state_dict(torch.load(file, weights_only=True))
    y = net(torch.linspace(-2, 2, 20 * 16 * 24).sin().reshape(1, 1, 20, 16, 24))
    expected = [6.00124179807824, -6.129659796839595, -3.0206927954742416]
    torch.testing.assert_close(y[0, :, 10, 8, 12], torch.tensor(expected))


def large_kernels(net: nn.Module) -> list[nn.Module]:
    return [block.conv for block in net.modules() if isinstance(block, LargeKernelBlock)]


def own_parameter(conv: nn.Module) -> nn.Parameter:
    return conv.weight if hasattr(conv, "weight") else conv.unscaled_weight


def toy_task() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 1, 16, 16)
    return x, torch.stack([x[:, 0], torch.roll(x[:, 0], 3, -1)], dim=1)


def train(net: nn.Module, steps: int, optimizer: torch.optim.Optimizer, after_backward=lambda: None) -> None:
    x, target = toy_task()
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        after_backward()
        optimizer.step()


def check_kernels_learn(net: nn.Module) -> None:
    """After 20 steps each kernel is where its gradients led it, and not where the prior alone would have."""
    starts = [own_parameter(conv).detach().clone() for conv in large_kernels(net)]
    effective = [conv.effective_kernel().detach() for conv in large_kernels(net)]
    sums = [torch.zeros_like(s) for s in starts]

    def add_gradients() -> None:
        for total, conv in zip(sums, large_kernels(net), strict=True):
            total += own_parameter(conv).grad

    train(net, 20, torch.optim.SGD(net.parameters(), lr=0.05), add_gradients)
    prior = frequency_prior(15, 1.0, 2)
    for conv, start, total, before in zip(large_kernels(net), starts, sums, effective, strict=True):
        moved = own_parameter(conv).detach() - start
        assert moved.norm() > 1e-4 * start.norm()
        assert -(moved * total).sum() > 0.999 * moved.norm() * total.norm()
        collapsed = before * prior**20
        assert (conv.effective_kernel() - collapsed).norm() > 0.5 * before.norm()


@pytest.mark.parametrize("mode", MODES)
def test_kernels_learn(mode, float64):
    check_kernels_learn(RepUXNet(**{**IN_2D, "prior_mode": mode}))


def compare_training(make_optimizer) -> float:
    """Largest difference between the kernels of both forms after some steps, relative to what they moved by."""
    nets = []
    for mode in ("fixed", "gradient"):
        torch.manual_seed(0)
        nets.append(RepUXNet(**{**IN_2D, "prior_mode": mode}))
    assert [type(large_kernels(net)[0]) for net in nets] == [PriorKernelConv, ScaledGradientConv]
    starts = [conv.effective_kernel().detach().clone() for conv in large_kernels(nets[0])]
    for net in nets:
        torch.manual_seed(1)
        train(net, 5, make_optimizer(net.parameters()))
    pairs = zip(starts, *map(large_kernels, nets), strict=True)
    return max(
        ((b.effective_kernel() - a.effective_kernel()).norm() / (a.effective_kernel() - start).norm()).item()
        for start, a, b in pairs
    )


def test_scaling_gradients_is_scaling_kernels_under_sgd(float64):
    for options in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}):
        difference = compare_training(lambda parameters, o=options: torch.optim.SGD(parameters, lr=0.05, **o))
        assert difference < 1e-10, options


def test_scaling_gradients_is_another_thing_under_adam(float64):
    assert compare_training(lambda parameters: torch.optim.Adam(parameters, lr=0.01)) > 0.1


def test_gradient_is_that_of_the_kernel_times_the_squared_prior(float64):
    conv = ScaledGradientConv(2, 3, 9)
    plain = conv.folded()
    assert torch.equal(conv.effective_kernel(), conv.weight)
    for size in ((16, 14), (3, 4)):
        x = torch.randn(1, 3, *size)
        scaled = torch.autograd.grad(conv(x).square().sum(), conv.weight)[0]
        expected = torch.autograd.grad(plain(x).square().sum(), plain.weight)[0]
        torch.testing.assert_close(scaled, expected * frequency_prior(9, 1.0, 2).square())


def test_published_way_does_not_learn(float64, monkeypatch):
    """The control: a forward that puts a new parameter in the old one's place, as the published code does."""

    def forward(conv, x):
        conv.unscaled_weight = nn.Parameter(conv.unscaled_weight * conv.prior)
        return LargeKernelConv.forward(conv, x)

    monkeypatch.setattr(PriorKernelConv, "forward", forward)
    net = RepUXNet(**IN_2D)
    start = large_kernels(net)[0].unscaled_weight.detach().clone()
    with pytest.raises(AssertionError):
        check_kernels_learn(net)
    conv = large_kernels(net)[0]
    torch.testing.assert_close(conv.unscaled_weight.detach(), start * conv.prior**20)


def test_evaluation_changes_nothing():
    for mode, deploy in itertools.product(MODES, (False, True)):
        net = RepUXNet(**{**IN_2D, "prior_mode": mode, "deploy": deploy}).eval()
        state = copy.deepcopy(net.state_dict())
        x, _ = toy_task()
        first = net(x)
        for grad in (True, False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(net(x), first)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("args", [IN_2D, IN_3D], ids=["2d", "3d"])
def test_deployed_network_gives_the_same_logits(args, mode, dtype, tolerance):
    net = RepUXNet(**{**args, "prior_mode": mode}).to(dtype)
    x = torch.randn(2, 1, *[16] * args["spatial_dims"], dtype=dtype)
    for conv in large_kernels(net):
        if mode == "learned":
            nn.init.normal_(conv.receptive_bias.gain, std=0.1)
    net(x)
    net.eval()
    expected = net(x)
    net.switch_to_deploy()
    torch.testing.assert_close(net(x), expected, atol=tolerance, rtol=0)
    assert not net.training
    assert all(type(conv) is LargeKernelConv for conv in large_kernels(net))
    twin = RepUXNet(**{**args, "deploy": True}).to(dtype).eval()
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin(x), expected, atol=tolerance, rtol=0)
    net.switch_to_deploy()  # again: nothing left to do
    torch.testing.assert_close(net(x), expected, atol=tolerance, rtol=0)


def test_deploying_draws_no_random_numbers_and_leaves_frozen_kernels_frozen():
    net = RepUXNet(**IN_2D)
    own_parameter(large_kernels(net)[0]).requires_grad_(False)
    before = torch.get_rng_state()
    net.switch_to_deploy()
    assert torch.equal(torch.get_rng_state(), before)
    assert [conv.weight.requires_grad for conv in large_kernels(net)] == [False, True]


def test_a_deployed_network_trains():
    net = RepUXNet(**IN_2D)
    net.switch_to_deploy()
    train(net, 2, torch.optim.SGD(net.parameters(), lr=0.1))
    assert all(conv.weight.grad.abs().max() > 0 for conv in large_kernels(net))


def test_unscaled_weights_are_not_taken_for_kernels():
    for mode in ("fixed", "learned"):
        with pytest.raises(RuntimeError, match="unscaled_weight"):
            RepUXNet(**{**IN_2D, "deploy": True}).load_state_dict(
                RepUXNet(**{**IN_2D, "prior_mode": mode}).state_dict()
            )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_fixed_kernel_is_weight_times_prior(spatial_dims, float64):
    conv = PriorKernelConv(spatial_dims, 2, 5, alpha=3.0)
    expected = conv.unscaled_weight * frequency_prior(5, 3.0, spatial_dims)
    torch.testing.assert_close(conv.effective_kernel(), expected)
    plain = conv.folded()
    for edge in (2, 8):  # on a small image only the inner taps are multiplied
        x = torch.randn(1, 2, *[edge] * spatial_dims)
        torch.testing.assert_close(conv(x), plain(x))


@pytest.mark.parametrize("kernel_size", [1, 3, 7, 21, (3, 9)])
def test_learned_prior_starts_at_the_fixed_one_and_leaves_it(kernel_size, float64):
    conv = PriorKernelConv(2, 2, kernel_size, is_learned=True)
    assert torch.equal(conv.scaling(), frequency_prior(kernel_size, 1.0, 2))
    x, target = torch.randn(1, 2, 12, 12), torch.randn(1, 2, 12, 12)
    optimizer = torch.optim.SGD(conv.receptive_bias.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append((conv(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    if kernel_size != 1:  # a single position has no variation to learn from, but its shift
        assert all(p.grad.abs().max() > 0 for p in conv.receptive_bias.parameters())
        change = conv.scaling() - conv.prior
        assert change.std() > 0
    torch.testing.assert_close(conv.folded()(x), conv(x))


def test_learned_map_is_the_formula(float64):
    bias = ReceptiveBias(2, [9, 5])
    nn.init.normal_(bias.gain)
    nn.init.normal_(bias.shift)
    prior = frequency_prior((9, 5), 1.0, 2)

    def normalised(x, i):
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * bias.gain[i] + bias.shift[i]

    hidden = torch.conv2d(prior[None, None], bias.conv1.weight, padding=3)
    expected = normalised(torch.conv2d(normalised(hidden, 0).sigmoid(), bias.conv2.weight, padding=3), 1)
    torch.testing.assert_close(bias(prior), expected[0, 0])


def test_prior_keeps_its_precision_through_half_precision():
    conv = PriorKernelConv(2, 1, 9)
    assert "prior" not in conv.state_dict()
    exact = frequency_prior(9, 1.0, 2)
    assert torch.equal(copy.deepcopy(conv).bfloat16().float().prior, exact.float())
    assert torch.equal(conv.double().prior, exact)


def test_drop_path_leaves_out_updates_of_whole_samples():
    block = LargeKernelBlock(LargeKernelConv(2, 3, 5), "batch", "gelu", 0.25, 1.0)
    x = torch.randn(400, 3, 6, 6)
    updates = (block(x) - x).flatten(1)
    block.drop_path = 0.0
    whole = (block(x) - x).flatten(1)
    dropped = updates.abs().amax(1) == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.07)
    torch.testing.assert_close(updates[~dropped], whole[~dropped] / 0.75, atol=1e-5, rtol=1e-4)
    block.drop_path = 0.25
    block.eval()
    assert torch.equal(block(x), block(x))


def test_drop_path_grows_with_depth():
    net = RepUXNet(**{**IN_2D, "depths": (2, 1), "layer_scale_init_value": 1.0, "drop_path_rate": 0.2})
    rates = [block.drop_path for block in net.modules() if isinstance(block, LargeKernelBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_layer_scale_scales_the_update(float64):
    conv, x = LargeKernelConv(2, 3, 5), torch.randn(2, 3, 6, 6)
    plain = LargeKernelBlock(conv, "batch", "gelu", 0.0, None)
    block = LargeKernelBlock(conv, "batch", "gelu", 0.0, 0.3)
    torch.testing.assert_close(block(x), x + 0.3 * plain(x))
    block(x).sum().backward()
    assert block.layer_scale.grad.abs().min() > 0


def test_any_size_comes_back():
    for norm in ("instance", "batch"):
        net = RepUXNet(**{**IN_3D, "norm_name": norm})
        for size in ((1, 1, 1), (1, 4, 2), (3, 1, 8), (4, 4, 4), (5, 7, 13)):
            for training in (False, True):
                assert net.train(training)(torch.randn(1, 1, *size)).shape[2:] == size, (norm, size, training)


def test_padding_is_zeros_at_the_end():
    net = RepUXNet(**IN_2D).eval()
    x = torch.randn(1, 1, 13, 16)
    padded = torch.zeros(1, 1, 16, 16)
    padded[:, :, :13] = x
    torch.testing.assert_close(net(x), net(padded)[:, :, :13])


def test_first_arguments_are_those_of_monais_networks():
    ours, theirs = (list(inspect.signature(net).parameters) for net in (RepUXNet, UNet))
    assert ours[:3] == theirs[:3]


def test_leaner_decoder_is_leaner_at_full_size_alone():
    whole, lean = RepUXNet(**IN_3D), RepUXNet(**IN_3D, full_size_channels=2)
    changed = {name for name, p in lean.named_parameters() if p.shape != whole.get_parameter(name).shape}
    assert {name.split(".")[0] for name in changed} == {"first", "ups", "last", "head"}
    assert all(name.startswith("ups.1.") for name in changed if name.startswith("ups"))


def test_default_network_is_the_published_size():
    with torch.device("meta"):
        net = RepUXNet(3, 1, 14)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(65.8e6, rel=0.01)


def test_sliding_window():
    net = RepUXNet(**IN_2D).eval()
    with torch.no_grad():
        y = sliding_window_inference(torch.randn(1, 1, 30, 20), (16, 16), 2, net, overlap=0.25)
    assert y.shape == (1, 2, 30, 20)
