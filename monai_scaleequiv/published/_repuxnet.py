"""The published RepUX-Net, and the loading of its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from monai_scaleequiv.maths import frequency_prior
from monai_scaleequiv.nets import RepUXNet

__all__ = ["build_repuxnet"]

# Arguments of the published constructor, and what they are called here; these are its defaults.
_ARGUMENTS = {
    "in_chans": ("in_channels", 1),
    "out_chans": ("out_channels", 13),
    "depths": ("depths", (2, 2, 2, 2)),
    "feat_size": ("feature_size", (48, 96, 192, 384)),
    "ks": ("kernel_size", 21),
    "a": ("frequency_prior", 1),
    "hidden_size": ("hidden_size", 768),
    "norm_name": ("norm_name", "instance"),
    "res_block": ("res_block", True),
    "spatial_dims": ("spatial_dims", 3),
    "deploy": ("deploy", False),
}
# Arguments that do not change what the published network computes.
_WITHOUT_EFFECT = ("drop_path_rate", "layer_scale_init_value", "conv_block")
_ENCODER = "repuxnet_3d."
_WRAPPERS = ("state_dict", "net", "model")


def build_repuxnet(config: Mapping, state_dict: Mapping | None = None) -> RepUXNet:
    """Builds the published RepUX-Net from its own arguments and loads a published checkpoint.

    A checkpoint holds the kernels as its last forward used them, the prior multiplied in. With ``deploy=True`` they are
    taken as they are. Without, the network computes the same, in the form that trains under the prior (here the
    optimizer does move it; the published code multiplies the prior in at each forward, also in evaluation).

    Args:
        config: arguments of the published constructor by name; those left out have its defaults.
        state_dict: published state dict, also with a prefix such as ``module.`` before each name, or the checkpoint
            that holds it under ``state_dict``, ``net`` or ``model``; None for random weights.

    Returns:
        the network in evaluation mode if weights were given, else in training mode.

    Raises:
        ValueError: when ``config`` holds an unknown argument or a value out of range, or ``state_dict`` no weights of
            this network.
        RuntimeError: when the weights do not fit the network.

    Example::

        >>> net = build_repuxnet({"out_chans": 2, "feat_size": (8, 8, 8, 8), "ks": 7, "hidden_size": 8, "deploy": True})
        >>> net(torch.rand(2, 1, 16, 16, 16)).shape
        torch.Size([2, 2, 16, 16, 16])
        >>> checkpoint = torch.load("best_metric_model.pth", weights_only=True)  # doctest: +SKIP
        >>> net = build_repuxnet({"out_chans": 14, "deploy": True}, checkpoint)  # doctest: +SKIP

    Source: code of Lee et al. 2023 (arXiv 2303.05785).
    """
    unknown = sorted(set(config) - set(_ARGUMENTS) - set(_WITHOUT_EFFECT))
    if unknown:
        raise ValueError(f"config has unknown arguments {unknown}; the published network takes {sorted(_ARGUMENTS)}.")
    if config.get("spatial_dims", 3) != 3:
        raise ValueError(f"spatial_dims must be 3 as in the published network, got {config['spatial_dims']}.")
    net = RepUXNet(**{ours: config.get(theirs, default) for theirs, (ours, default) in _ARGUMENTS.items()})
    if state_dict is None:
        return net
    net.load_state_dict(_converted(_unwrapped(state_dict), net, config))
    return net.eval()


def _unwrapped(state_dict: Mapping) -> dict[str, torch.Tensor]:
    for name in _WRAPPERS:
        if isinstance(state_dict.get(name), Mapping):
            state_dict = state_dict[name]
    prefixes = {name[: name.index(_ENCODER)] for name in state_dict if _ENCODER in name}
    if len(prefixes) != 1:
        raise ValueError(
            f"state_dict must hold the weights of one published network, with names that contain '{_ENCODER}', got "
            f"{len(prefixes)} such networks among {len(state_dict)} names."
        )
    prefix = prefixes.pop()
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _converted(state_dict: Mapping[str, torch.Tensor], net: RepUXNet, config: Mapping) -> dict[str, torch.Tensor]:
    stages = len(net.stages)
    # Some copies of the code save the prior (BFM); here it follows from the arguments.
    converted = {_own_name(name, stages): v for name, v in state_dict.items() if not name.endswith(".BFM")}
    for name in net.state_dict():
        if name.endswith("unscaled_weight"):
            kernel = converted.pop(name.replace("unscaled_weight", "weight"), None)
            if kernel is not None:
                prior = frequency_prior(kernel.shape[2:], config.get("a", 1))
                converted[name] = kernel / prior.to(kernel)
    return converted


def _own_name(name: str, stages: int) -> str:
    """The name in :py:class:`RepUXNet` of a published parameter or buffer."""
    if name.startswith(_ENCODER):
        name = name.removeprefix(_ENCODER)
        name = re.sub(r"^downsample_layers\.(\d+)", r"stages.\1.down", name)
        name = re.sub(r"^stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2", name)
        return re.sub(r"^norm(\d+)", r"stages.\1.norm", name).replace(".dwconv.", ".conv.")
    part, _, rest = name.partition(".")
    own = {"encoder1": "first", "decoder1": "last", "out": "head"}
    own |= {f"encoder{i + 2}": f"stages.{i}.skip" for i in range(stages)}
    own |= {f"decoder{i + 2}": f"ups.{stages - 1 - i}" for i in range(stages)}
    return f"{own.get(part, part)}.{rest}"
