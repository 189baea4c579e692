"""Exported bundles: what is in the folder, and that it runs where MONAI is and this package is not."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import monai_scaleequiv
from monai_scaleequiv.cli import main
from tests.bundle_runs import CPU, FOLDERS, QUICK, config, files, load, run, tiny
from tests.conftest import ROOT

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors, of the extra [test], is not installed")
SCHEMA = ROOT / "tests" / "data" / "meta_schema_20240725.json"
META = ["--meta_file", "configs/metadata.json"]
# Runs commands of MONAI's one after the other, then names the files of this package that were imported.
PROGRAM = """
import json, runpy, sys
import monai.bundle
commands, images = json.loads(sys.argv[1])
for command in commands:
    sys.argv[:] = ["monai.bundle", *command]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
monai.bundle.load("elsewhere", bundle_dir="..", device="cpu")
workflow = monai.bundle.ConfigWorkflow("configs/inference.json", workflow_type="infer", dataset_dir=images)
workflow.initialize()
assert workflow.check_properties() == []
print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.startswith("monai_scaleequiv")]))
"""


def export(bundle, folder):
    assert main(["export_bundle", str(bundle), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    return export(bundle, tmp_path_factory.mktemp("exported") / bundle.name)


def environment(folder, names):
    """A folder with links to what these distributions and those that they require have installed, and nothing else."""
    names, seen = list(names), set()
    for name in names:
        found = importlib.metadata.distribution(name)
        if found.name not in seen:
            seen.add(found.name)
            required = [Requirement(text) for text in found.requires or []]
            names += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
            for part in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
                if not (folder / part).exists():
                    (folder / part).symlink_to(found.locate_file(part))
    return folder


@pytest.fixture(scope="module")
def elsewhere(exported, tmp_path_factory):
    """Variables of an environment with MONAI, what the metadata name, and what MONAI checks metadata with."""
    named = config(exported, "metadata")["required_packages_version"]
    links = environment(tmp_path_factory.mktemp("site"), ["monai", "torch", "numpy", *named, "jsonschema"])
    return {**os.environ, "PYTHONPATH": str(links), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def python(*arguments, cwd, env):
    """Python without the packages that are installed for the one that runs the tests."""
    return subprocess.run([sys.executable, "-S", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def verification():
    """The steps of the Model Zoo's ci/verify_bundle.py that are commands of MONAI's."""
    network = ["network_def", *META, "--config_file", "configs/inference.json"]
    return [
        ["verify_metadata", *META, "--filepath", "eval/schema.json"],
        ["verify_net_in_out", *network, "--device", "cpu"],
        ["ckpt_export", *network, "--filepath", "models/verify_model.ts", "--ckpt_file", "models/model.pt"],
    ]


def runs(bundle, phantoms, output):
    """Training for an epoch, evaluation and sweep of its outcome, inference with the weights that are shipped."""
    small = {**tiny(bundle), **QUICK, "epochs": 1, "device": CPU, "dataset_dir": str(phantoms)}
    weights = str(output / "train" / "models" / "model.pt")
    trained = {**tiny(bundle), "ckpt_path": weights, "device": CPU, "dataset_dir": str(phantoms)}
    image = str(phantoms / "imagesTr" / "phantom_000.nii.gz")
    for names, name, options in (
        (["train"], "train", small),
        (["train", "evaluate"], "evaluate", trained),
        (["train", "evaluate", "sweep"], "sweep", {**trained, "scales": [1]}),
        (["inference"], "infer", {"dataset_dir": image, "device": CPU}),
    ):
        given = {"config_file": [f"configs/{name}.json" for name in names], "output_dir": str(output / name), **options}
        yield [
            "run",
            *(f"--{id}={value if isinstance(value, str) else json.dumps(value)}" for id, value in given.items()),
        ]


@pytest.mark.parametrize(
    "bundle",
    [pytest.param(f.name, marks=[] if "seunet" in f.name else pytest.mark.slow) for f in FOLDERS],
    indirect=True,
)
def test_exported_bundle_runs_without_the_package(bundle, exported, elsewhere, phantoms, tmp_path):
    absent = python("-c", "import monai_scaleequiv", cwd=tmp_path, env=elsewhere)
    assert "No module named 'monai_scaleequiv'" in absent.stderr
    copied = Path(shutil.copytree(exported, tmp_path / "elsewhere"))
    (copied / "eval").mkdir()
    shutil.copy(SCHEMA, copied / "eval" / "schema.json")
    commands = [*verification(), *runs(bundle, phantoms, tmp_path)]
    done = python("-c", PROGRAM, json.dumps([commands, str(phantoms / "imagesTr")]), cwd=copied, env=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    imported = json.loads(done.stdout.splitlines()[-1])
    assert len(imported) > 50
    assert [file for file in imported if not Path(file).is_relative_to(copied / "scripts")] == []
    assert torch.jit.load(copied / "models" / "verify_model.ts")
    assert len(load(tmp_path / "train" / "models" / "model.pt")) > 0
    assert (tmp_path / "evaluate" / "metrics.csv").is_file()
    assert (tmp_path / "sweep" / "sweep.png").is_file()
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    run(bundle, "inference", dataset_dir=image, output_dir=tmp_path / "expected")
    ours, theirs = (nib.load(tmp_path / folder / "phantom_000_seg.nii.gz") for folder in ("expected", "infer"))
    assert len(np.unique(ours.dataobj)) > 1
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


@pytest.mark.slow
def test_modules_of_the_bundle_win_over_installed_ones(exported, elsewhere, tmp_path):
    both = {**elsewhere, "PYTHONPATH": os.pathsep.join([str(ROOT), str(exported), elsewhere["PYTHONPATH"]])}
    load = f"monai.bundle.load({exported.name!r}, bundle_dir={str(exported.parent)!r}, device='cpu')"
    code = f"import sys, monai.bundle; print(sys.modules[type({load}).__module__].__file__)"
    done = python("-c", code, cwd=tmp_path, env=both)
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(exported / "scripts"), done.stderr[-3000:]


@pytest.fixture
def reachable(exported, monkeypatch):
    """The exported folder on the path of this process, which has imported the package already."""
    monkeypatch.setattr(sys, "path", [str(exported), *sys.path])
    yield exported
    sys.modules.pop("scripts", None)


def test_another_version_that_was_imported_before_is_a_warning(reachable, monkeypatch):
    import scripts

    assert scripts.monai_scaleequiv is monai_scaleequiv
    del sys.modules["scripts"]
    monkeypatch.setattr(monai_scaleequiv, "__version__", "0.0.1")
    with pytest.warns(UserWarning, match=r"expected monai_scaleequiv [\d.]+, got 0\.0\.1 of .*; start a new process"):
        import scripts


def test_commands_of_the_package_take_an_exported_bundle(reachable, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[1:])
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    arguments = [f"--input={image}", f"--output={tmp_path / 'out'}", f"--bundle={reachable}", "--device=cpu"]
    assert main(["infer", *arguments, "--debug"]) == 0
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").is_file()


def test_what_is_in_an_exported_bundle(bundle, exported):
    assert {p.name for p in exported.iterdir()} == {"LICENSE", "SHA256SUMS", "configs", "docs", "models", "scripts"}
    lines = [line.split("  ") for line in (exported / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]
    sums = {exported / name: digest for digest, name in lines}
    found = files(exported)
    assert set(found) - set(sums) == {exported / "SHA256SUMS"}
    assert {file: hashlib.sha256(found[file]).hexdigest() for file in sums} == sums
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=exported, check=True)
    tensors, weights = (
        safetensors.load_file(exported / "models" / "model.safetensors"),
        load(exported / "models" / "model.pt"),
    )
    assert set(tensors) == set(weights)
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    package = Path(monai_scaleequiv.__file__).parent
    modules = {file.relative_to(package): file.read_bytes() for file in package.rglob("*.py")}
    apart = ("auto3dseg", "cli", "nnunet", "__main__.py")
    modules = {file: code for file, code in modules.items() if file.parts[0] not in apart}
    copies = exported / "scripts" / "monai_scaleequiv"
    assert {file.relative_to(copies): file.read_bytes() for file in copies.rglob("*.py")} == modules
    for file in (file for file in files(bundle) if file.name != "metadata.json"):
        text = found[exported / file.relative_to(bundle)]
        plain = text.replace(b"$from scripts import monai_scaleequiv", b"$import monai_scaleequiv")
        assert plain == file.read_bytes()


def test_metadata_of_an_exported_bundle(bundle, exported):
    meta, source = config(exported, "metadata"), config(bundle, "metadata")
    jsonschema.validate(meta, json.loads(SCHEMA.read_text(encoding="utf-8")))
    listed = dict(source.pop("required_packages_version"))
    assert meta.pop("monai_scaleequiv_version") == listed.pop("monai-scaleequiv") == monai_scaleequiv.__version__
    required = meta.pop("required_packages_version")
    assert listed.items() <= required.items()
    assert required["matplotlib"] == importlib.metadata.version("matplotlib")  # of the sweep alone, by a late import
    assert meta == source


@pytest.mark.filterwarnings("ignore::ImportWarning")
def test_exports_that_fail_leave_nothing(bundle, exported, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    plain = Path(shutil.copytree(bundle, tmp_path / "plain"))
    for file in (plain / "configs").iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace("$import monai_scaleequiv", "$import glob"))
    bare = Path(shutil.copytree(bundle, tmp_path / "bare", ignore=shutil.ignore_patterns("*.pt")))
    nested = Path(shutil.copytree(bundle, tmp_path / "nested"))
    torch.save({"network": {}}, nested / "models" / "model.pt")
    before = files(tmp_path)
    for source, target, message in (
        (bundle, "mine", f"--output: {tmp_path / 'mine'} exists already; choose another folder"),
        (exported, "out", f"--bundle: {exported} has scripts/ of its own; export the bundle"),
        (plain, "out", f"--bundle: {plain}: expected a config with $import monai_scaleequiv among its imports"),
        (bare, "out", f"{bare / 'models' / 'model.pt'} does not exist"),
        (nested, "out", f"{nested / 'models' / 'model.pt'}: expected tensors alone, got dict; save network.state_dict"),
        ("seunet_hippocampus", "out", "did you mean seunet_hippocampus_segmentation?"),
        (bundle, "", "export_bundle: expected --output=PATH, got none"),
        (bundle, "plain/configs/train.json/out", "--output: expected a folder that can be written to"),
    ):
        assert main(["export_bundle", str(source), target and str(tmp_path / target)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(["export_bundle", str(bundle), str(tmp_path / "out")]) == 1
    assert "expected the package safetensors, got none; pip install safetensors." in capsys.readouterr().err
    assert files(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "mine", "nested", "plain"}
