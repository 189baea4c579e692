"""The forms of the steerable convolution: all compute the same, and each is chosen where it is the fastest."""

import itertools

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_scaleequiv import ScaleFilters, ScaleGroupConv, ScaleLiftingConv, SEUNet
from monai_scaleequiv.layers import _steerable_op as operator
from monai_scaleequiv.layers._conv_form import ConvForm, ConvGeometry, choose_form
from monai_scaleequiv.layers._steerable_op import steerable_conv
from monai_scaleequiv.maths import block_counts, gaussian_downsampling_matrix, polyphase_axis
from monai_scaleequiv.nets._blocks import ScaleConvUnit

BLOCKS = [((1, 1, 1), False), ((1, 2, 1), False), ((2, 2, 2), False), ((2, 1, 3), False)]
FORMS = [ConvForm(p, d) for p, d in [*BLOCKS, ((1, 1, 1), True), ((2, 2, 1), True)]]
SEPARABLE = ConvForm((1, 1, 1), is_separable=True)
KINDS = [*((ScaleGroupConv, {"scale_size": j}) for j in (1, 2, 3)), (ScaleLiftingConv, {})]


def use_form(monkeypatch, form: ConvForm, spatial_dims: int = 3) -> None:
    monkeypatch.setattr(operator, "choose_form", lambda *_: form._replace(phases=form.phases[:spatial_dims]))


def plainly(layer, x: torch.Tensor) -> torch.Tensor:
    """The layer as it is scripted and exported: torch's own grouped convolution, and its own gradients."""
    return layer._convolve(x, 1) if isinstance(layer, ScaleLiftingConv) else layer._convolve(layer._gather_scales(x), 4)


def case(spatial_dims: int, kind, args, dtype=torch.float64, channels=(3, 2), size=(7, 8, 6), **more):
    layer = kind(spatial_dims, *channels, **args, **more).to(dtype)
    nn.init.normal_(layer.bias)
    scales = [] if kind is ScaleLiftingConv else [4]
    return layer, torch.randn(2, *scales, channels[0], *size[:spatial_dims], dtype=dtype, requires_grad=True)


def compare(layer, x: torch.Tensor, atol: float, gradient_atol: float) -> None:
    y, expected = layer(x), plainly(layer, x)
    torch.testing.assert_close(y, expected, atol=atol, rtol=atol)
    grad = torch.randn_like(y, requires_grad=True)
    inputs = [x, layer.weight, layer.bias]
    directions = [torch.randn_like(t) for t in inputs]
    both = (derivatives(z, inputs, grad, directions) for z in (y, expected))
    for ours, plain in zip(*both, strict=True):
        scale = plain.abs().max().clamp(min=1)  # sums over thousands of voxels
        torch.testing.assert_close(ours / scale, plain / scale, atol=gradient_atol, rtol=0)


@pytest.mark.parametrize("kind", [ScaleGroupConv, ScaleLiftingConv])
def test_gradients_by_the_batch_and_forward_mode_in_compiled_functions(kind):
    layer, x = case(2, kind, {})
    y = layer(x)
    grads = torch.randn(3, *y.shape, dtype=y.dtype)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads])
    torch.testing.assert_close(found, expected)
    tangent = torch.randn_like(x)
    torch.compiler.reset()
    pushed = torch.compile(lambda x, t: torch.func.jvp(layer, (x,), (t,))[1], backend="eager")(x.detach(), tangent)
    torch.testing.assert_close((pushed * grads[0]).sum(), (expected[0] * tangent).sum())


def derivatives(y: torch.Tensor, inputs: list, grad: torch.Tensor, directions: list) -> list[torch.Tensor]:
    """The first, by the operator and with a graph, and those of the first: all together, and of the weights' alone."""
    by_operator = torch.autograd.grad(y, inputs, grad.detach(), retain_graph=True)
    first = torch.autograd.grad(y, inputs, grad, create_graph=True)
    where = {"inputs": [*inputs, grad], "retain_graph": True, "materialize_grads": True}
    both = torch.autograd.grad(first, grad_outputs=directions, **where)
    return [*by_operator, *first, *both, *torch.autograd.grad(first[1], grad_outputs=directions[1], **where)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("stride", "is_transposed"), [(1, False), (2, False), (2, True), (1, True)])
