"""Learned canonicalisation of scale: what evaluation and training compute, and what the estimator learns."""

import copy
import io

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_scaleequiv import ScaleCanonicalizer, ScalePyramid, SEUNet, rescale
from monai_scaleequiv.maths import as_ratio, resample_axes, zoomed_view


class Constant(nn.Module):
    """An estimator that gives each image of a batch the next of these scales."""

    def __init__(self, *log2_scales: float) -> None:
        super().__init__()
        self.log2_scales = log2_scales

    def forward(self, x):
        return torch.tensor(self.log2_scales, dtype=x.dtype)


def unet(spatial_dims=3) -> nn.Module:
    return UNet(spatial_dims, 1, 2, (4, 8, 8), (2, 2), num_res_units=1)


def canonical(network=None, **args) -> ScaleCanonicalizer:
    """With an estimator whose answers are not 0."""
    net = ScaleCanonicalizer(unet(args.get("spatial_dims", 3)) if network is None else network, **args)
    nn.init.normal_(net.estimator.last.weight)
    return net


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("log2_scale", [-1.3, 0.0, 0.7])
def test_evaluation_is_rescale_network_rescale(float64, log2_scale):
    net = ScaleCanonicalizer(unet(), iterations=1).eval()
    net.estimator = Constant(log2_scale)
    x = torch.randn(1, 1, 19, 24, 17)
    numerator, denominator = as_ratio(2**log2_scale)
    # The nearest multiples of 4, the network's strides
    size = {-1.3: [48, 60, 44], 0.0: [20, 24, 20], 0.7: [12, 16, 12]}[log2_scale]
    y = net.network(resample_axes(x, size, [(numerator, denominator)] * 3))
    expected = resample_axes(y, [19, 24, 17], [(denominator, numerator)] * 3)
    torch.testing.assert_close(net(x), expected, atol=1e-12, rtol=1e-12)


def test_centred_estimates_have_no_mean(float64):
    net = canonical(iterations=1)
    images = [torch.rand(n, 1, 12 + n, 10, 14) for n in (1, 2, 1)]
    before = torch.cat([net.estimate(x) for x in images])
    assert before.mean().abs() > 0.01
    net.center(iter(images))
    torch.testing.assert_close(torch.cat([net.estimate(x) for x in images]), before - before.mean())
    with pytest.raises(ValueError, match="expected at least one, got none"):
        net.center([])
    with pytest.raises(ValueError, match=r"expected input of shape \(batch, 1, "):
        net.center([torch.rand(1, 2, 12, 10, 14)])


def test_a_network_of_single_voxels_stays_as_it_is(float64):
    """A finer copy can be undone exactly; one that is coarser loses detail, so that the test can fail."""
    net = ScaleCanonicalizer(nn.Conv2d(1, 3, 1), 2, iterations=1).eval()
    x = torch.randn(1, 1, 16, 21)
    net.estimator = Constant(-1.0)
    torch.testing.assert_close(net(x), net.network(x), atol=1e-12, rtol=1e-12)
    net.estimator = Constant(1.0)
    assert (net(x) - net.network(x)).abs().max() > 0.1


def test_rescaled_images_have_rescaled_answers_if_the_estimates_are_right(float64):
    net = ScaleCanonicalizer(unet(), iterations=1, size_divisor=4).eval()
    x = rescale(torch.randn(1, 1, 6, 7, 8), [24, 28, 32])
    finer = rescale(x, [48, 56, 64])
    net.estimator = Constant(0.0)
    expected = net(x)
    assert (rescale(net(finer), x.shape[2:]) - expected).abs().max() > 1e-2
    net.estimator = Constant(1.0)
    torch.testing.assert_close(rescale(net(finer), x.shape[2:]), expected, atol=1e-10, rtol=0)


def test_estimates_are_refined_on_the_rescaled_image_and_stay_within_the_largest(float64):
    net = canonical(iterations=3)
    x = torch.randn(2, 1, 20, 22, 18)
    estimates = torch.zeros(2)
    net.requires_grad_(False)
    for _ in range(3):
        steps = [2 * 2 ** float(e) for e in estimates]
        views = [
            resample_axes(x[i : i + 1], [max(int(n / s + 0.5), 4) for n in (20, 22, 18)], [as_ratio(s)] * 3)
            for i, s in enumerate(steps)
        ]
        estimates = (estimates + torch.cat([net.estimator(view) for view in views])).clamp(-2, 2)
    torch.testing.assert_close(net.estimate(x), estimates)
    for constant, expected in ((-7.0, -2.0), (0.5, 1.5), (1.0, 2.0)):
        net.estimator = Constant(constant)
        assert net.estimate(x[:1]).tolist() == [expected]
    assert ScaleCanonicalizer(unet()).estimate(x).tolist() == [0.0, 0.0]


