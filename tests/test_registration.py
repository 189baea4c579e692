"""What importing the package does to MONAI: short names resolve, nothing of MONAI's own is replaced, nothing else."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys

import pytest
from monai.bundle import ComponentLocator, ConfigParser
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pad, Pool
from torch import nn

import monai_scaleequiv
from monai_scaleequiv import published
from monai_scaleequiv.layers._factories import register_layers

FACTORIES = {"Act": Act, "Conv": Conv, "Dropout": Dropout, "Norm": Norm, "Pad": Pad, "Pool": Pool}
ADDED = {
    "Act": {"SILU"},
    "Conv": {"SCALE_GROUP", "SCALE_LIFTING", "SCALE_POINTWISE"},
    "Dropout": {"SCALE_DROPOUT"},
    "Norm": {"SCALE_BATCH", "SCALE_GROUP", "SCALE_INSTANCE"},
    "Pad": set(),
    "Pool": {"SCALE_AVG", "SCALE_MAX"},
}
OPTIONAL = ("fire", "tensorboard", "onnx", "onnxruntime", "onnxscript", "matplotlib.pyplot", "mlflow")


def _in_new_process(folder, code):
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


def _modules():
    """Names of all modules of the package, bundles aside."""
    found = pkgutil.walk_packages(monai_scaleequiv.__path__, "monai_scaleequiv.")
    return ["monai_scaleequiv", *(m.name for m in found if not m.name.startswith("monai_scaleequiv.bundles"))]


def _public_names():
    for module in (monai_scaleequiv, published):
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                yield module, name


def _table(locator, modules):
    return locator._find_classes_or_functions(modules)


@pytest.fixture(scope="module")
def of_monai():
    """Class and function names of MONAI's own modules, as its locator finds them."""
    locator = ComponentLocator(excludes="monai_scaleequiv")
    table = _table(locator, locator._find_module_names())
    assert "UNet" in table
    assert "SEResNet50" in table
    return table


def test_modules_are_found():
    assert {"monai_scaleequiv.cli._main", "monai_scaleequiv.nets._seunet"} <= set(_modules())


@pytest.mark.parametrize("name", sorted({name for _, name in _public_names()}))
def test_public_name_is_free_in_monai_and_found_once(of_monai, name):
    assert name not in of_monai
    module = ComponentLocator().get_component_module_name(name)
    assert isinstance(module, str)
    assert module.startswith("monai_scaleequiv.")


@pytest.mark.parametrize("module", _modules())
def test_no_name_of_the_package_is_one_of_monai(of_monai, module):
    # Private ones too: the locator does not tell them apart, and the order of imports would decide.
    names = set(_table(ComponentLocator(), [module]))
    assert names & set(of_monai) == set()


@pytest.mark.parametrize("module", [monai_scaleequiv, published])
def test_public_names_are_complete(module):
    imported = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert imported == {name for owner, name in _public_names() if owner is module}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"_target_": "SEUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8]},
            monai_scaleequiv.SEUNet,
        ),
        (
            {"_target_": "ScaleLiftingConv", "spatial_dims": 2, "in_channels": 1, "out_channels": 2},
            monai_scaleequiv.ScaleLiftingConv,
        ),
        ({"_target_": "ScaleProjection"}, monai_scaleequiv.ScaleProjection),
        ({"_target_": "PerScale", "layer": {"_target_": "torch.nn.Identity"}}, monai_scaleequiv.PerScale),
        ({"_target_": "CheckVolumed", "keys": "image"}, monai_scaleequiv.CheckVolumed),
        ({"_target_": "EngineProgressBar", "desc": "train"}, monai_scaleequiv.EngineProgressBar),
        (
            {"_target_": "SpacingHausdorffDistanceMetric", "percentile": 95},
            monai_scaleequiv.SpacingHausdorffDistanceMetric,
        ),
        ({"_target_": "monai_scaleequiv.InputGridWriter"}, monai_scaleequiv.InputGridWriter),
    ],
    ids=lambda value: value["_target_"] if isinstance(value, dict) else "",
)
def test_short_name_builds(config, expected):
    parser = ConfigParser({"item": {**config, **({"strides": [2]} if "channels" in config else {})}})
    assert type(parser.get_parsed_content("item")) is expected