def test_blocks_equal_the_plain_convolution(spatial_dims, form, stride, is_transposed, monkeypatch):
    use_form(monkeypatch, form, spatial_dims)
    padding = None if stride == 1 else [0, 1, 2][:spatial_dims]
    for kind, args in KINDS:
        more = {"stride": stride, "padding": padding, "is_transposed": is_transposed}
        compare(*case(spatial_dims, kind, args, **more), atol=1e-12, gradient_atol=1e-11)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("spacing", [1.0, (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("max_order", [0, 2, 3])
def test_products_along_the_axes_equal_the_plain_convolution(spatial_dims, spacing, max_order, monkeypatch):
    use_form(monkeypatch, SEPARABLE, spatial_dims)
    spacing = spacing if isinstance(spacing, float) else spacing[:spatial_dims]
    filters = ScaleFilters(max_order=max_order, spacing=spacing)
    for kind, args in KINDS:
        compare(*case(spatial_dims, kind, args, filters=filters), atol=1e-12, gradient_atol=1e-11)


def test_products_along_the_axes_by_slabs(monkeypatch):
    use_form(monkeypatch, SEPARABLE)
    monkeypatch.setattr("monai_scaleequiv.maths._separable._SLAB", 1)
    compare(*case(3, ScaleGroupConv, {"scale_size": 2}), atol=1e-12, gradient_atol=1e-11)


@pytest.mark.parametrize("form", [FORMS[2], FORMS[4], SEPARABLE], ids=str)
def test_single_precision(form, monkeypatch):
    use_form(monkeypatch, form)
    compare(*case(3, ScaleGroupConv, {}, torch.float32, (16, 16), (12, 12, 12)), atol=1e-5, gradient_atol=1e-4)


def test_a_wrong_kernel_would_be_found(monkeypatch):
    use_form(monkeypatch, FORMS[2])
    monkeypatch.setattr(operator._BlockConv, "flipped", lambda self, kernel: kernel.flip(2))
    with pytest.raises(AssertionError):
        compare(*case(3, ScaleGroupConv, {}, channels=(2, 2)), atol=1e-12, gradient_atol=1e-11)


@pytest.mark.parametrize(
    ("channels", "edge", "scale_size", "max_order", "expected"),
    [
        ((4, 4), 47, 1, 2, "blocks"), ((8, 4), 47, 1, 2, "blocks"), ((16, 16), 3, 1, 2, "plain"),
        ((4, 4), 47, 3, 2, "dense"), ((32, 32), 12, 1, 2, "separable"), ((64, 64), 12, 1, 3, "separable"),
        ((16, 16), 24, 1, 3, "separable"), ((32, 32), 12, 3, 2, "separable"),
    ],
)  # fmt: skip
def test_which_form_is_chosen(channels, edge, scale_size, max_order, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer = ScaleGroupConv(3, *channels, ScaleFilters(max_order=max_order), scale_size)
    x = torch.empty(1, 4, channels[0], edge, edge, edge)
    geometry = ConvGeometry(layer.kernel_size, layer.stride, layer.padding, scale_size, False)
    form = choose_form(x, channels[1], layer.basis.shape, geometry, layer.lines)
    name = "dense" if form.is_dense else "separable" if form.is_separable else "blocks"
    assert (name if form.phases != (1, 1, 1) or name != "blocks" else "plain") == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    still = choose_form(x, channels[1], layer.basis.shape, geometry, layer.lines).is_separable
    assert still == (expected == "separable" and channels != (16, 16))  # whose calls are too short for two threads
    assert not choose_form(x.bfloat16(), channels[1], layer.basis.shape, geometry, layer.lines).is_separable
    assert not choose_form(x, channels[1], layer.basis.shape, geometry, None).is_separable


def test_blocks_hold_every_voxel():
    sizes = itertools.product((3, 5, 6), (1, 2, 3), (0, 1, 2), (1, 2, 4), (6, 7, 13))
    for edge, stride, padding, phases, size in sizes:
        axis, size_out = polyphase_axis(edge, stride, padding, phases), (size + 2 * padding - edge) // stride + 1
        blocks_in, blocks_out = block_counts(axis, size, size_out)
        assert blocks_in * axis.inputs >= size
        assert blocks_out * axis.outputs >= size_out
        assert blocks_out == blocks_in + 2 * axis.padding - axis.taps + 1  # of an ordinary convolution


ON_CUDA = ConvForm((1, 1, 1), is_dense=True, layout=torch.channels_last_3d)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2], SEPARABLE, ON_CUDA], ids=str)
def test_operators_are_well_formed(form, monkeypatch):
    use_form(monkeypatch, form)
    layer, x = case(3, ScaleGroupConv, {}, torch.float32)
    args = layer.kernel_size, layer.stride, layer.padding, 1, False
    tensors = [layer.weight, layer.basis, layer.lines, layer.gains]
    torch.library.opcheck(steerable_conv, (x, tensors[0], layer.bias, *tensors[1:], *args))
    grad = torch.randn_like(layer(x)).detach()
    tests = "test_schema", "test_faketensor"
    inputs = [t.detach() for t in (grad, x, *tensors)]
    torch.library.opcheck(operator.steerable_gradients, (*inputs, *args, True, True), test_utils=tests)


@pytest.mark.parametrize("frozen", ["weight", "bias", "input", "all but the bias"])
def test_frozen_parts(frozen):
    layer, x = case(3, ScaleGroupConv, {})
    expected = torch.autograd.grad(plainly(layer, x).square().sum(), [x, layer.weight, layer.bias])
    parts = {"input": x, "weight": layer.weight, "bias": layer.bias}
    for name, part in parts.items():
        part.requires_grad_(name != frozen if frozen in parts else name == "bias")
    layer(x).square().sum().backward()
    for part, gradient in zip(parts.values(), expected, strict=True):
        assert (part.grad is None) == (not part.requires_grad)
        if part.grad is not None:
            torch.testing.assert_close(part.grad, gradient)


def test_inputs_that_lie_elsewhere_in_memory(monkeypatch):
    for form in (FORMS[0], FORMS[2], SEPARABLE):
        use_form(monkeypatch, form)
        layer, x = case(3, ScaleGroupConv, {})
        other = x.detach().transpose(3, 5).contiguous().transpose(3, 5)
        torch.testing.assert_close(layer(other), plainly(layer, x))
        repeated = x.detach()[:, :1].expand(-1, 4, -1, -1, -1, -1)
        torch.testing.assert_close(layer(repeated), plainly(layer, repeated.contiguous()))


def test_another_precision_than_the_weights_is_an_error():
    for channels in ((3, 2), (32, 32)):  # in either form
        layer, x = case(3, ScaleGroupConv, {}, torch.float32, channels, (12, 12, 12))
        with pytest.raises(ValueError, match=r"weights' type torch\.float32, got torch\.float64"):
            layer(x.double())


@pytest.mark.parametrize("form", [FORMS[2], SEPARABLE], ids=str)
def test_layers_train_on_metatensors(form, monkeypatch):
    use_form(monkeypatch, form)
    layer, x = case(3, ScaleGroupConv, {})
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    y = layer(MetaTensor(x.detach()))
    assert isinstance(y, MetaTensor)
    torch.testing.assert_close(torch.autograd.grad(y.as_tensor().square().sum(), layer.weight), expected)


def test_nothing_but_input_and_weights_is_kept():
    layer, x = case(3, ScaleGroupConv, {"scale_size": 3})
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(kept) == x.numel() + layer.weight.numel()


@pytest.mark.parametrize("norm", ["BATCH", ("BATCH", {"affine": False}), "INSTANCE", None])
def test_running_statistics_are_folded_into_the_convolution(norm, monkeypatch):
    unit = ScaleConvUnit(3, 2, 4, norm=norm)
    x = torch.randn(2, 4, 2, 6, 6, 6)
    for _ in range(3):
        unit(3 * x + 1)
    unit.eval()
    expected = unit(x).detach()  # one after the other, with gradients
    calls = []
    folded = ScaleGroupConv.scaled_and_shifted
    monkeypatch.setattr(ScaleGroupConv, "scaled_and_shifted", lambda *args: calls.append(1) or folded(*args))
    with torch.no_grad():
        torch.testing.assert_close(unit(x), expected, atol=1e-5, rtol=1e-5)
        has_statistics = norm is not None and norm != "INSTANCE"
        assert len(calls) == has_statistics
        handle = unit.conv.register_forward_hook(lambda _, args, y: 2 * y)
        doubled = unit(x)
        assert len(calls) == has_statistics  # whoever watches the convolution sees what it computes
        handle.remove()
        if has_statistics:  # which go on with twice the convolution
            assert (doubled - expected).abs().max() > 0.01


class ClampedConv(ScaleLiftingConv):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(min=0)


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x, forward=layer.forward: 2 * forward(x)
    return layer


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: setattr(unit, "conv", ClampedConv(3, 2, 3)),
        lambda unit: patched(unit.conv),
        lambda unit: patched(unit.norm.layer),
        lambda unit: unit.norm.register_forward_hook(lambda _, args, y: 2 * y),
        lambda unit: nn.utils.parametrizations.weight_norm(unit.conv),
        lambda unit: [m.bfloat16() for m in (unit.conv, unit.norm)] and unit.norm.float(),
    ],
    ids=["subclass", "patched convolution", "patched norm", "hook", "parametrisation", "norm in single precision"],
)
def test_folding_changes_no_answer(change):
    unit = ScaleConvUnit(3, 2, 3, lifting=True)
    unit(3 * torch.randn(2, 2, 6, 6, 6) + 1)
    change(unit.eval())
    x = torch.randn(2, 2, 6, 6, 6, dtype=unit.conv.weight.dtype)
    expected = unit(x).detach()
    with torch.no_grad():
        tolerance = 1e-5 if x.dtype == torch.float32 else 0.1
        torch.testing.assert_close(unit(x), expected, atol=tolerance, rtol=tolerance)


