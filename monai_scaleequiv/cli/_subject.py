"""What the equivariance report measures: any network, on any images."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, NormalizeIntensity
from monai.utils import convert_to_tensor, ensure_tuple
from torch import nn

from monai_scaleequiv.cli._bundles import input_paths, read_bundle
from monai_scaleequiv.data import load_weights, make_phantom_dataset, nifti_datalist
from monai_scaleequiv.layers import ScaleProjection


class WholeImageNetwork(nn.Module):
    """A network that takes images of any size: they are padded to multiples of ``divisor`` and cropped back."""

    def __init__(self, network: nn.Module, divisor: int = 1) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = [-size % self.divisor for size in x.shape[2:]]
        pads = [n for surplus in reversed(more) for n in (surplus // 2, surplus - surplus // 2)]
        y = ensure_tuple(self.network(F.pad(x, pads, mode="replicate")), wrap_array=True)[0]
        if not isinstance(y, torch.Tensor):
            raise ValueError(f"expected the network to give a tensor, got {type(y).__name__}; choose another network.")
        return y[(..., *(slice(s // 2, s // 2 + n) for s, n in zip(more, x.shape[2:], strict=True)))]

    @property
    def scales(self) -> list[float] | None:
        """Relative sizes along the scale axis; None for a network that does not project one."""
        has_axis = any(isinstance(module, ScaleProjection) for module in self.modules())
        scales = getattr(self.network, "scales", None) or getattr(
            getattr(self.network, "filters", None), "scales", None
        )
        return [float(s) for s in scales] if has_axis and scales else None

    @property
    def spatial_dims(self) -> int:
        """Spatial axes that the network takes."""
        kinds = {type(module) for module in self.modules()}
        return getattr(self.network, "spatial_dims", 2 if nn.Conv2d in kinds and nn.Conv3d not in kinds else 3)


def read_subject(
    source: str | Mapping[str, Any] | Path, ckpt_path: str, seed: int, overrides: Mapping[str, Any]
) -> tuple[nn.Module, Callable[[str], torch.Tensor], dict[str, Any]]:
    """The network of a bundle (a Path), or of a definition, how its images are read, and both in words."""
    described: dict[str, Any] = {}
    if isinstance(source, Path):
        given = {"ckpt_path": ckpt_path} if ckpt_path else {}
        parser, *_ = read_bundle("equivariance", source, {**overrides, **given})
        if parser.get_parsed_content("load_pretrain", default=True):
            ckpt_path = str(parser.get_parsed_content("ckpt_path", default=source / "models" / "model.pt"))
        described["bundle"] = source.name
        preprocessing = parser.get_parsed_content("preprocessing")
        load = lambda path: preprocessing({"image": path})["image"]  # noqa: E731
    else:
        parser = ConfigParser({"device": "cuda:0" if torch.cuda.is_available() else "cpu", **_definition(source)})
        load = Compose([LoadImage(ensure_channel_first=True), NormalizeIntensity()])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network: expected a torch.nn.Module, got {type(network).__name__}; name another class.")
    network = network.to(parser.get_parsed_content("device", default="cpu"))
    if ckpt_path:
        load_weights(network, ckpt_path, map_location="cpu")
    described |= {"class": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}
    described |= {"definition": parser["network_def"], "weights": ckpt_path or f"random, seed {seed}"}
    return network, load, described


def _definition(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """A config with ``network_def``, from JSON, or a file with it, of such a config or the network alone."""
    if isinstance(source, str) and not Path(source).is_file():
        example = json.dumps({"_target_": "UNet", "channels": [8]})
        expected = f"expected a JSON file, or JSON such as {example} with all arguments"
        raise FileNotFoundError(f"--network: {expected}, got {source}; give one of them.")
    found = ConfigParser.load_config_file(source) if isinstance(source, str) else source
    if not isinstance(found, Mapping) or not {"_target_", "network_def"} & set(found):
        raise ValueError("--network: expected a _target_, or a config with a network_def, got neither; name the class.")
    return dict(found) if "network_def" in found else {"network_def": dict(found)}


def read_images(
    load: Callable[[str], torch.Tensor], spatial_dims: int, source: str, cases: int, seed: int
) -> dict[str, torch.Tensor]:
    """The first few images, by name; for a 2D network the middle slice. Without a source, phantoms."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (
            input_paths(source) if source else make_phantom_dataset(folder, cases=cases, seed=seed).parent / "imagesTr"
        )
        files = [item["image"] for item in nifti_datalist(paths)[:cases]]
        images = {Path(f).name: convert_to_tensor(load(f), track_meta=False, dtype=torch.float32) for f in files}
    flat = spatial_dims == 2
    return {name: x[..., x.shape[-1] // 2] if flat and x.dim() > 3 else x for name, x in images.items()}
