"""The published RepUX-Net's outputs, and its checkpoints as they are found."""

import functools

import numpy as np
import pytest
import torch

from monai_scaleequiv import RepUXNet
from monai_scaleequiv.published import build_repuxnet
from tests.conftest import load_reference, rule_weight, shared

State = dict[str, torch.Tensor]


@functools.cache
def reference() -> tuple[dict, State, np.ndarray, torch.Tensor]:
    """Arguments, checkpoint, output and input of the published network."""
    meta, expected, x = load_reference(shared("reference", "repuxnet_0.npz"))
    config = {name: value for name, value in meta["what"].items() if name != "note"}
    saved = {name: rule_weight(name, tuple(shape)) for name, shape in meta["params"].items()}
    for i, stage in enumerate(build_repuxnet(config).stages):
        for j, block in enumerate(stage.blocks):  # batch norm's buffers, at their defaults in the reference
            saved |= {f"repuxnet_3d.stages.{i}.{j}.norm.{n}": v for n, v in block.norm.named_buffers()}
    return config, saved, expected, x


def changed(net: RepUXNet) -> RepUXNet:
    with torch.no_grad():
        net.stages[0].blocks[0].conv.bias[0] += 0.1
    return net


@pytest.mark.usefixtures("float64")
def test_output_equals_reference():
    config, saved, expected, x = reference()
    net = build_repuxnet(config, saved)
    assert not net.training
    np.testing.assert_allclose(net(x).detach(), expected, atol=1e-6, rtol=0)
    assert np.abs(changed(net)(x).detach().numpy() - expected).max() > 1e-5  # the comparison can fail


@pytest.mark.usefixtures("float64")
def test_checkpoints_saved_by_the_training_code(tmp_path):
    config, saved, *_ = reference()
    expected = build_repuxnet(config, saved).state_dict()
    for prefix, wrapper in (("", "net"), ("module.", None), ("module.", "state_dict"), ("model.module.", "model")):
        names = {prefix + name: value for name, value in saved.items()}
        names[f"{prefix}repuxnet_3d.stages.0.0.BFM"] = torch.ones(7, 7, 7)  # some copies save the prior
        torch.save(names if wrapper is None else {wrapper: names, "epoch": 3}, tmp_path / "model.pth")
        found = build_repuxnet(config, torch.load(tmp_path / "model.pth", weights_only=True)).state_dict()
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.usefixtures("float64")
def test_a_checkpoint_for_further_training_computes_the_same():
    config, saved, expected, x = reference()
    net = build_repuxnet({**config, "deploy": False}, saved)
    np.testing.assert_allclose(net(x).detach(), expected, atol=1e-6, rtol=0)
    net.switch_to_deploy()
    np.testing.assert_allclose(net(x).detach(), expected, atol=1e-6, rtol=0)


def test_errors_of_the_published_form():
    with pytest.raises(ValueError, match=r"unknown arguments \['kernel'\]"):
        build_repuxnet({"kernel": 7})
    with pytest.raises(ValueError, match="spatial_dims must be 3"):
        build_repuxnet({"spatial_dims": 2})
    with pytest.raises(ValueError, match="must hold the weights of one published network"):
        build_repuxnet({"feat_size": (4, 4, 4, 4), "hidden_size": 4, "ks": 3}, {"weight": torch.ones(1)})
