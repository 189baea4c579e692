"""Large depthwise convolutions: against the definition, by either way, in every precision and form."""

import copy
import io
import itertools
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.utils import ensure_tuple_rep
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from monai_scaleequiv import LargeKernelConv
from monai_scaleequiv.layers import _depthwise_op as op
from monai_scaleequiv.layers import _large_kernel as layer_module
from monai_scaleequiv.maths import (
    _fft_conv,
    crop_to_reach,
    fft_depthwise_conv,
    fft_depthwise_gradients,
    fft_kernel_spectrum,
    frequency_prior,
)


def by_definition(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One shifted copy of the padded image per tap: slow, and obvious."""
    edges, size = weight.shape[2:], x.shape[2:]
    padded = F.pad(x, [k // 2 for k in reversed(edges) for _ in range(2)])
    y = torch.zeros_like(x)
    for tap in itertools.product(*map(range, edges)):
        shifted = padded[(..., *(slice(t, t + n) for t, n in zip(tap, size, strict=True)))]
        y = y + weight[(slice(None), 0, *tap)].reshape([-1] + [1] * len(size)) * shifted
    return y


@st.composite
def problems(draw):
    """Image, kernel and gradient of the output, in float64."""
    axes = draw(st.sampled_from([1, 2, 3]))
    size = [draw(st.integers(1, 12 if axes < 3 else 7)) for _ in range(axes)]
    edges = [2 * draw(st.integers(0, 8 if axes < 3 else 3)) + 1 for _ in range(axes)]
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = ([batch, channels, *size], [channels, 1, *edges], [batch, channels, *size])
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def expected_of(x, weight, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = by_definition(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(problem=problems(), elements=st.sampled_from([1, 2**21]))
def test_fft_is_the_definition(problem, elements):
    x, weight, grad = problem
    expected = expected_of(x, weight, grad)
    with mock.patch.dict(_fft_conv._CHUNK, cpu=elements):  # one channel at a time, or all at once
        assert_close((fft_depthwise_conv(x, weight), *fft_depthwise_gradients(grad, x, weight)), expected)
        assert_close(fft_depthwise_conv(x, weight, fft_kernel_spectrum(weight, x.shape[2:])), expected[0])
        assert fft_depthwise_gradients(grad, x, weight, of_input=False)[0] is None
        assert fft_depthwise_gradients(grad, x, weight, of_weight=False)[1] is None


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(problem=problems().filter(lambda p: p[0].dim() > 3), by_fft=st.sampled_from([True, False, None]))
def test_layer_is_the_definition_whichever_way_it_takes(problem, by_fft):
    x, weight, grad = problem
    expected = expected_of(x, weight, grad)
    layer = LargeKernelConv(x.dim() - 2, x.shape[1], weight.shape[2:])
    layer.weight = torch.nn.Parameter(weight)
    x.requires_grad_()

    def rule(*args, **options):
        return op_rule(*args, **options) if by_fft is None else by_fft

    op_rule = op.is_fft_faster
    with mock.patch.object(op, "is_fft_faster", rule), mock.patch.object(layer_module, "is_fft_faster", rule):
        y = layer(x)
        assert_close((y.detach(), *torch.autograd.grad(y, (x, layer.weight), grad)), expected)
        with torch.no_grad():
            assert_close(layer.eval()(x), expected[0])


def test_way_chosen_is_the_one_measured_faster():
    by_fft = [([48] * 3, 21), ([24] * 3, 21), ([20] * 3, 21), ([48] * 3, 31), ([64] * 2, 15)]
    directly = [([12] * 3, 21), ([6] * 3, 21), ([48] * 3, 7), ([64] * 2, 13), ([7] * 2, 51), ([128] * 2, (21, 1))]
    for cases, expected in ((by_fft, True), (directly, False)):
        for size, edge in cases:
            assert op.is_fft_faster(size, ensure_tuple_rep(edge, len(size))) is expected, (size, edge)
    assert op.is_fft_faster([12] * 3, [21] * 3, device_type="cuda")  # as measured on an H200
    assert not op.is_fft_faster([6] * 3, [21] * 3, device_type="cuda")
    assert op.is_fft_faster([48] * 3, [7] * 3, is_shared=True)  # a transform that is there anyway is made use of


def test_only_taps_within_reach_are_computed():
    """A kernel of 21 on 6 voxels is one of 11; what lies outside gets a zero gradient."""
    layer = LargeKernelConv(3, 2, 21)
    seen = []
    with mock.patch.object(op, "depthwise_conv", lambda *args, **_: seen.append(args[1].shape[2:]) or torch.zeros(1)):
        op.large_depthwise_conv(torch.rand(1, 2, 6, 6, 4), layer.weight)
    assert seen == [(11, 11, 7)]
    layer(torch.rand(1, 2, 6, 6, 4)).sum().backward()
    inner = crop_to_reach(layer.weight.grad, (6, 6, 4))
    assert inner.abs().min() > 0
    assert layer.weight.grad.count_nonzero() == inner.numel()


def test_circle_is_the_least_free_of_aliasing_rounded_up():
    assert fft_kernel_spectrum(torch.rand(1, 1, 21, 21, 21), (48, 24, 12)).shape == (1, 60, 36, 12 + 1)
    assert fft_kernel_spectrum(torch.rand(1, 1, 21), (6,)).shape == (1, 12 // 2 + 1)


def test_bias():
    layer = LargeKernelConv(2, 3, 15, bias=True).double()
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64)
    expected = by_definition(x, layer.weight) + layer.bias[:, None, None]
    assert_close(layer(x), expected)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full_like(layer.bias, 2 * 20 * 18))


@pytest.mark.parametrize("size", [(16, 18), (5, 6)])
def test_autocast_computes_in_single_precision(size):
    layer, x = LargeKernelConv(2, 2, 15), torch.randn(1, 2, *size)
    y = layer(x)
    grad = torch.autograd.grad(y.square().sum(), layer.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        torch.testing.assert_close(half, y, atol=0, rtol=0)
        torch.testing.assert_close(torch.autograd.grad(half.square().sum(), layer.weight)[0], grad, atol=0, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(layer.eval()(x), y)
            assert layer(x.bfloat16()).dtype == torch.bfloat16  # stored as it came


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    layer, x = LargeKernelConv(2, 2, 15).to(dtype), torch.randn(1, 2, 16, 18).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, by_definition(x.float(), layer.weight.float()).to(dtype), atol=1e-6, rtol=1e-2)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(16, 18), (5, 6)])
def test_half_precision_rounds_the_sum_with_the_bias_once(size, dtype):
    layer, x = LargeKernelConv(2, 2, 15, bias=True), torch.randn(1, 2, *size).to(dtype)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([300.0, -300.0]))  # beside which half precision knows no fractions
        expected = by_definition(x.float(), layer.weight) + layer.bias[:, None, None]
        for is_training in (True, False):
            torch.testing.assert_close(layer.train(is_training)(x), expected.to(dtype), atol=0, rtol=1e-2)
    torch.testing.assert_close(layer(x), expected.to(dtype), atol=0, rtol=1e-2)


@pytest.mark.parametrize("size", [(16, 18), (5, 6)])
@pytest.mark.parametrize("is_whole", [True, False], ids=["half", "autocast"])
def test_half_precision_is_what_is_kept_for_the_backward(size, is_whole):
    """Two bytes a voxel under autocast and in a network of half precision; the control keeps four."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    for dtype, width in ((torch.bfloat16, 2), (torch.float32, 4)):
        layer = LargeKernelConv(2, 2, 15, bias=True).to(dtype if is_whole else torch.float32)
        x = torch.randn(3, 2, *size, dtype=dtype, requires_grad=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
            y = layer(x)
        weight = layer.weight.numel() * layer.weight.element_size()
        assert sorted(kept) == sorted([x.numel() * width, weight])
        grads = torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))
        assert [g.dtype for g in (y, *grads)] == [dtype, dtype, layer.weight.dtype, layer.bias.dtype]


