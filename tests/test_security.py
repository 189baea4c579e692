"""What files from strangers can do: checkpoints, lists of files, names; and what the shipped configs may do."""

import contextlib
import json
import os
import pickle
import pydoc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.data import load_decathlon_datalist

from monai_scaleequiv.cli import main
from monai_scaleequiv.data import check_dataset, load_datalist, make_phantom_dataset, read_record, read_weights

from .conftest import BUNDLES, ROOT
from .fault_files import cut, write_task, write_volume
from .memory_run import write_weights
from .test_bundles import expressions, unexpected

BUNDLE_NAMES = sorted(path.parent.name for path in BUNDLES.glob("*/configs"))
FILES = sorted(path for path in BUNDLES.glob("*/configs/*.json") if path.stem != "metadata")
ROOTS = ("monai.", "monai_scaleequiv.", "torch.nn.", "torch.optim.", "ignite.handlers.")
CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}


# Checkpoints.


class Attack:
    """Whoever unpickles this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(params=["whole", "within", "under its key", "plain pickle"])
def attack(request, tmp_path):
    """A checkpoint that makes the folder ``owned`` when it is unpickled."""
    file, payload = tmp_path / "evil.pt", Attack(tmp_path / "owned")
    weights = torch.nn.Conv3d(1, 3, 1).state_dict()
    content = {
        "whole": payload,
        "within": {**weights, "bias": payload},
        "under its key": {"network": weights, "note": payload},
        "plain pickle": {"network": weights, "note": payload},
    }[request.param]
    if request.param == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    return file


def error_in_one_line(capsys, attack, tmp_path, *arguments):
    status = main([*arguments, f"--output={tmp_path / 'out'}"])
    err = capsys.readouterr().err
    assert status == 1
    assert not (tmp_path / "owned").exists()
    (error,) = (line for line in err.splitlines(keepends=True) if not line.startswith("warning: "))
    return error


def test_the_attack_is_real(attack, tmp_path):
    with open(attack, "rb") as file:  # noqa: PTH123
        if attack.read_bytes()[:2] == b"PK":
            torch.load(file, weights_only=False)
        else:
            pickle.load(file)
    assert (tmp_path / "owned").is_dir()


@pytest.mark.parametrize("command", ["infer", "infer --native", "evaluate", "equivariance"])
def test_malicious_checkpoint_is_not_read_on_the_command_line(capsys, attack, tmp_path, command):
    data = make_phantom_dataset(tmp_path / "data", cases=5, size=(16, 20, 16)).parent
    source = data if command == "evaluate" else data / "imagesTr"
    weights = [f"--input={source}", f"--ckpt_path={attack}"]
    network = "--network" if command == "equivariance" else "--network_def"
    err = error_in_one_line(capsys, attack, tmp_path, *command.split(), *weights, f"{network}={json.dumps(CONV)}")
    assert err.startswith(f"error: {attack}: expected plain weights, got ")
    assert not list((tmp_path / "out").glob("*_seg.nii.gz"))


def test_malicious_checkpoint_is_not_read_on_resuming(capsys, attack, tmp_path):
    data = make_phantom_dataset(tmp_path / "data", cases=5, size=(16, 20, 16)).parent
    quick = ["--epochs=1", "--patch_size=[16,16,16]", "--cache_rate=0"]
    arguments = ["train", f"--input={data}", f"--resume={attack}", f"--network_def={json.dumps(CONV)}", *quick]
    assert error_in_one_line(capsys, attack, tmp_path, *arguments).startswith(f"error: {attack}: expected ")


@pytest.mark.parametrize("name", BUNDLE_NAMES)
def test_malicious_checkpoint_is_not_read_by_the_bundle(attack, tmp_path, name):
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / name / "configs" / "inference.json"))
    image = write_volume(tmp_path / "a.nii.gz", shape=(8, 8, 8))
    parser.update({"dataset_dir": str(image), "output_dir": str(tmp_path / "out"), "ckpt_path": str(attack)})
    parser.update({"device": "$torch.device('cpu')", "network_def": CONV})
    with pytest.raises(Exception, match=r"expected plain weights|\.run\(\)"):
        parser.get_parsed_content("run")
    assert not (tmp_path / "owned").exists()
    assert not list((tmp_path / "out").glob("*"))


def test_what_a_malicious_checkpoint_calls(tmp_path):
    torch.save({"weight": Attack(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(
        ValueError, match=rf"evil.pt: expected plain weights, got a pickle that calls {os.name}\.mkdir; "
    ):
        read_weights(tmp_path / "evil.pt")


@pytest.mark.parametrize("share", [0, 0.1, 0.9, 0.999])
def test_damaged_checkpoint(tmp_path, share):
    file = write_weights(tmp_path / "model.pt", 3)
    cut(file, share)
    with pytest.raises(ValueError, match=r"model.pt: expected plain weights, got ") as raised:
        read_weights(file)
    assert "\n" not in str(raised.value)


def test_flipped_bit_in_a_checkpoint(tmp_path):
    file = write_weights(tmp_path / "model.pt", 3)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        values = next(archive.read(name) for name in archive.namelist() if "/data/" in name)
    content[content.index(values)] ^= 64
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # takes it
    with pytest.raises(
        ValueError, match=r"model.pt: expected a whole checkpoint, got one damaged at .*; copy it again"
    ):
        read_weights(file)


def test_checkpoint_without_checksums(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="old.pt is in the format of torch before 1.6, without checksums"):
        assert read_weights(tmp_path / "old.pt")["weight"].sum() == 2


@pytest.mark.filterwarnings("ignore:.*without checksums")
@pytest.mark.parametrize("at", range(0, 400, 25))
def test_mutated_checkpoint_without_checksums(tmp_path, at):
    file = tmp_path / "old.pt"
    torch.save({"weight": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 0xFF
    file.write_bytes(content)
    with contextlib.suppress(ValueError):  # any other error is none of ours
        read_weights(file)


def test_checkpoint_without_names(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: expected a state dict, got list; save network.state_dict"):
        read_weights(tmp_path / "list.pt")


def test_nothing_in_the_package_loads_more_than_weights():
    sources = sorted((ROOT / "monai_scaleequiv").rglob("*.py"))
    loading = [line for file in sources for line in file.read_text().splitlines() if "torch.load(" in line]
    assert loading
    assert [line for line in loading if "weights_only=True" not in line] == []
    text = "".join(file.read_text() for file in sources)
    assert [
        word for word in ("pickle.load", "joblib", "shelve", "allow_pickle", "urlopen", "os.system(") if word in text
    ] == []


# The record beside weights, whose values come into configs.

NO_NETWORKS = ("Compose", "PerceptualLoss", "get_act_layer", "antigravity", "eval", "N()", "")


@pytest.mark.parametrize(
    "value",
    [
        {"network_def": {"_target_": "os.system", "command": "true"}},
        {"network_def": {"_target_": "Conv3d", "bias": {"_target_": "open", "file": "a", "mode": "w"}}},
        {"network_def": {"_target_": ["Conv3d"]}},
        *({"network_def": {"_target_": name}} for name in NO_NETWORKS),
        {"spacing": ["$__import__('os').system('true')", 1, 1]},
        {"normalization": {"nonzero": "@device"}},
        {"num_classes": "%train.json::epochs"},
        *({"network_def": {"_target_": "Conv3d", key: "x"}} for key in ("_requires_", "_mode_", "_disabled_", "a#b")),
    ],
)  # fmt: skip
def test_a_record_runs_nothing(tmp_path, value):
    (tmp_path / "model.json").write_text(json.dumps({"in_channels": 1, **value}))
    with pytest.raises(ValueError, match=r"model.json: expected plain values and names of networks, got ") as raised:
        read_record(tmp_path / "model.pt")
    assert "\n" not in str(raised.value)


def test_a_record_of_any_network_is_read(tmp_path):
    for name in ("Conv3d", "UNet", "SEUNet", "Flatten", "Identity", "ANetworkOfAUser"):
        record = {"network_def": {"_target_": name}, "training_cases": {"_a#1.nii": 3}}
        (tmp_path / "model.json").write_text(json.dumps(record))
        assert read_record(tmp_path / "model.pt") == record


# Configs.


def entries(part, key=""):
    """Keys and values of a config, at every depth."""
    for name, value in part.items() if isinstance(part, dict) else ((key, value) for value in part):
        yield name, value
        if isinstance(value, (dict, list)):
            yield from entries(value, name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parents[1].name}/{file.stem}")
def test_components_of_shipped_configs_are_those_of_monai_torch_and_this_package(file):
    locator = ComponentLocator(excludes=None)
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in {value for key, value in entries(content) if key == "_target_"}:
        if name.startswith("@"):  # a component that stands elsewhere in this config, as it is
            assert "_target_" in ConfigParser(content)[name[1:]]
            continue
        assert not name.startswith(("$", "@", "%"))
        path = name if "." in name else locator.get_component_module_name(name)
        paths = path if isinstance(path, list) else [path]
        assert paths
        assert None not in paths, name
        full = {p if "." in name else f"{p}.{name}" for p in paths}
        assert all(p.startswith(ROOTS) for p in full), full
        assert all(callable(pydoc.locate(p)) for p in full)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parents[1].name}/{file.stem}")
def test_shipped_configs_include_no_other_files(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    found = {
        text for pair in entries(content) for text in pair if isinstance(text, str) and text.startswith(("_", "%"))
    }
    assert found <= {"_target_", "_disabled_", "_mode_"}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "import subprocess",
        "from os import system",
        "os.system('true')",
        "open('/etc/passwd').read()",
        "eval('1')",
        "exec('1')",
        "().__class__.__bases__",
        "torch.load('x', weights_only=False)",
        "torch.hub.load('a', 'b')",
        "(lambda: sys.modules['os'].system('true'))()",
        "[f for f in [print]][0](3)",
        "getattr(torch, 'load')('x')",
        "torch._utils",
        "__builtins__['eval']",
        "@network.to.__globals__",
        "(x := 3)",
    ],
)
def test_rules_for_expressions_see_what_should_not_be_there(expression):
    assert unexpected(expression)


def test_rules_for_expressions_see_into_every_corner():
    config = {"a": [{"b": {"c": "$os.system('true')"}}], "d": {"_disabled_": "$1"}}
    assert set(expressions(config)) == {"os.system('true')", "1"}


# Paths.


def escape(task, tmp_path, path, key="image"):
    """Puts a path that leaves the folder on the list of a task, to a sound file."""
    outside = write_volume(tmp_path / "outside" / "secret.nii.gz")
    listed = json.loads((task / "dataset.json").read_text())
    listed["training"][1][key] = path.format(absolute=outside)
    (task / "dataset.json").write_text(json.dumps(listed))


OUTSIDE = ["../outside/secret.nii.gz", "./imagesTr/../../outside/secret.nii.gz", "{absolute}"]


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_data_list_that_leaves_its_folder_is_not_read(capsys, tmp_path, path, key):
    task = write_task(tmp_path / "task")
    escape(task, tmp_path, path, key)
    leaving = load_decathlon_datalist(str(task / "dataset.json"), data_list_key="training")
    assert Path(leaving[1][key]).resolve() == tmp_path / "outside" / "secret.nii.gz"  # MONAI follows it
    found = rf"dataset.json, training\[1\]: expected a path inside {task}, got .*secret.nii.gz; copy the file there\."
    for read in (check_dataset, load_datalist):
        with pytest.raises(ValueError, match=found):
            read(task)
    assert main(["check", str(task)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_data_list_of_a_sound_task_is_monai_s(tmp_path):
    task = write_task(tmp_path / "task")
    listed = json.loads((task / "dataset.json").read_text())
    listed["training"][0]["image"] = "imagesTr/./sub/../case_0.nii.gz"  # stays inside
    (task / "dataset.json").write_text(json.dumps(listed))
    expected = load_decathlon_datalist(str(task / "dataset.json"), data_list_key="training")
    expected = [{key: os.path.normpath(path) for key, path in item.items()} for item in expected]
    assert load_datalist(task) == load_datalist(task / "dataset.json") == expected
    with pytest.raises(ValueError, match="expected cases under 'validation', got none; name another list"):
        load_datalist(task, "validation")


@pytest.mark.parametrize("name", ["..a.nii.gz", "-a b;c$(d).nii.gz", "%2e%2e%2fa.nii", "é\\..\\a.nii.gz", "{b}.nii.gz"])
def test_results_stay_in_the_output_folder(tmp_path, name):
    image = nib.Nifti1Image(np.arange(12**3, dtype=np.float32).reshape(12, 12, 12), np.eye(4))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"../../../evil"
    folder = tmp_path / "in" / "deep" / "er"
    folder.mkdir(parents=True)
    file = folder / name.lstrip(".")
    nib.save(image, file)
    weights = write_weights(tmp_path / "weights.pt", 3)
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    options = [f"--ckpt_path={weights}", f"--network_def={json.dumps(CONV)}", "--roi_size=[12,12,12]"]
    assert main(["infer", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *options]) == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == file.name.removesuffix(".gz").removesuffix(".nii") + "_seg.nii.gz"
    assert {path for path in tmp_path.rglob("*") if "out" not in path.relative_to(tmp_path).parts} == before


def test_a_link_in_the_output_folder_is_replaced_and_not_followed(tmp_path):
    image = write_volume(tmp_path / "in" / "a.nii.gz", shape=(12, 12, 12))
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_seg.nii.gz").symlink_to(victim)
    weights = write_weights(tmp_path / "weights.pt", 3)
    options = [f"--ckpt_path={weights}", f"--network_def={json.dumps(CONV)}", "--roi_size=[12,12,12]", "--overwrite"]
    assert main(["infer", f"--input={image}", f"--output={tmp_path / 'out'}", *options]) == 0
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out" / "a_seg.nii.gz").is_symlink()
    assert set(np.unique(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj)) <= {0, 1, 2}


# Promises.


def test_nothing_is_downloaded():
    """No weights, no data: SECURITY.md says so."""
    assert (ROOT / "SECURITY.md").is_file()
    assert list(ROOT.glob("bundles/**/large_files.y*ml")) == []
    sources = "".join(file.read_text() for file in (ROOT / "monai_scaleequiv").rglob("*.py"))
    for word in ("http://", "https://", "download_url", "requests", "urllib", "socket", "hf_hub"):
        assert word not in sources, word
