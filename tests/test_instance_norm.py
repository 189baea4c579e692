"""Instance norm by partial sums: torch's own values and gradients, under torch's own names."""

import io
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from benchmarks import norms
from monai_scaleequiv import RepUXNet
from monai_scaleequiv.layers import SplitInstanceNorm3d, _instance_norm, split_instance_norm, with_split_sums

SHAPES = [(2, 3, 8, 8, 8), (1, 5, 7, 7, 7), (2, 4, 31, 30), (1, 2, 17), (3, 1, 4, 4)]


@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_instance_norm(shape, is_affine, float64):
    x = (3 * torch.randn(shape) + 2).requires_grad_()
    factors = [torch.randn(shape[1], requires_grad=True) for _ in range(2)] if is_affine else []
    found, expected = split_instance_norm(x, *factors), F.instance_norm(x, None, None, *factors)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    grad = torch.randn(shape)
    gradients = [torch.autograd.grad(y, (x, *factors), grad) for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_from_zero_and_in_half_precision(dtype):
    x = (torch.randn(1, 2, 16, 16, 16) + 30).to(dtype).requires_grad_()
    grad = torch.randn_like(x)
    y = split_instance_norm(x)
    exact = x.detach().double().requires_grad_()
    expected = F.instance_norm(exact)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2  # a bfloat16 mean of 30, on a CPU alone, is off by up to 0.06
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=0)
    (found,), (wanted,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, exact, grad.double())
    assert (y.dtype, found.dtype) == (dtype, dtype)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=0)


def test_nothing_but_the_image_is_kept_in_its_own_precision():
    kept = []
    x = torch.randn(1, 2, 16, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        split_instance_norm(x)
    assert [t.dtype for t in kept if t.numel() >= x.numel()] == [x.dtype]


@pytest.mark.parametrize("frozen", [None, "x", "weight", "bias"])
def test_second_derivatives(frozen):
    """Those of torch's own, and hooks run once."""
    shapes = {"x": (2, 3, 4, 4), "weight": (3,), "bias": (3,)}
    inputs = {k: torch.randn(shape, dtype=torch.float64, requires_grad=k != frozen) for k, shape in shapes.items()}
    wanted = [t for t in inputs.values() if t.requires_grad]
    for t in wanted:
        t.register_hook(lambda gradient: gradient if gradient is None else 2 * gradient)
    grad = torch.randn(shapes["x"], dtype=torch.float64, requires_grad=True)
    directions = [torch.randn_like(t) for t in wanted]
    found = []
    for y in (split_instance_norm(**inputs), F.instance_norm(**{"input": inputs.pop("x"), **inputs})):
        first = torch.autograd.grad(y, wanted, grad, create_graph=True)
        second = torch.autograd.grad(first, [*wanted, grad], directions, materialize_grads=True)
        found.append([*first, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_only_large_volumes_on_cuda_are_split():
    norm = SplitInstanceNorm3d(4)
    x = torch.empty(1, 4, 64, 64, 64, device="meta")
    assert not norm._is_split(x)

    class OnCuda:
        is_cuda = True

        def __init__(self, *shape):
            self.shape = torch.Size(shape)

    assert norm._is_split(OnCuda(1, 4, 64, 64, 64))
    assert not norm._is_split(OnCuda(1, 4, 32, 64, 63))
    assert not norm._is_split(OnCuda(1, 4, 1, 1, 131_101))  # a prime number of voxels
    assert not norm._is_split(OnCuda(4, 256, 64, 64, 64))  # blocks enough
    assert not SplitInstanceNorm3d(4, track_running_stats=True)._is_eager(x)


def test_result_may_be_overwritten_without_copies():
    """Torch's own is a view, so that the gradient of an activation in place passes through copies of the whole."""
    x = torch.rand(1, 2, 6, 6, 6, requires_grad=True)
    gradients = []
    for norm, name in ((SplitInstanceNorm3d(2), "LeakyReluBackward"), (nn.InstanceNorm3d(2), "AsStridedBackward")):
        y = F.leaky_relu(norm(x), 0.1, inplace=True)
        assert name in type(y.grad_fn).__name__
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_it_stands_for_torchs_module():
    for name in ("instance", ("INSTANCE", {"affine": True}), ("instance", {"track_running_stats": True})):
        ours, theirs = (get_norm_layer(n, 3, 4) for n in (with_split_sums(name), name))
        assert isinstance(ours, type(theirs))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        x = torch.randn(2, 4, 6, 6, 6)
        scripted = io.BytesIO()
        torch.jit.save(torch.jit.script(ours), scripted)
        scripted.seek(0)
        expected = theirs(x)
        for norm in (ours, torch.jit.load(scripted)):
            torch.testing.assert_close(norm(x), expected, atol=0, rtol=0)
        torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    for other in ("batch", ("group", {"num_groups": 2}), None, ""):
        assert with_split_sums(other) is other


def test_a_network_by_partial_sums():
    net = RepUXNet(3, 1, 2, (1, 1), (4, 4), 7, 4)
    x = torch.rand(1, 1, 16, 16, 16)
    norms = [m for m in net.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert norms
    outputs, gradients = [], []
    for is_split in (False, True):
        with mock.patch.object(SplitInstanceNorm3d, "_is_split", lambda *_, is_split=is_split: is_split):
            outputs.append(net(x))
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(net.parameters())))
            y = net(MetaTensor(x, affine=2 * torch.eye(4)))
            assert isinstance(y, MetaTensor)
            torch.testing.assert_close(y.as_tensor(), outputs[-1])
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    scale = max(g.abs().max() for g in gradients[0])
    torch.testing.assert_close(*gradients, atol=1e-4 * scale.item(), rtol=1e-3)


def test_compiled_graph_is_whole():
    norm, x = SplitInstanceNorm3d(2), torch.rand(1, 2, 6, 6, 6)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(norm, backend="eager", fullgraph=True)(x), norm(x))


def test_candidates_that_are_measured_agree():
    x = torch.randn(1, 4, 8, 8, 8, requires_grad=True)
    grad = torch.randn_like(x)
    expected = F.instance_norm(x)
    found = norms.candidates()
    assert "split" in found
    for name, norm in found.items():
        y = norm(x)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4, msg=name)
        gradients = [torch.autograd.grad(v, x, grad, retain_graph=True) for v in (y, expected)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4, msg=name)
    assert _instance_norm._parts(96**3) == 64