def test_half_precision_keeps_the_exact_gradients():
    layer, x = LargeKernelConv(2, 2, 15, bias=True), torch.randn(2, 2, 16, 18).bfloat16()
    twin, grad = copy.deepcopy(layer), torch.randn(2, 2, 16, 18).bfloat16()
    found = torch.autograd.grad(layer(x.requires_grad_()), (x, *layer.parameters()), grad)
    x = x.detach().float().requires_grad_()
    expected = torch.autograd.grad(twin(x), (x, *twin.parameters()), grad.float())
    torch.testing.assert_close(found[0], expected[0].bfloat16(), atol=1e-6, rtol=1e-2)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=1e-4)


@pytest.fixture
def spectra():
    """Counts the spectra that are computed."""
    with mock.patch.object(layer_module, "fft_kernel_spectrum", wraps=fft_kernel_spectrum) as computed:
        yield computed


def new_data(layer):
    layer.weight.data = torch.ones_like(layer.weight)


def other_mask(layer):
    prune.custom_from_mask(layer, "weight", torch.ones_like(layer.weight))
    layer(torch.rand(1, 2, 16, 18))
    layer.weight_mask.zero_()


def as_buffer(layer):
    del layer.weight
    layer.register_buffer("weight", torch.ones(2, 1, 15, 15))


