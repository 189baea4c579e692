"""SEUNet that trains at some of its scales at a time."""

import copy

import pytest
import torch

from monai_scaleequiv import SEUNet
from monai_scaleequiv.data import definition_of
from monai_scaleequiv.layers import ScaleDownsample, keep_scales

FOUR = {"filters": {"scales": (1.0, 0.9, 0.81, 0.729), "sigma": 1.0}, "channels": (4, 6, 8), "strides": (2, 2)}


def build(dims: int = 3, **change) -> SEUNet:
    torch.manual_seed(0)
    return SEUNet(dims, 1, 2, **{**FOUR, "num_res_units": 2, **change}).double()


def image(dims: int = 3) -> torch.Tensor:
    return torch.rand(2, 1, *(13, 10, 11)[:dims], dtype=torch.float64)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("strides", [(2, 2), (1, 2)])
def test_the_whole_is_the_mean_of_its_scales(dims, strides):
    net, x = build(dims, strides=strides).eval(), image(dims)
    with torch.no_grad():
        each = torch.stack([net.at_scales([i])(x) for i in range(4)])
        torch.testing.assert_close(each.mean(0), net(x), atol=1e-12, rtol=0)
        torch.testing.assert_close(net.at_scales([3, 1])(x), each[[1, 3]].mean(0), atol=1e-12, rtol=0)
    assert (each[0] - each[3]).abs().max() > 1e-3


def test_a_scale_is_the_network_of_that_scale_alone():
    """But for the norm of the filters, which is taken over all scales."""
    net, x = build(norm=None, num_res_units=0).eval(), image()
    alone = build(norm=None, num_res_units=0, filters={"scales": (0.81,), "sigma": 1.0}).eval()
    alone.load_state_dict(net.state_dict())
    at = net.at_scales([2])
    for mine, other in zip(at.modules(), alone.modules(), strict=True):
        if hasattr(mine, "basis"):  # from here on the same filters
            assert mine.basis.shape == other.basis.shape
            other._buffers = dict(mine._buffers)
    with torch.no_grad():
        torch.testing.assert_close(at(x), alone(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("count", "subsets"), [(1, 4), (2, 6)])
def test_training_draws_scales_and_evaluation_takes_all(count, subsets):
    net, x = build(train_scales=count), image()
    plain = build()
    assert net.state_dict().keys() == plain.state_dict().keys()
    outcomes = {round(net(x).sum().item(), 9) for _ in range(60)}
    assert len(outcomes) == subsets
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net.eval()(x), plain.eval()(x), atol=0, rtol=0)


def test_a_step_is_that_of_the_drawn_scale():
    """Answer, gradients and running statistics, which the whole keeps."""
    net, x = build(train_scales=1), image()
    at = copy.deepcopy(net)
    torch.manual_seed(5)
    y = net(x)
    torch.manual_seed(5)
    which = torch.randperm(4)[:1].tolist()
    expected = at.at_scales(which)(x)
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    y.square().mean().backward()
    expected.square().mean().backward()
    for p, q in zip(net.parameters(), at.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=0, rtol=0)
    for a, b in zip(net.buffers(), at.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert any(a.abs().max() > 0 for name, a in net.named_buffers() if name.endswith("running_mean"))


def test_seeds_decide_what_is_drawn():
    net, x = build(train_scales=1, norm=None), image()
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append([net(x).sum().item() for _ in range(6)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


@pytest.mark.parametrize("options", [{"use_checkpoint": True}, {"dsdepth": 2}, {"projection": "logsumexp"}])
def test_with_other_options(options):
    net, x = build(train_scales=1, **options), image()
    y = net(x)
    answers = y if isinstance(y, list) else [y]
    sum(answer.sum() for answer in answers).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert len(answers) == options.get("dsdepth", 1)
    assert net(x, spacing=[1.0, 1.0, 2.0])[-1].isfinite().all()


def test_it_follows_a_move_and_loaded_weights():
    net, x = build(train_scales=1).float(), image().float()
    assert net(x).dtype == torch.float32
    net.double().load_state_dict(build(act="RELU").state_dict())
    assert net(x.double()).dtype == torch.float64


def test_constants_stay_exact_whatever_is_done_to_the_network():
    net, x = build().eval(), image()
    at = copy.deepcopy(net.at_scales([2]))
    with torch.no_grad():
        expected = net.at_scales([2])(x)
        weights = copy.deepcopy(net.state_dict())
        at.bfloat16().double().load_state_dict(weights)
        torch.testing.assert_close(at(x), expected, atol=1e-12, rtol=0)


def test_hooks_run_once_a_step_and_a_patched_forward_is_kept():
    net, x, calls = build(train_scales=1), image(), []
    net.register_forward_hook(lambda *_: calls.append("hook"))
    net.bottom.register_forward_hook(lambda _, __, y: calls.append(y.shape[1]))
    inner = net.forward
    net.forward = lambda *args: inner(*args)
    net(x)
    assert calls == [1, "hook"]


def test_outputs_draw_too():
    net, x, scales = build(train_scales=1, dsdepth=2), image(), []
    net.bottom.register_forward_hook(lambda _, __, y: scales.append(y.shape[1]))
    net.outputs(x)
    net.eval().outputs(x)
    assert scales == [1, 4]


@pytest.mark.parametrize("which", [[], [-1], [4], [1, 1]])
def test_which_scales_is_checked(which):
    with pytest.raises(ValueError, match=r"which must hold different numbers from 0 to 3, got \["):
        build().at_scales(which)


def test_a_spacing_is_taken_before_the_scales():
    net, x = build(), image()
    assert net.at_spacing([1.0, 1.0, 2.0]).at_scales([1])(x).shape == (2, 2, 13, 10, 11)
    with pytest.raises(ValueError, match=r"take at_spacing\(\.\.\.\)\.at_scales"):
        net.at_scales([1])(x, spacing=[1.0, 1.0, 2.0])


def test_nothing_of_the_whole_is_touched():
    net, x = build().eval(), image()
    with torch.no_grad():
        before = net(x)
        at = net.at_scales([1])
        at(x)
        torch.testing.assert_close(net(x), before, atol=0, rtol=0)
    assert {id(p) for p in at.parameters()} == {id(p) for p in net.parameters()}


def test_a_record_does_not_ask_for_the_same_draw():
    assert definition_of(build(train_scales=1)) == definition_of(build())


def test_scales_that_interact_are_not_taken_apart():
    with pytest.raises(ValueError, match="scale_size 1, got 2"):
        build(scale_size=2).at_scales([0])


def test_an_axis_that_is_not_sampled_down_keeps_its_lack_of_a_blur():
    layer = ScaleDownsample(3, (1.0, 0.8), factor=(2, 1, 2))
    keep_scales(layer, [1])
    assert layer.scales == [0.8]
    assert [len(w) for w in layer.widths] == [1, 1, 1]
    assert layer.widths[1] == [0.0]
    assert layer(torch.rand(1, 1, 2, 8, 5, 8)).shape == (1, 1, 2, 4, 5, 4)


@pytest.mark.slow
def test_compiled():
    """With a break where a step draws."""
    net, x = build(train_scales=1).float(), image().float()
    plain = copy.deepcopy(net)
    compiled = torch.compile(net)
    answers = []
    for one in (compiled, plain):
        torch.manual_seed(3)
        answers.append([one(x).detach() for _ in range(10)])
    for y, expected in zip(*answers, strict=True):
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)
    net.eval()
    torch.testing.assert_close(torch.compile(net)(x), net(x), atol=1e-5, rtol=1e-4)
