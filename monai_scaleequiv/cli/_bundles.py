"""Bundles that come with the package, or lie in a folder: their configs with the user's and the recorded values."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow

import monai_scaleequiv
from monai_scaleequiv.cli._infer import segment
from monai_scaleequiv.cli._overrides import NONE, check_overrides, is_expression, suggestion
from monai_scaleequiv.data import check_dataset, read_record

DEFAULT_BUNDLE = "seunet_hippocampus_segmentation"
NATIVE = "infer --native"
CONFIGS = {
    "train": ("train",),
    "evaluate": ("train", "evaluate"),
    "sweep": ("train", "evaluate", "sweep"),
    "infer": ("inference",),
    NATIVE: ("inference", "inference_native"),
    "equivariance": ("inference",),
}
SHARED = {"train": "multi_gpu_train", **dict.fromkeys(("evaluate", "sweep"), "multi_gpu_evaluate")}
SHARED |= dict.fromkeys(("infer", NATIVE), "multi_gpu_inference")  # over the processes of torchrun


def run_bundle(command: str, folder: Path, overrides: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Runs a bundle's configs for a command, with more of them on top; for ``train`` after a check of the data."""
    parser, files, overrides = read_bundle(command, folder, overrides, more)
    if command == "train":
        checked = {"num_classes": "num_classes", "channels": "in_channels"}
        known = {name: parser.get_parsed_content(id) for name, id in checked.items() if id in parser}
        if "label_values" in parser:  # of a code that the config turns into regions
            known["num_classes"] = [0, *parser.get_parsed_content("label_values")]
        # Of the cases that are used: files of a test set may be missing or their own copies.
        parts = parser.get_parsed_content("split") if "split" in parser else []
        cases = [case for part in parts for case in part] or overrides["dataset_dir"]
        check_dataset(cases, progress=True, **known).raise_errors()
    options = {"config_file": files, "meta_file": str(folder / "configs" / "metadata.json"), **overrides}
    with warnings.catch_warnings():
        if folder.parent in _bundle_folders():
            warnings.filterwarnings("ignore", message="parsing config_file")  # it warns of configs by strangers
        if command in ("infer", NATIVE):
            segment(ConfigWorkflow(workflow_type="infer", **options))
        else:
            monai.bundle.run(**options)


def read_bundle(
    command: str, folder: Path, overrides: Mapping[str, Any], more: Sequence[str] = ()
) -> tuple[ConfigParser, list[str], dict[str, Any]]:
    """A command's config with all overrides, its files, and these: what the weights' training recorded, the user's."""
    files = [folder / "configs" / f"{name}.json" for name in CONFIGS[command]]
    if command == "sweep" and not files[-1].is_file():  # ours names nothing but what train and evaluate have
        files[-1] = find_bundle(DEFAULT_BUNDLE) / "configs" / "sweep.json"
    for name in more:
        own = {"metadata", *(name for names in CONFIGS.values() for name in names)}
        known = sorted({file.stem for file in (folder / "configs").glob("*.json")} - own)
        if name not in known:
            raise FileNotFoundError(f"--config={name}: expected a config of {folder}; {suggestion(name, known)}")
        files.append(folder / "configs" / f"{name}.json")
    if command in SHARED and dist.is_torchelastic_launched():
        files.append(folder / "configs" / f"{SHARED[command]}.json")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist, which {command} needs; give another --bundle.")
    parser = ConfigParser()
    try:
        parser.read_config(files)
    except KeyError as error:  # an override file, such as ours, that changes what the others do not have
        names = ", ".join(file.name for file in files)
        hint = "leave out --config" if more else "give another --bundle"
        raise ValueError(f"{folder}: {names} do not fit together ({error.args[0]}); {hint}.") from None
    if (folder / "scripts").is_dir():  # of an exported bundle; MONAI adds this after the config has been parsed
        sys.path.insert(1, str(folder))
    overrides = {"bundle_root": str(folder), **overrides}
    check_overrides(parser, overrides, " with ".join(file.name for file in files))
    _check_device(overrides.get("device"))
    if command != "train" and "ckpt_path" in parser and parser.get("load_pretrain") is not False:
        record = read_record(parser.get_parsed_content("ckpt_path")) or {}
        overrides = {**merged_record(parser, record), **overrides}
        parser.update(overrides)
        parser.parse(reset=True)
    return parser, [str(file) for file in files], overrides


def merged_record(parser: ConfigParser, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training has recorded, for the ids that the config has; of its network a record may lack arguments."""
    ids = ("network_def", *(parser.get("record") or ("spacing", "num_classes", "in_channels", "normalization")))
    found = {id: record[id] for id in ids if id in record and id in parser}
    configured, recorded = parser.get("network_def"), found.pop("network_def", None)
    if isinstance(configured, dict) and recorded:
        found["network_def"] = _merged(configured, recorded)
    return {id: NONE if value is None else value for id, value in found.items()}  # which MONAI would pass over


def _merged(configured: Any, recorded: Any) -> Any:
    """The recorded definition of a network, with the configured arguments of the same classes that it lacks."""
    if not all(isinstance(part, Mapping) and "_target_" in part for part in (configured, recorded)):
        return recorded
    name = str(configured["_target_"])
    if name.rpartition(".")[2] != recorded["_target_"].rpartition(".")[2]:
        return recorded
    return {
        **configured,
        **{key: _merged(configured.get(key), part) for key, part in recorded.items()},
        "_target_": name,
    }


def find_bundle(name: str) -> Path:
    """The root of a bundle in a folder, or of one that comes with this package, by its name."""
    shipped = {f.name: f for parent in _bundle_folders() for f in parent.glob("*") if (f / "configs").is_dir()}
    folder = shipped.get(name, Path(absolute(name)))
    if not folder.is_dir():
        hint = suggestion(name, shipped)
        raise FileNotFoundError(f"--bundle={name}: expected a folder or a bundle of this package; {hint}")
    return folder


def _bundle_folders() -> list[Path]:
    """Where bundles are in an installed package, and where in a checkout."""
    package = Path(monai_scaleequiv.__file__).resolve().parent
    return [package / "bundles", package.parent / "bundles"]


def _check_device(device: Any) -> None:
    if device is None or is_expression(device):
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        got = f"{device!r} ({str(error).splitlines()[0]})"
        raise ValueError(f"--device: expected a device of this machine, got {got}; choose another.") from None


def absolute(path: str) -> str:
    """A path of the command line, as the configs are given it."""
    return str(Path(path).expanduser().absolute())


def input_paths(text: str) -> str | list[str]:
    """What ``--input`` names: a path, or several with commas between, unless there is a path with these commas."""
    if "," not in text or Path(absolute(text)).exists():
        return absolute(text)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):  # an empty path would be the current folder
        raise ValueError(f"--input: expected paths with commas between, got an empty one in {text!r}; take it out.")
    return [absolute(part) for part in parts]


def say(text: str) -> None:
    """Writes to standard output at once, so that a log file shows how far it is."""
    sys.stdout.write(text)
    sys.stdout.flush()