# What happens to a layer between two calls, in evaluation and without gradients.
CHANGES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "through data": lambda layer: layer.weight.data.zero_(),  # leaves no trace on the version counter
    "new data": new_data,
    "new parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.rand_like(layer.weight))),
    "loading": lambda layer: layer.load_state_dict({"weight": torch.zeros_like(layer.weight)}),
    "assigning": lambda layer: layer.load_state_dict({"weight": torch.ones_like(layer.weight)}, assign=True),
    "to_empty": lambda layer: layer.to_empty(device="cpu").weight.fill_(3.0),
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruning anew": other_mask,
    "weight norm": lambda layer: weight_norm(layer).parametrizations.weight.original0.fill_(0.3),
    "not a parameter": as_buffer,
}


@torch.no_grad()
def test_spectrum_is_cached_in_evaluation_and_cannot_go_stale(spectra):
    x = torch.randn(1, 2, 16, 18)
    for name, change in CHANGES.items():
        layer = LargeKernelConv(2, 2, 15).eval()
        for _ in range(2):
            before = layer(x)
        assert spectra.call_count == 1, name
        change(layer)
        for _ in range(2):
            after = layer(x)
        assert spectra.call_count == 2, name
        assert not torch.allclose(before, after), name
        torch.testing.assert_close(after, by_definition(x, layer.weight), atol=1e-5, rtol=1e-5)
        spectra.reset_mock()
    layer(x[..., :14])  # another size
    layer.double()(x.double())
    assert spectra.call_count == 2
    assert_close(layer(x.double()), by_definition(x.double(), layer.weight))


@torch.no_grad()
def test_cache_is_not_spoiled_by_calls_of_another_kind(spectra):
    layer, x = LargeKernelConv(2, 2, 15).eval(), torch.randn(1, 2, 16, 18)
    expected = by_definition(x, layer.weight)
    with torch.inference_mode():
        first = layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(layer(mode.from_tensor(x)), FakeTensor)
        assert isinstance(copy.deepcopy(layer)(mode.from_tensor(x)), FakeTensor)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).is_meta
    for y in (first, layer(x), layer.requires_grad_(False)(x), pickle.loads(pickle.dumps(layer))(x)):
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert spectra.call_count == 2  # in inference mode, and that of the copy: what has no values is not kept
    twin = copy.deepcopy(layer)
    twin.weight.zero_()
    assert twin(x).abs().max() == 0
    assert copy.deepcopy(layer)._cache is None
    assert layer.train()._cache is None
    with torch.enable_grad():  # nothing stale stands between the weight and the loss
        layer.requires_grad_()(x).sum().backward()
        assert layer.weight.grad.abs().max() > 0
        layer.eval()(x.requires_grad_()).sum().backward()


def test_layer_may_be_shared_by_threads(monkeypatch):
    """Another thread, with an image of another size, comes in between the look at the cache and its use."""
    layer = LargeKernelConv(2, 4, 21).eval().requires_grad_(False)
    x, other = torch.rand(1, 4, 24, 24), torch.rand(1, 4, 30, 30)
    look = layer_module._are_equal

    def interrupted_look(*args):
        found = look(*args)
        monkeypatch.setattr(layer_module, "_are_equal", look)
        layer(other)
        return found

    with torch.no_grad():
        expected = layer(x)
        monkeypatch.setattr(layer_module, "_are_equal", interrupted_look)
        torch.testing.assert_close(layer(x), expected)
    assert layer_module._are_equal is look  # the other thread has been there