def test_short_name_of_a_function_calls_it(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    parser = ConfigParser({"datalist": {"_target_": "nifti_datalist", "source": str(tmp_path)}})
    assert parser.get_parsed_content("datalist") == [{"image": str(tmp_path / "a.nii.gz")}]


@pytest.mark.parametrize("imports", [[], ["$import monai_scaleequiv"]])
def test_bundle_config_needs_its_import_line(tmp_path, imports):
    config = {"imports": imports, "check": {"_target_": "CheckVolumed", "keys": ["image"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = """
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config("config.json")
parser.parse(True)
try:
    print(type(parser.get_parsed_content("check")).__module__)
except Exception as error:
    while error is not None:
        print(error)
        error = error.__cause__
"""
    out = _in_new_process(tmp_path, code).stdout
    assert out.startswith("monai_scaleequiv.data") if imports else "Cannot locate" in out


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
start = time.perf_counter()
import monai_scaleequiv
seconds = time.perf_counter() - start
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


@pytest.fixture(scope="module")
def fresh_import(tmp_path_factory):
    """What the import did in a new process, and what it printed; the fastest of up to three tries."""
    best = None
    for _ in range(3):
        run = _in_new_process(tmp_path_factory.mktemp("cwd"), IMPORT)
        result = json.loads(run.stdout.splitlines()[-1])
        result["printed"] = [
            text.split("<monai>\n")[1].split("<monai_scaleequiv>\n")[0] for text in (run.stdout, run.stderr)
        ]
        best = result if best is None or result["seconds"] < best["seconds"] else best
        if best["seconds"] < 0.3:
            break
    return best


def test_import_prints_nothing(fresh_import):
    assert fresh_import["printed"] == ["", ""]


def test_import_leaves_no_file_and_starts_no_thread(fresh_import):
    assert fresh_import["files"] == []
    assert fresh_import["threads"] == 0


def test_import_leaves_generators_threads_and_modes_of_torch_alone(fresh_import):
    assert fresh_import["torch_untouched"]


def test_import_is_quick(fresh_import):
    assert fresh_import["seconds"] < 0.3


def test_import_is_eager_but_brings_in_no_tool(fresh_import):
    imported = fresh_import["modules"]
    assert "monai_scaleequiv.nets._seunet" in imported  # what is not imported, MONAI's locator does not find
    assert [name for name in imported if name.startswith((*OPTIONAL, "monai_scaleequiv.cli"))] == []


def test_import_adds_factory_entries_and_replaces_none(fresh_import):
    assert fresh_import["replaced"] == []
    assert {name: set(added) for name, added in fresh_import["added"].items()} == ADDED


def test_registering_again_changes_nothing():
    before = {name: dict(factory.components) for name, factory in FACTORIES.items()}
    register_layers()
    after = {name: dict(factory.components) for name, factory in FACTORIES.items()}
    assert after == before


def test_entry_that_exists_already_stays(monkeypatch):
    theirs = object()
    monkeypatch.setitem(Act.components, "SILU", theirs)
    register_layers()
    assert Act.components["SILU"] is theirs


@pytest.mark.parametrize(
    ("entry", "layer"),
    [
        (lambda: Conv["CONV", 3], nn.Conv3d),
        (lambda: Conv["CONVTRANS", 2], nn.ConvTranspose2d),
        (lambda: Norm["BATCH", 3], nn.BatchNorm3d),
        (lambda: Norm["INSTANCE", 3], nn.InstanceNorm3d),
        (lambda: Norm["GROUP", 3], nn.GroupNorm),
        (lambda: Pool["MAX", 3], nn.MaxPool3d),
        (lambda: Dropout["DROPOUT", 3], nn.Dropout3d),
        (lambda: Act["RELU"], nn.ReLU),
        (lambda: Act["PRELU"], nn.PReLU),
    ],
)
def test_monai_entries_give_what_they_gave(entry, layer):
    assert entry() is layer
