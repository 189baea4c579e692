"""The test that every network of the package passes; a network's own file subclasses ``NetworkTests``."""

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from monai_scaleequiv import assert_scale_equivariant, rescale
from tests.conftest import rule_weight

STORED = Path(__file__).parent / "data"


class NetworkTests:
    """Subclasses fill in the attributes; ``cases`` are (arguments, input shape, expected shape)."""

    network: ClassVar[type[nn.Module]]
    cases: ClassVar[list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]]]
    ill_arguments: ClassVar[list[tuple[dict[str, Any], str]]]
    export_case: ClassVar[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]]  # arguments, shape, another shape
    dynamic_case: ClassVar[tuple | None] = None  # a smaller one for the export, which takes long
    compile_args: ClassVar[dict[str, Any]] = {}
    stored: ClassVar[str] = ""  # file of stored logits, where its name is not that of the network
    name_prefix: ClassVar[str] = ""  # of the parameters when these logits were stored
    checkpoint_case: ClassVar[tuple[dict[str, Any], tuple[int, ...]] | None] = None  # arguments, shape
    # How equivariant the network is on a smooth image: arguments, sizes of the image and the rescaled one, tolerance.
    equivariance: ClassVar[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], float] | None] = None

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=[f"case{i}" for i in range(len(self.cases))])
        if "ill" in metafunc.fixturenames:
            metafunc.parametrize("ill", self.ill_arguments, ids=[message for _, message in self.ill_arguments])

    def exported(self, case: tuple | None = None) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """Network in evaluation mode with statistics that are not the initial ones, and two inputs of unequal size."""
        args, shape, other = case or self.export_case
        net = self.network(**args)
        net(torch.randn(2, *shape[1:]))
        return net.eval(), torch.randn(shape), torch.randn(other)

    def test_shape_and_gradients_of_every_parameter(self, case):
        args, shape, expected = case
        net = self.network(**args)
        net(torch.randn(2, *shape[1:])).square().mean().backward()
        missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
        with torch.no_grad():
            assert net.eval()(torch.randn(shape)).shape == expected

    def test_ill_arguments(self, ill):
        change, message = ill
        with pytest.raises(ValueError, match=message):
            self.network(**{**self.export_case[0], **change})

    def test_ill_input(self):
        net, x, _ = self.exported()
        for ill in (x[0], x[..., :0], torch.cat([x, x], dim=1)):
            with pytest.raises(ValueError, match="expected input of shape"):
                net(ill)

    def test_weights_survive_saving(self, tmp_path):
        net, x, _ = self.exported()
        torch.save(net.state_dict(), tmp_path / "model.pt")
        twin = self.network(**self.export_case[0])
        twin.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        torch.testing.assert_close(twin.eval()(x), net(x), atol=0, rtol=0)

    def test_same_seed_same_network(self):
        outputs = []
        for _ in range(2):
            torch.manual_seed(3)
            net, x, _ = self.exported()
            outputs.append(net(x))
        torch.testing.assert_close(*outputs, atol=0, rtol=0)

    def test_evaluation_does_not_depend_on_the_batch(self):
        net, x, _ = self.exported()
        with torch.no_grad():
            torch.testing.assert_close(net(torch.cat([x, 5 * x + 1]))[:1], net(x), atol=1e-5, rtol=1e-5)

    def test_metatensors_keep_their_geometry(self):
        net, x, _ = self.exported()
        affine = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
        y = net(MetaTensor(x, affine=affine))
        assert isinstance(y, MetaTensor)
        torch.testing.assert_close(y.affine, affine)
        torch.testing.assert_close(y.as_tensor(), net(x))

    @pytest.mark.parametrize("assign", [False, True])
    def test_meta_device(self, assign):
        net, x, _ = self.exported()
        with torch.device("meta"):
            twin = self.network(**self.export_case[0])
        if not assign:
            twin.to_empty(device="cpu")
        twin.load_state_dict(net.state_dict(), assign=assign)
        torch.testing.assert_close(twin.eval()(x), net(x), atol=0, rtol=0)

    def test_channels_last_memory(self):
        net, x, _ = self.exported()
        layout = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        expected = net(x)
        y = net.to(memory_format=layout)(x.to(memory_format=layout))
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.filterwarnings("ignore")
    def test_derivatives_of_all_kinds_agree(self, float64):
        net, x, _ = self.exported()
        tangent, x = torch.randn_like(x), x.requires_grad_()
        y = net(x)
        weight = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, weight, create_graph=True)
        for is_grad_enabled in (True, False):
            with torch.set_grad_enabled(is_grad_enabled):
                pushed = torch.func.jvp(net, (x.detach(),), (tangent,))[1]
            torch.testing.assert_close((pushed * weight).sum(), (gradient * tangent).sum(), atol=1e-9, rtol=1e-9)
        (second,) = torch.autograd.grad(gradient, x, tangent)
        of_gradient = torch.func.grad(lambda z: (net(z) * weight).sum())
        expected = torch.func.jvp(of_gradient, (x.detach(),), (tangent,))[1]
        torch.testing.assert_close(second, expected, atol=1e-9, rtol=1e-9)
        assert second.any()

    def test_gradients_of_each_sample(self, float64):
        net, x, _ = self.exported()
        batch, parameters = torch.cat([x, 2 * x]), {name: p.detach() for name, p in net.named_parameters()}

        def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(net, parameters, (x[None],)).square().mean()

        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch)
        for i, sample in enumerate(batch):
            expected = torch.autograd.grad(net(sample[None]).square().mean(), list(net.parameters()))
            for ours, wanted in zip(found.values(), expected, strict=True):
                torch.testing.assert_close(ours[i], wanted, atol=1e-10, rtol=1e-10)

    def test_tracing(self):
        net, x, _ = self.exported()
        with torch.no_grad():
            net(x)
            torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_torchscript(self):
        net, x, other = self.exported()
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(net), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        with torch.no_grad():
            for value in (x, other, x):
                torch.testing.assert_close(loaded(value), net(value))

    def test_export_and_onnx_with_dynamic_axes(self, tmp_path):
        net, x, other = self.exported(self.dynamic_case or self.export_case)
        dynamic = (dict.fromkeys(range(2, x.dim()), torch.export.Dim.AUTO),)
        program = torch.export.export(net, (x,), dynamic_shapes=dynamic)
        file = tmp_path / "net.onnx"
        torch.onnx.export(program, (x,), file, input_names=["image"], output_names=["pred"], verbose=False)
        session = onnxruntime.InferenceSession(file)
        for value in (x, other):
            torch.testing.assert_close(program.module()(value), net(value))
            (y,) = session.run(None, {"image": value.numpy()})
            np.testing.assert_allclose(y, net(value).detach(), atol=1e-4)

    def checkpointed(self) -> tuple[nn.Module, nn.Module, torch.Tensor]:
        """A network that keeps its activations, the same one that computes them twice, and an input."""
        if self.checkpoint_case is None:
            pytest.skip(f"{self.network.__name__} has its own test of it, or no such option")
        args, shape = self.checkpoint_case
        twice = self.network(**args, use_checkpoint=True)
        plain = self.network(**args)
        plain.load_state_dict(twice.state_dict())
        return plain, twice, torch.rand(shape)

    @pytest.mark.parametrize("is_compiled", [False, True])
    def test_checkpointing_changes_neither_gradients_nor_statistics(self, float64, is_compiled):
        *networks, x = self.checkpointed()
        x.requires_grad_()
        gradients = []
        for network in networks:
            torch.compiler.reset()
            torch.manual_seed(1)  # of dropout
            call = torch.compile(network, backend="aot_eager", fullgraph=True) if is_compiled else network
            # Compiled, torch refuses two passes through a batch norm before one backward.
            loss = call(x).square().mean() + (0 if is_compiled else call(2 * x).square().mean())
            gradients.append(torch.autograd.grad(loss, [x, *network.parameters()]))
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)
        plain, twice = (network.state_dict() for network in networks)  # statistics, counted once
        torch.testing.assert_close(plain, twice, atol=1e-12, rtol=1e-9)

    def test_checkpointed_graph_can_be_gone_through_twice(self):
        _, twice, x = self.checkpointed()
        loss = twice(x).square().mean()
        first = torch.autograd.grad(loss, list(twice.parameters()), retain_graph=True)
        statistics = {name: value.clone() for name, value in twice.state_dict().items()}
        torch.testing.assert_close(torch.autograd.grad(loss, list(twice.parameters())), first, atol=0, rtol=0)
        torch.testing.assert_close(twice.state_dict(), statistics, atol=0, rtol=0)

    def test_checkpointing_under_autocast(self):
        *networks, x = self.checkpointed()
        gradients = []
        for network in networks:
            torch.manual_seed(1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = network(x).float().square().mean()
            gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        torch.testing.assert_close(*gradients, atol=0, rtol=0)

    def test_checkpointing_halves_what_is_kept(self):
        plain, twice, x = self.checkpointed()
        assert 0 < kept(twice, x) <= 0.5 * kept(plain, x)
        assert kept(twice.eval(), x) == kept(plain.eval(), x)  # in evaluation it does nothing

    @pytest.mark.slow
    def test_compile(self):
        net, x, other = self.exported()
        compiled = torch.compile(net, **self.compile_args)
        with torch.no_grad():
            for value in (x, other):
                torch.testing.assert_close(compiled(value), net(value), atol=1e-4, rtol=1e-4)
        compiled.train()(x).square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())

    def test_graph_capture_is_whole(self):
        """What ``torch.compile`` sees has no break, checked without waiting for a C++ compiler."""
        net, x, _ = self.exported()
        torch.compiler.reset()
        captured = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(captured(x), net(x))

    def test_bfloat16_autocast(self):
        net, x, _ = self.exported()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net.train()(x.expand(2, *[-1] * (x.dim() - 1)))
            y.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        net.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(x).float()
        with torch.no_grad():
            full = net(x)
        assert (half - full).abs().max() < 0.1 * full.abs().max()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype):
        net, x, _ = self.exported()
        full = net(x).detach()
        half = net.to(dtype)(x.to(dtype))
        assert half.dtype == dtype
        assert (half.detach().float() - full).abs().max() < 0.1 * full.abs().max()
        x = x.expand(2, *[-1] * (x.dim() - 1))
        net.train()(x.to(dtype)).float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.usefixtures("without_tf32")
    def test_cuda_equals_cpu(self):
        net, x, _ = self.exported()
        expected = net(x)
        torch.testing.assert_close(net.cuda()(x.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)

    def test_scale_equivariance(self):
        if self.equivariance is None:
            pytest.skip(f"{self.network.__name__} is not scale-equivariant")
        args, size, other, tolerance = self.equivariance
        net = self.network(**args)
        shape = (1, args["in_channels"])
        image = rescale(torch.randn(*shape, *[n // 6 for n in size]), size)
        for norm in (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.momentum = 1.0
        net(image)  # statistics of a real image, as after training
        plain = UNet(args["spatial_dims"], shape[1], 2, channels=(4, 8), strides=(2,))
        assert_scale_equivariant(net, image, other, tolerance, control=plain, margin=0.25)

    def test_logits_are_those_stored(self, float64):
        stored = np.load(STORED / (self.stored or f"{self.network.__name__.lower()}_logits.npz"))
        np.testing.assert_allclose(self.reference_logits(), stored["logits"], atol=1e-6)

    @classmethod
    def reference_logits(cls) -> np.ndarray:
        """Output of the export case in float64, with weights and input that follow from a rule."""
        args, shape, _ = cls.export_case
        net = cls.network(**args).double().eval()
        state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
        rules = {k: rule_weight(cls.name_prefix + k, tuple(v.shape)) for k, v in state.items()}
        net.load_state_dict(net.state_dict() | {k: v.abs() if "running_var" in k else v for k, v in rules.items()})
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
        return net(x).detach().numpy()


class DeepSupervisionTests:
    """For networks with ``dsdepth``; ``cases`` are (arguments without it, shape, sizes of all possible outputs)."""

    network: ClassVar[type[nn.Module]]
    cases: ClassVar[list[tuple[dict[str, Any], tuple[int, ...], list[tuple[int, ...]]]]]

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=[f"{len(case[1]) - 2}d" for case in self.cases])

    def built(self, case: tuple) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The network with as many levels as it takes, a batch of images, and labels."""
        args, shape, sizes = case
        net = self.network(**args, dsdepth=len(sizes))
        x = torch.randn(shape)
        return net, x, torch.randint(0, args["out_channels"], (shape[0], 1, *shape[2:]))

    def test_training_gives_a_list_of_all_levels_and_evaluation_the_first(self, case):
        args, shape, sizes = case
        net, x, _ = self.built(case)
        expected = [(shape[0], args["out_channels"], *size) for size in sizes]
        assert [tuple(y.shape) for y in net(x)] == expected
        with torch.no_grad():
            answers = net.eval().outputs(x)
            assert [tuple(y.shape) for y in answers] == expected
            torch.testing.assert_close(net(x), answers[0])
        with pytest.raises(ValueError, match=rf"dsdepth must be at most .*got {len(sizes) + 1}"):
            self.network(**args, dsdepth=len(sizes) + 1)
        with pytest.raises(ValueError, match="dsdepth must be a whole number of at least 1"):
            self.network(**args, dsdepth=0)

    def test_network_without_it_is_as_ever(self, case):
        """The same first weights under the same names, and the same answer; heads are extra."""
        plain = self.network(**case[0])
        torch.manual_seed(0)  # as before this test
        deep, x, _ = self.built(case)
        weights = {k: v for k, v in deep.state_dict().items() if k not in self.heads(deep, case)}
        torch.testing.assert_close(weights, dict(plain.state_dict()), atol=0, rtol=0)
        torch.testing.assert_close(plain.eval()(x), deep.eval()(x))

    def test_monais_loss_trains_every_head(self, case):
        net, x, labels = self.built(case)
        loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
        loss(net(x), labels.float()).backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []
        assert all(net.get_parameter(name).grad.abs().max() > 0 for name in self.heads(net, case))
        net.zero_grad()
        net(x)[0].square().mean().backward()  # the control: the first output alone
        assert {name for name, p in net.named_parameters() if p.grad is None} == self.heads(net, case)

    def heads(self, net: nn.Module, case: tuple) -> set[str]:
        """Parameters of the coarser heads."""
        names = set(net.state_dict()) - set(self.network(**case[0]).state_dict())
        assert len(names) == 2 * (len(case[2]) - 1)  # weight and bias of each
        return names

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_evaluation_can_be_scripted_and_exported(self, case):
        net, x, _ = self.built(case)
        net(x)
        net.eval()
        with torch.no_grad():
            expected = net(x)
            torch.testing.assert_close(torch.jit.script(net)(x), expected)
            torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)

    def test_metadata_stay_with_the_answer_of_evaluation(self, case):
        net, x, _ = self.built(case)
        image = MetaTensor(x, affine=2 * torch.eye(4))
        assert not any(isinstance(y, MetaTensor) for y in net(image))  # coarser grids would have other affines
        assert isinstance(net.eval()(image), MetaTensor)


def kept(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes of activations that autograd keeps between the forward and the backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = network(x)
    for parameter in network.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    assert y.requires_grad
    return sum(storage.nbytes() for storage in storages.values())