def test_images_of_a_batch_do_not_depend_on_each_other(float64):
    net = canonical().eval()
    x = torch.randn(3, 1, 17, 12, 20) * torch.tensor([0.3, 1.0, 3.0]).view(3, 1, 1, 1, 1)
    assert len(set(net.estimate(x).tolist())) == 3
    torch.testing.assert_close(net(x), torch.cat([net(image[None]) for image in x]), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 4, 4), (5, 31, 9), (33, 2, 16)])
@pytest.mark.parametrize("wrapped", [unet, lambda: ScalePyramid(unet()), lambda: SEUNet(3, 1, 2, (4, 8), (2,))])
def test_any_size(wrapped, size):
    net = canonical(wrapped()).eval()
    assert net.size_divisor == ([4] * 3 if isinstance(net.network, UNet) else [1] * 3)
    y = net(torch.randn(2, 1, *size))
    assert y.shape == (2, 2, *size)
    assert y.isfinite().all()
    assert net.estimator_loss(torch.randn(2, 1, *size)).isfinite()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_gives_the_networks_logits_and_both_gradients(float64, spatial_dims):
    net = canonical(spatial_dims=spatial_dims, weight=0.5)
    x = torch.randn(2, 1, *[16] * spatial_dims)
    expected = net.network(x)
    gradients = torch.autograd.grad(expected.mean(), list(net.network.parameters()))
    torch.manual_seed(3)
    loss = net.estimator_loss(x) * 0.5
    gradients += torch.autograd.grad(loss, list(net.estimator.parameters()))
    torch.manual_seed(3)
    y = net(x)
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    y.mean().backward()  # whose gradient has the sum 1
    found = [p.grad for p in [*net.network.parameters(), *net.estimator.parameters()]]
    torch.testing.assert_close(found, list(gradients), atol=1e-12, rtol=1e-9)
    assert all(g.abs().max() > 0 for g in found)


def test_the_estimators_gradient_follows_the_scale_of_the_loss(float64):
    """As a gradient scaler and accumulated gradients change it."""
    net, x = canonical(), torch.randn(1, 1, 16, 16, 16)
    gradients = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad((net(x) ** 2).mean() * scale, net.estimator.last.weight)[0])
    torch.testing.assert_close(gradients[1], 1024 * gradients[0])


def test_estimator_learns_around_a_frozen_network_and_not_with_weight_0():
    net, x = canonical(), torch.randn(1, 1, 16, 16, 16)
    net.network.requires_grad_(False)
    net(x).mean().backward()
    assert net.estimator.last.weight.grad is not None
    net.weight = 0.0
    assert not net(x).requires_grad
    with torch.no_grad():
        assert not net(x).requires_grad


def test_logits_of_training_may_be_changed_in_place():
    net = canonical()
    net(torch.randn(1, 1, 16, 16, 16)).mul_(2).mean().backward()
    assert net.estimator.last.weight.grad is not None


def test_training_waits_for_no_device():
    """Tensors of the device meta have no numbers that a host could read."""
    net = canonical().to("meta")
    net(torch.empty(2, 1, 16, 16, 16, device="meta")).mean().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_step_in_a_cuda_graph():
    net, x = canonical().cuda(), torch.randn(2, 1, 16, 16, 16, device="cuda")
    weight = net.estimator.last.weight
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            net.zero_grad()
            net(x).mean().backward()
    torch.cuda.current_stream().wait_stream(stream)
    net.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x).mean().backward()
    gradients = []
    for _ in range(2):
        graph.replay()
        gradients.append(weight.grad.clone())
    assert (gradients[0] != gradients[1]).any()  # other views each time


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    net, x = canonical(iterations=1).double().eval(), torch.randn(2, 1, 16, 18, 13, dtype=torch.float64)
    expected = net(x)
    torch.testing.assert_close(net.cuda()(x.cuda()).cpu(), expected, atol=1e-6, rtol=1e-6)


