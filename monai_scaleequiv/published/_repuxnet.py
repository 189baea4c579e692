"""The published RepUX-Net, and the loading of its checkpoints."""

import re
from collections.abc import Mapping

import torch

from monai_scaleequiv.nets import RepUXNet

# Arguments of the published constructor that are called otherwise here, and its defaults that differ from ours.
_NAMES = {"in_chans": "in_channels", "out_chans": "out_channels", "feat_size": "feature_size", "ks": "kernel_size"}
_NAMES |= {"a": "frequency_prior"} | {n: n for n in ("depths", "hidden_size", "norm_name", "res_block", "deploy")}
_DEFAULTS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 13}
_WITHOUT_EFFECT = ("drop_path_rate", "layer_scale_init_value", "conv_block")  # on what the published network computes
_ENCODER = "repuxnet_3d."
_WRAPPERS = ("state_dict", "net", "model")


def build_repuxnet(config: Mapping, state_dict: Mapping | None = None) -> RepUXNet:
    """Builds the published RepUX-Net from its own arguments and loads a published checkpoint.

    A checkpoint holds kernels with the prior multiplied in. With ``deploy=True`` they are taken as they are. Without,
    the network computes the same, in the form that trains under the prior.

    Args:
        config: arguments of the published constructor by name; those left out have its defaults.
        state_dict: published state dict, also with a prefix such as ``module.``, or the checkpoint that holds it under
            ``state_dict``, ``net`` or ``model``, for evaluation mode; None for random weights, in training mode.

    Raises:
        ValueError: when ``config`` holds an unknown argument or a value out of range, or ``state_dict`` no weights of
            this network.
        RuntimeError: when the weights do not fit the network.

    Example::

        >>> config = {"out_chans": 2, "feat_size": (8, 8, 8, 8), "ks": 7, "hidden_size": 8, "deploy": True}
        >>> build_repuxnet(config)(torch.rand(2, 1, 16, 16, 16)).shape
        torch.Size([2, 2, 16, 16, 16])
        >>> checkpoint = torch.load("best_metric_model.pth", weights_only=True)  # doctest: +SKIP
        >>> net = build_repuxnet({"out_chans": 14, "deploy": True}, checkpoint)  # doctest: +SKIP

    Source: code of Lee et al. 2023 (arXiv 2303.05785).
    """
    config = {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}
    if config.pop("spatial_dims", 3) != 3:
        raise ValueError("spatial_dims must be 3 as in the published network.")
    unknown = sorted(set(config) - set(_NAMES))
    if unknown:
        raise ValueError(f"config has unknown arguments {unknown}; the published network takes {sorted(_NAMES)}.")
    net = RepUXNet(**{**_DEFAULTS, **{_NAMES[name]: value for name, value in config.items()}})
    if state_dict is None:
        return net
    net.load_state_dict(_converted(_unwrapped(state_dict), net))
    return net.eval()


def _unwrapped(state_dict: Mapping) -> dict[str, torch.Tensor]:
    for name in _WRAPPERS:
        if isinstance(state_dict.get(name), Mapping):
            state_dict = state_dict[name]
    prefixes = {name[: name.index(_ENCODER)] for name in state_dict if _ENCODER in name}
    if len(prefixes) != 1:
        found = f"{len(prefixes)} such networks among {len(state_dict)} names"
        raise ValueError(f"state_dict must hold the weights of one published network, '{_ENCODER}...', got {found}.")
    prefix = prefixes.pop()
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _converted(state_dict: Mapping[str, torch.Tensor], net: RepUXNet) -> dict[str, torch.Tensor]:
    stages = len(net.stages)
    # Some copies of the code save the prior (BFM); here it follows from the arguments.
    converted = {_own_name(name, stages): v for name, v in state_dict.items() if not name.endswith(".BFM")}
    for name in (n for n in net.state_dict() if n.endswith("unscaled_weight")):
        kernel = converted.pop(name.replace("unscaled_weight", "weight"), None)
        if kernel is not None:
            converted[name] = kernel / net.get_buffer(name.replace("unscaled_weight", "prior")).to(kernel)
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
