"""The published mode computes what the published code computes."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from monai_scaleequiv import ScaleGroupConv, ScaleLiftingConv
from monai_scaleequiv.published import PublishedSEUNet, build_seunet, published_basis
from monai_scaleequiv.published._seunet import BatchStatisticsNorm
from tests.conftest import load_reference, rule_weight, shared
from tests.network_tests import NetworkTests

BASIS_TYPES = {"onescale": "single", "multiscale": "multi"}
CONFIG = {
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 2,
    "kernel_size": 5,
    "effective_size": 3,
    "scales": [1.0, 0.9],
    "basis_type": "multi",
}


class TestPublishedSEUNet(NetworkTests):
    network = PublishedSEUNet
    cases = [  # noqa: RUF012
        (CONFIG, (1, 1, 17, 17, 17), (1, 2, 17, 17, 17)),
        ({**CONFIG, "channels": [2, 4, 4], "strides": [2, 2]}, (1, 1, 21, 17, 25), (1, 2, 21, 17, 25)),
        ({**CONFIG, "act": "silu", "norm": None, "reduction": "avg"}, (1, 1, 9, 11, 13), (1, 2, 9, 11, 13)),
        ({**CONFIG, "scale_size": 2, "basis_type": "single", "dropout": 0.1}, (1, 1, 9, 9, 9), (1, 2, 9, 9, 9)),
        ({**CONFIG, "num_res_units": 1}, (1, 1, 10, 10, 10), (1, 2, 9, 9, 9)),  # as published: a voxel is lost
    ]
    ill_arguments = [  # noqa: RUF012
        ({"num_res_units": 0}, "num_res_units must be at least 1"),
        ({"norm": "instance"}, "norm must be"),
        ({"act": "prelu"}, "act must be"),
        ({"reduction": "mean"}, "reduction must be"),
        ({"basis_type": "many"}, "basis_type must be"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"strides": []}, "one fewer"),
    ]
    export_case = (CONFIG, (1, 1, 13, 11, 9), (1, 1, 9, 15, 11))
    dynamic_case = ({**CONFIG, "num_res_units": 1}, *export_case[1:])
    # One compilation per size: the size after an unpadded strided convolution may be 0, which Inductor cannot bound.
    compile_args: ClassVar[dict[str, Any]] = {"dynamic": False}

    @pytest.mark.slow
    def test_export_and_onnx_with_dynamic_axes(self, tmp_path):
        super().test_export_and_onnx_with_dynamic_axes(tmp_path)

    def test_evaluation_does_not_depend_on_the_batch(self):
        """As published it does; this is one of the reasons for SEUNet."""
        with pytest.raises(AssertionError, match="not close"):
            super().test_evaluation_does_not_depend_on_the_batch()


@pytest.mark.parametrize("name", ["basis_0", "basis_1", "basis_2"])
def test_basis_equals_reference(name):
    meta, expected, _ = load_reference(shared("reference", f"{name}.npz"))
    basis = published_basis(
        meta["kernel_size"], meta["scales"], meta["effective_size"], BASIS_TYPES[meta["mode"]], meta["kernel_padding"]
    )
    np.testing.assert_allclose(basis, expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["layer_lift_0", "layer_lift_1", "layer_group_2", "layer_group_3"])
def test_layer_equals_reference(name):
    meta, expected, x = load_reference(shared("reference", f"{name}.npz"))
    what = meta["what"]
    args = {
        "basis": published_basis(what["k"], what["s"], what["e"], "multi", kernel_padding=False),
        "stride": what["stride"],
        "padding": what["padding"],
        "bias": what["bias"],
        "is_transposed": what["tr"],
    }
    if what["t"] == "lift":
        layer = ScaleLiftingConv(3, what["i"], what["o"], **args)
    else:
        layer = ScaleGroupConv(3, what["i"], what["o"], scale_size=what["ss"], **args)
        x = x.transpose(1, 2)  # published features are (B, C, S, ...)
    layer.load_state_dict({name: rule_weight(name, shape) for name, shape in meta["params"].items()})
    np.testing.assert_allclose(layer(x).transpose(1, 2).detach(), expected, atol=1e-6, rtol=0)


def reference_network(name: str) -> tuple[PublishedSEUNet, np.ndarray, torch.Tensor]:
    meta, expected, x = load_reference(shared("reference", f"{name}.npz"))
    config = {k: v for k, v in meta["what"].items() if k not in ("size", "note")}
    weights = {name: rule_weight(name, shape) for name, shape in meta["params"].items()}
    return build_seunet(config, weights), expected, x


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["unet_0", "unet_1"])
def test_network_equals_reference(name):
    net, expected, x = reference_network(name)
    np.testing.assert_allclose(net(x).detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("float64")
def test_reference_comparison_can_fail():
    net, expected, x = reference_network("unet_1")
    with torch.no_grad():
        net.model[0].conv.unit0.conv_z_h.weight[0, 0, 0] += 1e-3
    assert np.abs(net(x).detach().numpy() - expected).max() > 1e-5


def published_checkpoint(net: PublishedSEUNet) -> dict[str, torch.Tensor]:
    """What the published code saves: its own names, basis buffers, and a bias that it never adds."""
    saved = {}
    for name, value in net.state_dict().items():
        saved[name.replace(".layer.", ".")] = value
        if name.endswith("residual.layer.weight"):
            saved[name.replace("layer.weight", "bias")] = torch.ones(value.shape[0])
        if "conv_h_h.weight" in name or "conv_z_h.weight" in name:
            saved[name.replace("weight", "basis")] = torch.zeros(3)
    return saved


def test_checkpoints_load_as_saved_by_the_published_code(tmp_path):
    net = build_seunet(CONFIG).eval()
    checkpoint = {"state_dict": published_checkpoint(net), "hyper_parameters": {**CONFIG, "lr": 0.008}}
    torch.save(checkpoint, tmp_path / "published.ckpt")
    checkpoint = torch.load(tmp_path / "published.ckpt", weights_only=True)
    loaded = build_seunet(checkpoint["hyper_parameters"], checkpoint)
    x = torch.rand(1, 1, 17, 17, 17)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), net(x))


@pytest.mark.usefixtures("float64")
def test_statistics_are_the_batchs_and_unbiased_in_evaluation():
    x = torch.randn(2, 3, 2, 2, 2)
    for training in (True, False):
        norm = BatchStatisticsNorm(3).train(training)
        variance, mean = torch.var_mean(x, (0, 2, 3, 4), correction=int(not training), keepdim=True)
        torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-5).sqrt())


def test_unknown_arguments_and_weights_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="unknown arguments"):
        build_seunet({**CONFIG, "kernelsize": 5})
    with pytest.raises(RuntimeError, match="Missing key"):
        build_seunet(CONFIG, {})