def test_views_are_those_of_resampling_and_mirror(float64):
    x = torch.randn(2, 1, 12, 9)
    steps, middle = torch.tensor([0.8, 2.5]), torch.tensor([[6.0, 4.5]]).expand(2, 2)
    views = zoomed_view(x, [7, 8], steps, middle, torch.tensor([0.0, 0.4]))
    for i, smoothing in enumerate((0.0, 0.4)):
        expected = resample_axes(x[i : i + 1], [7, 8], [as_ratio(float(steps[i]))] * 2, smoothing)
        torch.testing.assert_close(views[i : i + 1], expected, atol=1e-12, rtol=0)
    one, none = torch.ones(2), torch.zeros(2)
    beyond = zoomed_view(x, [12, 9], one, torch.tensor([[-6.0, 4.5]]).expand(2, 2), none)
    torch.testing.assert_close(beyond, x.flip(2), atol=1e-12, rtol=0)


def test_estimator_learns_scales():
    torch.manual_seed(0)
    net = ScaleCanonicalizer(nn.Identity(), 2, channels=(8, 16), largest=3.0)
    texture = rescale(torch.randn(4, 1, 16, 16), [64, 64])
    optimizer = torch.optim.Adam(net.estimator.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        net(texture).mean().backward()
        optimizer.step()
    other = rescale(torch.randn(8, 1, 16, 16), [64, 64])
    for size, expected in ((40, -0.678), (64, 0.0), (100, 0.644)):
        error = net.estimate(rescale(other, [size, size])) - expected
        assert error.abs().mean() < 0.2, size


def test_costs_less_than_two_passes():
    net = ScaleCanonicalizer(UNet(3, 1, 3, (16, 32, 64), (2, 2), num_res_units=2)).eval()
    x = torch.zeros(1, 1, 40, 56, 40)
    flops = []
    for call in (net.network, net.estimate, net):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(x)
        flops.append(counter.get_total_flops())
    assert flops[1] < 0.4 * flops[0]
    assert flops[2] < 1.5 * flops[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_saved_and_scripted(float64):
    net = canonical().eval()
    x = torch.randn(2, 1, 18, 13, 15)
    other = canonical().eval()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), net(x), atol=0, rtol=0)
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x), atol=0, rtol=0)
    assert {name.split(".")[0] for name in net.state_dict()} == {"network", "estimator"}
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), net(x), atol=1e-9, rtol=0)


@pytest.mark.parametrize("is_training", [False, True])
def test_metadata_is_kept(is_training):
    net = canonical().train(is_training)
    x = MetaTensor(torch.randn(1, 1, 16, 16, 16), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    y = net(x)
    assert isinstance(y, MetaTensor)
    torch.testing.assert_close(y.affine, x.affine)
    if is_training:
        y.mean().backward()
        assert net.estimator.last.weight.grad is not None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"channels": (8, 0)}, "channels must be whole numbers of at least 1"),
        ({"channels": ()}, "channels must hold at least one number, got ()"),
        ({"coarseness": 0.5}, "coarseness must be a number of at least 1, got 0.5"),
        ({"largest": float("nan")}, "largest must be a number of at least 1, got nan"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"size_divisor": 0}, "size_divisor must be a whole number of at least 1"),
        ({"weight": -1.0}, "weight must be a number of at least 0, got -1.0"),
    ],
)
def test_ill_arguments(args, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ScaleCanonicalizer(unet(), **args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_tracing_and_export_of_the_evaluation_are_refused():
    net, x = canonical().eval(), torch.rand(1, 1, 8, 8, 8)
    with pytest.raises(RuntimeError, match=r"use torch\.jit\.script\."):
        torch.jit.trace(net, x)
    with pytest.raises(RuntimeError, match=r"use torch\.jit\.script\."):
        torch.export.export(net, (x,))


def test_graph_of_training_is_whole(float64):
    net, x = canonical(), torch.rand(2, 1, 16, 16, 16)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    expected = torch.autograd.grad(net(x).mean(), list(net.parameters()))
    torch.manual_seed(3)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).mean(), list(net.parameters())), expected)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_half_precision(is_autocast):
    net, x = canonical(iterations=1), torch.randn(2, 1, 16, 16, 16)
    expected = net.estimate(x)
    if not is_autocast:
        net, x = net.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        assert (net.estimate(x) - expected).abs().max() < 0.1
        net(x).float().square().mean().backward()
        assert net.eval()(x).dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.estimator.parameters())


def test_ill_input():
    net = canonical()
    for x in (torch.rand(1, 1, 8, 8), torch.rand(1, 2, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)):
        for call in (net, net.estimate, net.estimator_loss):
            with pytest.raises(ValueError, match="expected input of"):
                call(x)
