"""What importing the package does to MONAI: short names resolve, nothing of MONAI's own is replaced, nothing else."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

from monai.bundle import ComponentLocator, ConfigParser
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pad, Pool

import monai_scaleequiv
from monai_scaleequiv.layers._factories import register_layers

FACTORIES = {"Act": Act, "Conv": Conv, "Dropout": Dropout, "Norm": Norm, "Pad": Pad, "Pool": Pool}
ADDED = {
    "Act": {"SILU"},
    "Conv": {"SCALE_GROUP", "SCALE_LIFTING", "SCALE_POINTWISE"},
    "Dropout": {"SCALE_DROPOUT"},
    "Norm": {"SCALE_BATCH", "SCALE_GROUP", "SCALE_INSTANCE", "SPLIT_INSTANCE"},
    "Pad": set(),
    "Pool": {"SCALE_AVG", "SCALE_MAX"},
}
OPTIONAL = ("fire", "tensorboard", "onnx", "onnxruntime", "onnxscript", "matplotlib.pyplot", "mlflow")


def _in_new_process(folder, code):
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


def _modules():
    """Names of all modules of the package, bundles aside, and of those that are rooms with public names."""
    found = [
        m for m in pkgutil.walk_packages(monai_scaleequiv.__path__, "monai_scaleequiv.") if ".bundles" not in m.name
    ]
    return ["monai_scaleequiv", *(m.name for m in found)], ["monai_scaleequiv", *(m.name for m in found if m.ispkg)]


def _public(module):
    """Classes and functions that a room exports."""
    names = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    return {name: value for name, value in names.items() if inspect.isclass(value) or inspect.isfunction(value)}


def test_every_name_is_free_in_monai_and_every_public_one_is_found_once():
    locator = ComponentLocator(excludes="monai_scaleequiv")
    of_monai = set(locator._find_classes_or_functions(locator._find_module_names()))
    assert {"UNet", "SEResNet50"} <= of_monai
    modules, rooms = _modules()
    assert {"monai_scaleequiv.cli._main", "monai_scaleequiv.nets._seunet"} <= set(modules)
    for module in modules:
        importlib.import_module(module)
        # Private names too: the locator takes them as well, and the order of imports would decide.
        assert set(ComponentLocator()._find_classes_or_functions([module])) & of_monai == set(), module
    locator = ComponentLocator()
    for room in rooms:
        for name in _public(sys.modules[room]):
            found = locator.get_component_module_name(name)
            assert isinstance(found, str), f"{name} of {room} is defined in {found}"
            assert found.startswith("monai_scaleequiv."), found


def test_public_names_are_complete():
    for room in map(importlib.import_module, _modules()[1]):
        values = {k: v for k, v in vars(room).items() if not k.startswith("_") and k != "register_layers"}
        imported = {name for name, value in values.items() if inspect.isclass(value) or inspect.isfunction(value)}
        assert imported == set(_public(room)), room.__name__


def test_short_names_build(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    net = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    for name, arguments in {
        "SEUNet": {**net, "channels": [4, 8], "strides": [2]},
        "RepUXNet": {**net, "depths": [1], "feature_size": [4], "kernel_size": 7, "hidden_size": 4},
        "ScaleLiftingConv": net,
        "ScaleProjection": {},
        "PerScale": {"layer": {"_target_": "torch.nn.Identity"}},
        "CheckVolumed": {"keys": "image"},
        "SpacingHausdorffDistanceMetric": {"percentile": 95},
        "InputGridWriter": {},
        "monai_scaleequiv.SEUNet": {**net, "channels": [4, 8], "strides": [2]},
    }.items():
        parser = ConfigParser({"item": {"_target_": name, **arguments}})
        assert type(parser.get_parsed_content("item")).__name__ == name.split(".")[-1]
    parser = ConfigParser({"datalist": {"_target_": "nifti_datalist", "source": str(tmp_path)}})
    assert parser.get_parsed_content("datalist") == [{"image": str(tmp_path / "a.nii.gz")}]


def test_bundle_config_needs_its_import_line(tmp_path):
    code = """
from monai.bundle import ConfigParser
for imports in ([], ["$import monai_scaleequiv"]):
    parser = ConfigParser({"imports": imports, "check": {"_target_": "CheckVolumed", "keys": ["image"]}})
    try:
        parser.parse(True)
        print(type(parser.get_parsed_content("check")).__module__)
    except Exception as error:
        while error is not None:
            print(error)
            error = error.__cause__
"""
    without, with_line = _in_new_process(tmp_path, code).stdout.split("Cannot locate")
    assert "monai_scaleequiv." not in without
    assert "monai_scaleequiv." in with_line


IMPORT = """
import json, os, sys, threading, time
import monai, torch
from monai.networks.layers import factories

def torch_state():
    return [str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()]

FACTORIES = ("Act", "Conv", "Dropout", "Norm", "Pad", "Pool")
files = sorted(os.listdir())
modules = set(sys.modules)
threads = threading.active_count()
state = torch_state()
entries = {name: dict(getattr(factories, name).components) for name in FACTORIES}
for stream in (sys.stdout, sys.stderr):
    print("<monai>", file=stream, flush=True)
start = time.process_time()
import monai_scaleequiv
seconds = time.process_time() - start  # which another process does not lengthen
for stream in (sys.stdout, sys.stderr):
    print("<monai_scaleequiv>", file=stream, flush=True)
after = {name: dict(getattr(factories, name).components) for name in FACTORIES}
print(json.dumps({
    "seconds": seconds,
    "files": sorted(set(os.listdir()) - set(files)),
    "modules": sorted(set(sys.modules) - modules),
    "threads": threading.active_count() - threads,
    "torch_untouched": torch_state() == state,
    "replaced": [f"{f}: {n}" for f in FACTORIES for n in entries[f] if after[f].get(n) is not entries[f][n]],
    "added": {f: sorted(set(after[f]) - set(entries[f])) for f in FACTORIES},
}))
"""


def test_import_is_quick_and_leaves_no_trace(tmp_path):
    for _ in range(3):  # the fastest of up to three tries
        run = _in_new_process(tmp_path, IMPORT)
        result = json.loads(run.stdout.splitlines()[-1])
        if result["seconds"] < 0.3:
            break
    assert result["seconds"] < 0.3
    for text in (run.stdout, run.stderr):
        assert text.split("<monai>\n")[1].split("<monai_scaleequiv>\n")[0] == ""
    assert (result["files"], result["threads"], result["replaced"]) == ([], 0, [])
    assert result["torch_untouched"]
    assert {name: set(added) for name, added in result["added"].items()} == ADDED
    # Eager, for what is not imported, MONAI's locator does not find; but no tool comes with it.
    assert "monai_scaleequiv.nets._seunet" in result["modules"]
    assert [name for name in result["modules"] if name.startswith((*OPTIONAL, "monai_scaleequiv.cli"))] == []


def test_registering_again_and_entries_that_exist_change_nothing(monkeypatch):
    before = {name: dict(factory.components) for name, factory in FACTORIES.items()}
    register_layers()
    assert {name: dict(factory.components) for name, factory in FACTORIES.items()} == before
    theirs = object()
    monkeypatch.setitem(Act.components, "SILU", theirs)
    register_layers()
    assert Act.components["SILU"] is theirs