def test_folding_takes_no_input_of_another_shape():
    with torch.no_grad():
        for unit, x in ((ScaleConvUnit(3, 2, 3), torch.rand(1, 2, 8, 8, 8)), (ScaleConvUnit(3, 2, 3, True), None)):
            with pytest.raises(ValueError, match="expected input of shape"):
                unit.eval()(torch.rand(1, 4, 2, 8, 8, 8) if x is None else x)


def test_the_mean_over_scales_commutes_with_the_last_up_sampling(float64):
    net = SEUNet(3, 1, 2, (2, 3), (2,)).eval()
    x = torch.randn(1, 1, 9, 8, 7)
    expected = net(x)
    for watch in (nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook):
        seen = []
        handle = watch(net.projection, lambda _, args, *y, seen=seen: seen.append(tuple(args[0].shape)))
        torch.testing.assert_close(net(x), expected, atol=1e-12, rtol=0)
        assert seen == [(1, 4, 2, 9, 8, 7)]
        handle.remove()


def test_a_projection_put_in_later_is_the_one_that_counts(float64):
    net = SEUNet(3, 1, 2, (2, 3), (2,)).eval()
    twin = SEUNet(3, 1, 2, (2, 3), (2,), projection="max").eval()
    twin.load_state_dict(net.state_dict())
    net.projection = twin.projection
    x = torch.randn(1, 1, 9, 8, 7)
    torch.testing.assert_close(net(x), twin(x), atol=0, rtol=0)


def test_no_weight_of_the_down_sampling_is_subnormal():
    matrix = gaussian_downsampling_matrix(93, 2, [1.2, 1.0, 0.8], torch.empty(0))
    assert matrix[matrix > 0].min() > 1e-21
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 47))


@pytest.mark.parametrize("size", [(2, 2, 2), (4, 3, 3), (8, 3, 3)])
@pytest.mark.parametrize(("kind", "args"), KINDS[:1] + KINDS[2:])
def test_gradients_of_images_smaller_than_the_kernel_in_bfloat16(kind, args, size):
    """Of which oneDNN's own are what the memory held before, on CPUs with avx512_bf16 and torch 2.13: up to 1e38."""
    layer, x = case(3, kind, args, torch.float32, (8, 8), size)
    expected = torch.autograd.grad(layer(x).square().mean(), layer.weight)[0]
    for _ in range(3):
        spoilt = [torch.full((1 << 12,), 1e34) for _ in range(50)]
        del spoilt
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x).float().square().mean()
        found = torch.autograd.grad(loss, layer.weight)[0]
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
