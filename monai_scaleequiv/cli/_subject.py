"""What the equivariance report measures: any network, on any images."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.utils import convert_to_tensor, ensure_tuple
from torch import nn

from monai_scaleequiv.cli._bundles import input_paths, read_bundle
from monai_scaleequiv.data import load_weights, make_phantom_dataset, nifti_datalist
from monai_scaleequiv.layers import ScaleProjection

PLAIN = {  # for a network without a bundle
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "imports": ["$import torch"],
    "load_pretrain": False,
    "load": {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    "preprocessing": "$monai.transforms.Compose([@load, monai.transforms.NormalizeIntensityd('image')])",
}


class WholeImageNetwork(nn.Module):
    """A network that takes images of any size, which are padded to multiples of ``divisor`` and cropped back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.divisor = 1
        self.outputs: list[torch.Tensor] = []  # of all calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = [-size % self.divisor for size in x.shape[2:]]
        pads = [n for surplus in reversed(more) for n in (surplus // 2, surplus - surplus // 2)]
        y = ensure_tuple(self.network(F.pad(x, pads, mode="replicate")), wrap_array=True)[0]
        if not isinstance(y, torch.Tensor):
            raise ValueError(f"expected the network to give a tensor, got {type(y).__name__}; choose another network.")
        for axis, surplus in enumerate(more, start=2):
            y = y.narrow(axis, surplus // 2, y.shape[axis] - surplus)
        self.outputs.append(y)
        return y

    @property
    def scales(self) -> list[float] | None:
        """Relative sizes along the scale axis; None for a network that does not project one."""
        has_axis = any(isinstance(module, ScaleProjection) for module in self.modules())
        scales = getattr(self.network, "scales", getattr(getattr(self.network, "filters", None), "scales", None))
        return [float(s) for s in scales] if has_axis and scales else None

    @property
    def spatial_dims(self) -> int:
        """Spatial axes that the network takes."""
        kinds = {type(module) for module in self.modules()}
        return getattr(self.network, "spatial_dims", 2 if nn.Conv2d in kinds and nn.Conv3d not in kinds else 3)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))


def read_subject(
    source: str | Mapping[str, Any] | Path, ckpt_path: str, seed: int, overrides: Mapping[str, Any]
) -> tuple[WholeImageNetwork, Callable[[Any], Any], dict[str, Any]]:
    """The network of a bundle (a Path) or a definition, the preprocessing of its images, and both in words."""
    if isinstance(source, Path):
        given = {"ckpt_path": ckpt_path} if ckpt_path else {}
        parser, *_ = read_bundle("equivariance", source, {**overrides, **given})
    else:
        parser = ConfigParser({**_definition(source), **PLAIN})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network: expected a torch.nn.Module, got {type(network).__name__}; name another class.")
    if not ckpt_path and parser.get_parsed_content("load_pretrain", default=True):
        ckpt_path = str(parser.get_parsed_content("ckpt_path"))
    if ckpt_path:
        load_weights(network, ckpt_path, map_location="cpu")
    described = {
        **({"bundle": source.name} if isinstance(source, Path) else {}),
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "definition": parser["network_def"],
        "weights": ckpt_path or f"random, seed {seed}",
    }
    network = network.to(parser.get_parsed_content("device", default="cpu")).eval()
    return WholeImageNetwork(network), parser.get_parsed_content("preprocessing"), described


def _definition(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """A config with ``network_def``, from JSON, or a file with it, of such a config or the network alone."""
    if isinstance(source, str) and not Path(source).is_file():
        expected = f"expected a JSON file, or JSON such as {json.dumps({'_target_': 'UNet'})} with all arguments"
        raise FileNotFoundError(f"--network: {expected}, got {source}; give one of them.")
    found = ConfigParser.load_config_file(source) if isinstance(source, str) else source
    if not isinstance(found, Mapping) or not {"_target_", "network_def"} & set(found):
        raise ValueError("--network: expected a _target_, or a config with a network_def, got neither; name the class.")
    return dict(found) if "network_def" in found else {"network_def": dict(found)}


def read_images(
    network: WholeImageNetwork, preprocessing: Callable[[Any], Any], source: str, cases: int, seed: int
) -> dict[str, torch.Tensor]:
    """The first few images, by name; for a 2D network the middle slice. Without a source, phantoms."""
    channels = getattr(network.network, "in_channels", 1)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "imagesTr"
        if not source:
            make_phantom_dataset(folder, cases=cases, seed=seed)
        items = nifti_datalist(input_paths(source) if source else made, channels=channels)[:cases]
        images = {Path(ensure_tuple(item["image"])[0]).name: preprocessing(item)["image"] for item in items}
    flat = network.spatial_dims == 2
    images = {name: x[..., x.shape[-1] // 2] if flat and x.dim() > 3 else x for name, x in images.items()}
    return {name: convert_to_tensor(x, track_meta=False, dtype=torch.float32) for name, x in images.items()}
