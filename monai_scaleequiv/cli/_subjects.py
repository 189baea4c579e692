"""What the equivariance report measures: any network, on any images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, DivisiblePad, LoadImage, NormalizeIntensity
from monai.utils import convert_to_tensor
from torch import nn

from monai_scaleequiv.cli._bundles import input_paths
from monai_scaleequiv.cli._overrides import check_overrides
from monai_scaleequiv.data import make_phantom_dataset, nifti_datalist, read_weights
from monai_scaleequiv.layers import ScaleProjection

__all__ = ["Subject", "WholeImageNetwork", "bundle_subject", "network_subject", "read_images"]

_STATE_KEYS = ("network", "model", "net", "state_dict")  # under which checkpoints keep a network's weights


class WholeImageNetwork(nn.Module):
    """A network that takes images of any size: they are padded to multiples of ``divisor`` and cropped back.

    Args:
        network: the network; of several outputs the first one counts.
        divisor: what the network needs its sizes to be divisible by.

    Example::

        >>> WholeImageNetwork(torch.nn.MaxPool2d(1), divisor=16)(torch.rand(1, 1, 20, 30)).shape
        torch.Size([1, 1, 20, 30])
    """

    def __init__(self, network: nn.Module, divisor: int = 1) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = DivisiblePad(self.divisor, mode="replicate")
        y = self.network(torch.stack([convert_to_tensor(pad(case), track_meta=False) for case in x]))
        y = y[0] if isinstance(y, (list, tuple)) else y
        if not isinstance(y, torch.Tensor):
            raise ValueError(f"expected the network to give a tensor, got {type(y).__name__}; choose another network.")
        for axis, size in enumerate(x.shape[2:], start=2):
            # DivisiblePad puts the smaller half in front.
            surplus = -size % self.divisor
            y = y.narrow(axis, surplus // 2, y.shape[axis] - surplus)
        return y


@dataclass(frozen=True)
class Subject:
    """A network and how its images are made.

    Args:
        network: on its device.
        device: the device.
        preprocessing: from a file to (C, D, H, W) or (C, H, W).
        description: for the report.
    """

    network: nn.Module
    device: torch.device
    preprocessing: Callable[[str], torch.Tensor]
    description: dict[str, Any]

    @property
    def scales(self) -> list[float] | None:
        """Relative sizes along the scale axis; None for a network that does not project one."""
        has_axis = any(isinstance(module, ScaleProjection) for module in self.network.modules())
        return [float(s) for s in self.network.scales] if has_axis and hasattr(self.network, "scales") else None

    @property
    def spatial_dims(self) -> int:
        """Spatial axes that the network takes."""
        kinds = {type(module) for module in self.network.modules()}
        return getattr(self.network, "spatial_dims", 2 if nn.Conv2d in kinds and nn.Conv3d not in kinds else 3)


def network_subject(definition: str | Mapping[str, Any], ckpt_path: str, seed: int) -> Subject:
    """A network that MONAI's config parser builds.

    Args:
        definition: JSON object with ``_target_``, or a file with it, or with a config that has a ``network_def``.
        ckpt_path: its weights; empty for random ones.
        seed: for random weights.

    Raises:
        FileNotFoundError: when the definition is neither a JSON object nor a file, or the weights are no file.
        ValueError: when it defines no network, or the weights do not fit.

    Example::

        >>> definition = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
        >>> subject = network_subject({**definition, "channels": [4, 8], "strides": [2]}, ckpt_path="", seed=0)
        >>> subject.spatial_dims, subject.scales
        (2, None)
    """
    if isinstance(definition, str):
        if not Path(definition).is_file():
            raise FileNotFoundError(
                f"--network: expected a JSON file, or JSON such as {json.dumps({'_target_': 'UNet', 'channels': [8]})} "
                f"with all arguments, got {definition}; give one of them."
            )
        definition = ConfigParser.load_config_file(definition)
    if not isinstance(definition, Mapping) or not {"_target_", "network_def"} & set(definition):
        raise ValueError("--network: expected a _target_, or a config with a network_def, got neither; name the class.")
    parser = ConfigParser(dict(definition) if "network_def" in definition else {"network_def": dict(definition)})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network: expected a torch.nn.Module, got {type(network).__name__}; name another class.")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    load = Compose([LoadImage(ensure_channel_first=True), NormalizeIntensity()])
    description = {"definition": parser["network_def"], "weights": ckpt_path or f"random, seed {seed}"}
    return _subject(network.to(device), device, load, description, ckpt_path)


def bundle_subject(folder: Path, ckpt_path: str, seed: int, overrides: Mapping[str, Any]) -> Subject:
    """The network of a bundle's ``inference.json``, with its weights and preprocessing.

    Args:
        folder: the bundle's root.
        ckpt_path: other weights than the bundle's own; empty for those.
        seed: for random weights, where ``load_pretrain`` is false.
        overrides: new values by config id.

    Raises:
        FileNotFoundError: when the bundle has no ``inference.json`` or no weights.
        ValueError: when the config does not have an id, or the weights do not fit.

    Example::

        >>> from monai_scaleequiv.cli._bundles import DEFAULT_BUNDLE, find_bundle
        >>> bundle_subject(find_bundle(DEFAULT_BUNDLE), ckpt_path="", seed=0, overrides={"epoch": 1})
        Traceback (most recent call last):
        ValueError: --epoch: inference.json has no such id; choose one of ...
    """
    file = folder / "configs" / "inference.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, which equivariance needs; give another --bundle.")
    parser = ConfigParser()
    parser.read_config(file)
    if (file.parent / "metadata.json").is_file():
        parser.read_meta(file.parent / "metadata.json")
    check_overrides(parser, {"bundle_root": str(folder), **overrides}, file.name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network" if "network" in parser else "network_def")
    if not ckpt_path and ("load_pretrain" not in parser or parser.get_parsed_content("load_pretrain")):
        named = "ckpt_path" in parser
        ckpt_path = str(parser.get_parsed_content("ckpt_path") if named else folder / "models" / "model.pt")
    transforms = parser.get_parsed_content("preprocessing")
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    description = {"bundle": folder.name, "definition": parser.get("network_def")}
    description["weights"] = ckpt_path or f"random, seed {seed}"
    return _subject(network, device, lambda path: transforms({"image": path})["image"], description, ckpt_path)


def read_images(subject: Subject, source: str, cases: int, seed: int) -> dict[str, torch.Tensor]:
    """The first few images, preprocessed, by name; of volumes for a 2D network the middle slice.

    Args:
        subject: whose preprocessing and number of axes count.
        source: folder, file, or files with commas between; empty for phantoms.
        cases: number of images at most.
        seed: for the phantoms.

    Example::

        >>> subject = Subject(torch.nn.Conv2d(1, 1, 1), torch.device("cpu"), LoadImage(ensure_channel_first=True), {})
        >>> read_images(subject, source="", cases=1, seed=0)["phantom_000.nii.gz"].shape
        torch.Size([1, 40, 56])
    """
    with tempfile.TemporaryDirectory() as folder:
        if source:
            paths: Any = input_paths(source)
        else:
            paths = make_phantom_dataset(folder, cases=cases, seed=seed).parent / "imagesTr"
        files = [item["image"] for item in nifti_datalist(paths)[:cases]]
        images = {Path(f).name: convert_to_tensor(subject.preprocessing(f), track_meta=False) for f in files}
    if subject.spatial_dims == 2:
        images = {name: x if x.dim() == 3 else x[..., x.shape[-1] // 2] for name, x in images.items()}
    return {name: x.to(subject.device, torch.float32) for name, x in images.items()}


def _subject(
    network: nn.Module, device: torch.device, load: Callable, description: dict[str, Any], ckpt_path: str
) -> Subject:
    if ckpt_path:
        _load_weights(network, ckpt_path, device)
    size = sum(p.numel() for p in network.parameters())
    return Subject(network, device, load, {"class": type(network).__name__, "parameters": size, **description})


def _load_weights(network: nn.Module, path: str, device: torch.device) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--ckpt_path: {path} does not exist; give another path.")
    state = read_weights(path, device)
    state = next((state[key] for key in _STATE_KEYS if isinstance(state.get(key), Mapping)), state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"--ckpt_path: {path} does not fit the network; give the weights of this one. {error}"
        ) from None
