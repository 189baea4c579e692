"""The equivariance report on any network and any images: a table, the numbers behind it, and a picture."""

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.config import get_config_values
from monai.transforms import CenterSpatialCrop
from monai.utils import convert_to_tensor, ensure_tuple
from torch import nn
from tqdm import tqdm

import monai_scaleequiv
from monai_scaleequiv.cli._bundles import input_paths, read_bundle
from monai_scaleequiv.cli._pictures import save_curves
from monai_scaleequiv.data import load_weights, make_phantom_dataset, nifti_datalist
from monai_scaleequiv.layers import ScaleProjection
from monai_scaleequiv.metrics import check_ratios, consistency_dice, equivariance_error

RATIOS = (0.7, 0.8, 0.9, 1.11, 1.25, 1.4)
DIVISOR = 16
ERRORS = ("floor", "interior", "unshifted", "projected")
READINGS = (*ERRORS, "consistency_dice")
FILES = ("equivariance.json", "equivariance.png")
PLAIN = {  # for a network without a bundle
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "load_pretrain": False,
    "load": {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    "preprocessing": "$monai.transforms.Compose([@load, monai.transforms.NormalizeIntensityd('image')])",
}


class PaddedNetwork(nn.Module):
    """A network that takes images of any size: padded to multiples of ``divisor``; it keeps all its outputs."""

    def __init__(
        self, network: nn.Module, divisor: int, scales: Sequence[float] | None, overlapping: bool = False
    ) -> None:
        super().__init__()
        self.network, self.divisor, self.scales, self.overlapping = network, divisor, scales, overlapping
        self.outputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = [-size % self.divisor for size in reversed(x.shape[2:])]
        pads = [n for surplus in more for n in (surplus // 2, surplus - surplus // 2)]
        y = ensure_tuple(self.network(F.pad(x, pads, mode="replicate")), wrap_array=True)[0]
        if not isinstance(y, torch.Tensor):
            raise ValueError(f"expected the network to give a tensor, got {type(y).__name__}; choose another network.")
        self.outputs.append(F.pad(y, [-n for n in pads]))
        return self.outputs[-1]


def make_report(
    folder: Path, source: str | Mapping[str, Any] | Path, overrides: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """Measures a network at several ratios, writes ``equivariance.json`` and ``equivariance.png``, returns the table.

    ``source`` is a bundle's root or a network's definition, ``arguments`` are the command's other ones.
    """
    for name in FILES:
        if (folder / name).exists():
            raise FileExistsError(f"--output: {folder / name} exists already; choose another folder or remove it.")
    for name in ("divisor", "cases"):
        if (value := arguments[name]) is not None and (type(value) is not int or value < 1):
            raise ValueError(f"--{name}: expected a whole number of at least 1, got {value!r}; give another one.")
    parser = _config(source, overrides)
    network, weights = _read_network(parser, arguments["seed"], "ckpt_path" in overrides)
    scales = _scales(network)
    # Networks of this package take any size, and padding would take from them what is read before the projection.
    divisor = arguments["divisor"] or (DIVISOR if scales is None else 1)
    ratios = ratios_to_measure(arguments["ratios"], scales)
    channels = parser.get_parsed_content("in_channels", default=getattr(network, "in_channels", 1))  # of the files
    images = _read_images(network, parser.get_parsed_content("preprocessing"), channels, arguments)
    device = torch.device(parser.get_parsed_content("device", default="cpu"))
    padded = PaddedNetwork(network.to(device).eval(), divisor, scales, overlapping="label_values" in parser)
    rows = _rows(padded, images, ratios, device)
    kind = type(network).__name__
    described = {"class": kind, "parameters": sum(p.numel() for p in network.parameters()), "weights": weights}
    bundle = {"bundle": source.name} if isinstance(source, Path) else {}
    report = {
        "network": {**bundle, **described, "definition": parser["network_def"], "scales": scales},
        "images": list(images),
        "arguments": {**arguments, "overrides": overrides, "ratios": ratios, "divisor": divisor},
        "device": str(device),
        "versions": {"monai_scaleequiv": monai_scaleequiv.__version__, **get_config_values()},
        "ratios": rows,
    }
    title = f"{kind}, images: {len(images)} {'given' if arguments['input'] else 'made up'}"
    folder.mkdir(parents=True, exist_ok=True)
    save_curves(rows, title, folder / FILES[1])
    (folder / FILES[0]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return f"{title}\nweights: {weights}\n\n{_table(rows)}" + "".join(f"{folder / name}\n" for name in FILES)


def _config(source: str | Mapping[str, Any] | Path, overrides: Mapping[str, Any]) -> ConfigParser:
    """A bundle's config, or one around a network's definition: JSON, or a file with it, of a config or the network."""
    if isinstance(source, Path):
        return read_bundle("equivariance", source, overrides)[0]
    if isinstance(source, str) and not Path(source).is_file():
        expected = f"expected a JSON file, or JSON such as {json.dumps({'_target_': 'UNet'})} with all arguments"
        raise FileNotFoundError(f"--network: {expected}, got {source}; give one of them.")
    found = ConfigParser.load_config_file(source) if isinstance(source, str) else source
    if not isinstance(found, Mapping) or not {"_target_", "network_def"} & set(found):
        raise ValueError("--network: expected a _target_, or a config with a network_def, got neither; name the class.")
    config = found if "network_def" in found else {"network_def": dict(found)}
    return ConfigParser({**config, **PLAIN, **overrides})


def _read_network(parser: ConfigParser, seed: int, has_weights: bool) -> tuple[nn.Module, str]:
    """The network of a config, with its weights, and where they are from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network: expected a torch.nn.Module, got {type(network).__name__}; name another class.")
    if not has_weights and not parser.get_parsed_content("load_pretrain", default=True):
        return network, f"random, seed {seed}"
    weights = str(parser.get_parsed_content("ckpt_path"))
    load_weights(network, weights, map_location="cpu")
    return network, weights


def _scales(network: nn.Module) -> list[float] | None:
    """Relative sizes along the scale axis; None for a network that does not project one."""
    scales = getattr(network, "scales", getattr(getattr(network, "filters", None), "scales", None))
    has_axis = any(isinstance(module, ScaleProjection) for module in network.modules())
    return [float(s) for s in scales] if has_axis and scales else None


def _read_images(
    network: nn.Module, preprocessing: Callable[[Any], Any], channels: int, arguments: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The first few images, by name; for a 2D network the middle slice. Without an input, phantoms."""
    cases = arguments["cases"]
    with tempfile.TemporaryDirectory() as folder:
        source: Any = input_paths(arguments["input"]) if arguments["input"] else Path(folder) / "imagesTr"
        if not arguments["input"]:
            make_phantom_dataset(folder, cases=cases, seed=arguments["seed"])
        items = nifti_datalist(source, channels=channels)[:cases]
        images = {Path(ensure_tuple(item["image"])[0]).name: preprocessing(item)["image"] for item in items}
    kinds = {type(module) for module in network.modules()}
    if getattr(network, "spatial_dims", 2 if nn.Conv2d in kinds and nn.Conv3d not in kinds else 3) == 2:
        images = {name: x[..., x.shape[-1] // 2] if x.dim() > 3 else x for name, x in images.items()}
    return {name: convert_to_tensor(x, track_meta=False, dtype=torch.float32) for name, x in images.items()}


def ratios_to_measure(given: Sequence[float] | float | None, scales: Sequence[float] | None) -> list[float]:
    """The ratios given, else the usual ones with a step of the scale axis either way in place of what is next to it."""
    if given is not None:
        ratios: Any = given if isinstance(given, (list, tuple)) else [given]
        check_ratios(ratios, "--ratios")
        return sorted(set(map(float, ratios)))
    steps = [] if scales is None or len(scales) < 2 else [scales[1] / scales[0], scales[0] / scales[1]]
    return sorted({*steps, *(ratio for ratio in RATIOS if all(abs(ratio / step - 1) > 0.01 for step in steps))})


def whole_sizes(size: Sequence[int], ratio: float) -> tuple[list[int], list[int]]:
    """Sizes of a crop and of the crop rescaled, so that their ratio is met at each axis.

    The crop keeps three quarters of each axis or more; if that cannot be, nothing is cropped, and the new size rounded.
    """
    # First the ratio itself, then its neighbour among simple fractions, at most half a per cent away.
    for largest in (1000, 20):
        fraction = Fraction(ratio).limit_denominator(largest)
        crop = [n // fraction.denominator * fraction.denominator for n in size]
        near = fraction != 1 and abs(fraction / Fraction(ratio) - 1) < 0.005
        if near and all(4 * m >= 3 * n for m, n in zip(crop, size, strict=True)):
            return crop, [int(m * fraction) for m in crop]
    return list(size), [max(1, round(n * ratio)) for n in size]


def _rows(
    network: PaddedNetwork, images: Mapping[str, torch.Tensor], ratios: Sequence[float], device: torch.device
) -> list[dict]:
    """One row per ratio: means over the images, and each image's readings."""
    rows = []
    for ratio in tqdm(ratios, desc="measure", disable=None, leave=False):
        cases = [{"image": name, **_measure(network, image.to(device), ratio)} for name, image in images.items()]
        known = {name: [case[name] for case in cases if case[name] is not None] for name in READINGS}
        means = {name: statistics.fmean(values) if values else None for name, values in known.items()}
        used = statistics.fmean(r for case in cases for r in case["ratio"])
        rows.append({"ratio": ratio, "used": used, **means, "cases": cases})
    return rows


def _measure(network: PaddedNetwork, image: torch.Tensor, ratio: float) -> dict[str, Any]:
    crop, size = whole_sizes(image.shape[1:], ratio)
    part = convert_to_tensor(CenterSpatialCrop(crop)(image), track_meta=False)[None]
    network.outputs.clear()
    reading = equivariance_error(network, part, size)
    readings = {name: getattr(reading, name) for name in ERRORS}
    dice = consistency_dice(y_pred=network.outputs[1], y=network.outputs[0], overlapping=network.overlapping)
    readings["consistency_dice"] = float(dice.nanmean())
    # JSON has no NaN: a network that gives nothing has no error, and an image without classes no Dice.
    readings = {name: value if value is not None and value == value else None for name, value in readings.items()}
    return {"size": crop, "rescaled_size": size, "ratio": reading.ratio, **readings}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines: list[Sequence[str]] = [("ratio", *ERRORS, "Dice")]
    for row in rows:
        formats = {"used": ".3f", **dict.fromkeys(ERRORS, ".1e"), "consistency_dice": ".3f"}
        lines.append(["-" if row[name] is None else f"{row[name]:{form}}" for name, form in formats.items()])
    return "".join("".join(f"{cell:>11}" for cell in line) + "\n" for line in lines)