def test_empty_batch():
    layer = LargeKernelConv(2, 2, 21)
    x = torch.zeros(0, 2, 24, 24, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert layer.weight.grad.shape == layer.weight.shape
    assert not layer.weight.grad.any()


def test_only_wanted_gradients_are_computed():
    layer, x = LargeKernelConv(2, 2, 15), torch.randn(1, 2, 16, 18)
    with mock.patch.object(op, "fft_depthwise_gradients", wraps=op.fft_depthwise_gradients) as gradients:
        layer(x).sum().backward()
        assert gradients.call_args.args[-2:] == (False, True)
        layer.weight.requires_grad_(False)
        layer(x.requires_grad_()).sum().backward()
        assert gradients.call_args.args[-2:] == (True, False)


@pytest.mark.parametrize(("size", "edge"), [((16, 18), 15), ((6, 5), 15), ((6, 5), 3), ((4, 5, 3), 5)])
def test_operator_keeps_torchs_contract(size, edge):
    args = (
        torch.randn(2, 3, *size, requires_grad=True),
        torch.randn(3, 1, *[edge] * len(size), requires_grad=True),
    )
    torch.library.opcheck(op.large_depthwise_conv, args)
    inputs = (torch.randn_like(args[0]), *(t.detach() for t in args), True, True)
    torch.library.opcheck(op.large_depthwise_gradients, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("size", [(16, 18), (6, 5)])
def test_compiled_graph_is_whole_and_trains(size):
    layer, x = LargeKernelConv(2, 2, 15, bias=True), torch.randn(1, 2, *size)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for value in (x, x[..., :-1]):
        torch.testing.assert_close(compiled(value), layer(value))
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), layer.weight)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 18), (6, 5)])
def test_compiled_graph_without_gradients_is_one_operator(size):
    layer, x = LargeKernelConv(2, 2, 15, bias=True).eval(), torch.randn(1, 2, *size)
    calls = []

    def backend(graph, _):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, backend=backend, fullgraph=True)(x), layer(x))
    assert sum("large_depthwise_conv" in call for call in calls) == 1
    assert not any("fft" in call or "conv2d" in call for call in calls)
    with mock.patch.object(layer_module, "large_depthwise_conv") as operator:
        layer(x)
        assert not operator.called  # which takes as long as a small convolution


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exported_it_is_torchs_own_convolution():
    layer, x = LargeKernelConv(2, 2, 15, bias=True).eval(), torch.randn(1, 2, 16, 18)
    program = torch.export.export(layer, (x,))
    assert "monai_scaleequiv." not in program.graph_module.code.replace("torch.ops.", "")
    for exported in (torch.jit.script(layer), torch.jit.trace(layer, x), program.module()):
        torch.testing.assert_close(exported(x), layer(x))
    for graph in (torch.jit.script(layer), torch.jit.trace(layer, x)):
        buffer = io.BytesIO()
        torch.jit.save(graph, buffer)
        assert b"large_depthwise" not in buffer.getvalue()


@pytest.mark.parametrize("size", [(16, 18), (6, 5)])
def test_second_derivatives(size, float64):
    layer = LargeKernelConv(2, 2, 13, bias=True)
    x = torch.randn(1, 2, *size, requires_grad=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=True)), (x,))

    inputs = x, layer.weight, layer.bias
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    y, grad = run(*inputs), torch.randn(x.shape)
    by_operator = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, grad, create_graph=True), by_operator)


def test_initial_weight_is_that_of_torchs_convolutions():
    ours = LargeKernelConv(3, 8, 9, bias=True)
    theirs = torch.nn.Conv3d(8, 8, 9, groups=8)
    for name in ("weight", "bias"):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found.shape == expected.shape
        assert found.abs().max() <= 9**-1.5
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.05)


def test_ill_arguments_and_input():
    for args, message in (
        ((1, 4, 21), "spatial_dims must be 2 or 3"),
        ((3, 0, 21), "channels must be a whole number of at least 1"),
        ((3, 4, 20), "kernel_size must be odd"),
        ((3, 4, (21, 21, -1)), "kernel_size must be odd"),
    ):
        with pytest.raises(ValueError, match=message):
            LargeKernelConv(*args)
    for shape in ((1, 2, 8, 8), (1, 3, 8, 8, 8), (2, 8, 8, 8)):
        with pytest.raises(ValueError, match="expected input of shape"):
            LargeKernelConv(3, 2, 5)(torch.rand(shape))


def test_prior_is_the_formula():
    prior = frequency_prior((3, 5), alpha=2.0, spatial_dims=2)
    for i, j in itertools.product(range(3), range(5)):
        assert prior[i, j].item() == pytest.approx(2 / (((i - 1) ** 2 + (j - 2) ** 2) ** 0.5 + 2))
    for args, message in (((5, 0.0), "frequency_prior must be above 0"), ((4, 1.0), "kernel_size must be")):
        with pytest.raises(ValueError, match=message):
            frequency_prior(*args)
