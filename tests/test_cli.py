"""Command line: what is refused, how it is told, and what reaches ``monai.bundle``."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from monai_scaleequiv import SEUNet, consistency_dice, equivariance_error, make_phantom_dataset, rescale
from monai_scaleequiv.cli import main
from monai_scaleequiv.cli._bundles import find_bundle
from monai_scaleequiv.cli._commands import COMMANDS
from monai_scaleequiv.cli._equivariance import ratios_to_measure, whole_sizes
from monai_scaleequiv.cli._overrides import check_overrides, override_value

from . import memory_run

BUNDLE = "seunet_hippocampus_segmentation"


@pytest.fixture
def parser():
    parser = ConfigParser()
    parser.read_config(find_bundle(BUNDLE) / "configs" / "train.json")
    return parser


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", cases=2).parent


@pytest.fixture
def handed_over(monkeypatch):
    """What ``monai.bundle.run`` is called with; nothing runs."""
    calls = []
    monkeypatch.setattr("monai.bundle.run", lambda **arguments: calls.append(arguments))
    return calls


def _error(capsys, *argv):
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("false", False),
        ("False", False),
        ("null", "$None"),
        ("None", "$None"),
        ("[32,48,32]", [32, 48, 32]),
        ("[axial,coronal]", ["axial", "coronal"]),
        ('{"lr": 1}', {"lr": 1}),
        ("@train#dataset", "@train#dataset"),
        ("word#part", "word#part"),
        ("$torch.device('cpu')", "$torch.device('cpu')"),
        ("some/model.pt", "some/model.pt"),
        ("~/model.pt", str(Path.home() / "model.pt")),
    ],
)
def test_override_value(text, value):
    assert override_value(text) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 5),
        ("train#trainer#max_epochs", 3),
        ("train::trainer::max_epochs", 3),
        ("train#trainer#epoch_length", 1),  # not in the config, but a parameter of SupervisedTrainer
        ("optimizer#betas", [0.9, 0.99]),
        ("to_working_grid#6#pixdim", 2),
        ("train#handlers#0#_disabled_", True),
    ],
)
def test_known_ids_are_applied(parser, key, value):
    check_overrides(parser, {key: value})
    assert parser[key] == value


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("epoch", "--epochs?"),
        ("train#trainer#max_epoch", "--train#trainer#max_epochs?"),
        ("train::trainer::max_epoch", "--train::trainer::max_epochs?"),
        ("trian#trainer#max_epochs", "--train#trainer#max_epochs?"),
        ("optimizer#weight_deacy", "--optimizer#weight_decay?"),
        ("network_def#chanels", "--network_def#channels?"),
        ("to_working_grid#30#pixdim", "--to_working_grid#6#pixdim?"),
        ("network#channels", "override it whole."),
        ("zzzzzzzz", "choose one of "),
    ],
)
def test_unknown_ids_are_refused(parser, key, near):
    with pytest.raises(ValueError, match=f"^--{key}: ") as refused:
        check_overrides(parser, {key: 1})
    assert near in str(refused.value)


WORDS = ("no", "off", "n", "FALSE", "'false'", '"no"', "yes")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *itertools.product(("overwrite", "skip_existing", "load_pretrain"), (*WORDS, "0", "1", "[]", "epoch")),
        *(("amp", word) for word in WORDS),  # an expression in the config, which tells no kind
    ],
)
def test_no_text_counts_as_true(capsys, handed_over, phantoms, key, value):
    error = _error(capsys, "infer", f"--input={phantoms}", "--output=out", f"--{key}={value}")
    assert error.startswith(f"error: --{key}: expected true or false, got ")
    assert error.endswith(f"; write --{key}=true or --{key}=false.\n")
    assert not handed_over


@pytest.mark.parametrize("value", ["true", "True", "false", "$True", "@load_pretrain"])
def test_truth_values_expressions_and_references_are_taken(handed_over, phantoms, value):
    assert main(["infer", f"--input={phantoms}", "--output=out", f"--overwrite={value}"]) == 0
    assert handed_over[0]["overwrite"] == {"true": True, "True": True, "false": False}.get(value, value)


def test_weights_in_a_file_with_the_name_of_a_truth_value(handed_over, phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("no").touch()
    assert main(["infer", f"--input={phantoms}", "--output=out", "--ckpt_path=no"]) == 0
    assert handed_over[0]["ckpt_path"] == "no"


def test_overwrite_no_replaces_nothing(capsys, phantoms, tmp_path):
    (tmp_path / "phantom_000_seg.nii.gz").write_bytes(b"mine")
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    _error(capsys, "infer", f"--input={image}", f"--output={tmp_path}", "--overwrite=no")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--epochs=0", "--epochs: expected a whole number of at least 1, got 0; write --epochs=3"),
        ("--epochs=1.5", "--epochs: expected a whole number of at least 1, got 1.5"),
        ("--num_classes=abc", "--num_classes: expected a whole number of at least 1, got 'abc'"),
        ("--num_classes=null", "--num_classes: expected a whole number of at least 1, got None"),
        ("--batch_size", "--batch_size: expected a whole number of at least 1, got True"),
        ("--validate#inferer#sw_batch_size=-1", "sw_batch_size: expected a whole number of at least 1, got -1"),
        ("--learning_rate=fast", "--learning_rate: expected a number such as 0.004, got 'fast'"),
        ("--roi_size=large", "--roi_size: expected a list such as [40, 56, 40], got 'large'; write it in brackets"),
        ("--train#handlers=none", "--train#handlers: expected a list such as [...], got 'none'"),
    ],
)
def test_values_of_another_kind(capsys, handed_over, phantoms, option, told):
    assert told in _error(capsys, "train", f"--input={phantoms}", "--output=out", option)
    assert not handed_over


@pytest.mark.parametrize("command", ["evaluate", "infer"])
@pytest.mark.parametrize(("value", "got"), [("", "''"), ("null", "None"), ("3", "3"), ("true", "True")])
def test_weights_without_a_path(capsys, handed_over, phantoms, command, value, got):
    error = _error(capsys, command, f"--input={phantoms}", "--output=out", f"--ckpt_path={value}")
    assert (
        error
        == f"error: --ckpt_path: expected a path, got {got}; leave it out for the weights that the config names.\n"
    )
    assert not handed_over


@pytest.mark.parametrize("command", ["infer", "equivariance"])
@pytest.mark.parametrize("name", ["{0},", ",{0}", "{0},,{0}", ",", "{0}, "])
def test_comma_with_nothing_beside_it_is_not_the_current_folder(
    capsys, handed_over, phantoms, monkeypatch, command, name
):
    monkeypatch.chdir(phantoms / "imagesTr")
    name = name.format("phantom_000.nii.gz")
    error = _error(capsys, command, f"--input={name}", "--output=out")
    assert error == f"error: --input: expected paths with commas between, got an empty one in {name!r}; take it out.\n"
    assert not handed_over
    assert not Path("out").exists()


def test_evaluation_replaces_no_tables_unless_told_to(capsys, phantoms, tmp_path):
    weights = memory_run.write_weights(tmp_path / "weights.pt", 3)
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    arguments = ["evaluate", f"--input={phantoms}", f"--output={tmp_path / 'out'}", f"--ckpt_path={weights}"]
    arguments += [f"--network_def={json.dumps(definition)}", "--split#ratios=[0.5,0.5]"]
    assert main(arguments) == 0
    capsys.readouterr()
    tables = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(tables) == 5
    for path in tables:
        for other in tables:
            other.unlink(missing_ok=True)
        path.write_bytes(b"mine")
        assert f"output_dir: {path} exists already; choose another folder, or set" in _error(capsys, *arguments)
        assert "--overwrite: expected true or false" in _error(capsys, *arguments, "--overwrite=no")
        assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"mine"]
    assert main([*arguments, "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == tables


def test_later_overrides_see_earlier_ones(parser):
    check_overrides(parser, {"loss": {"_target_": "FocalLoss"}, "loss#gamma": 2.0})
    assert parser["loss"] == {"_target_": "FocalLoss", "gamma": 2.0}


@pytest.mark.parametrize(
    ("command", "configs"),
    [
        ("train", ["train"]),
        ("evaluate", ["train", "evaluate"]),
        ("infer", ["inference"]),
        ("infer --native", ["inference_native"]),
        ("infer --native=false", ["inference"]),
    ],
)
def test_hands_over_absolute_paths(handed_over, phantoms, monkeypatch, command, configs):
    monkeypatch.chdir(phantoms.parent)
    assert main([*command.split(), "--input=phantom", "--output=2024", "--amp=false"]) == 0
    root = find_bundle(BUNDLE)
    assert handed_over == [
        {
            "config_file": [str(root / "configs" / f"{name}.json") for name in configs],
            "meta_file": str(root / "configs" / "metadata.json"),
            "bundle_root": str(root),
            "dataset_dir": str(phantoms),
            "output_dir": str(phantoms.parent / "2024"),
            "amp": False,
        }
    ]


@pytest.mark.parametrize("options", [[], ["--native"]])
def test_infer_takes_several_files(handed_over, phantoms, options):
    files = [str(phantoms / "imagesTr" / f"phantom_{i:03d}.nii.gz") for i in (0, 1)]
    assert main(["infer", *options, f"--input={','.join(files)}", "--output=out"]) == 0
    assert handed_over[0]["dataset_dir"] == files


def test_bundle_in_a_folder(handed_over, phantoms, tmp_path, monkeypatch):
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    (tmp_path / "mine" / "configs" / "train.json").write_text(
        '{"bundle_root": "", "dataset_dir": "", "output_dir": ""}'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--bundle=mine", f"--input={phantoms}", "--output=out"]) == 0
    assert handed_over[0]["bundle_root"] == str(tmp_path / "mine")


@pytest.mark.parametrize("command", ["train", "evaluate", "infer"])
@pytest.mark.parametrize("missing", ["input", "output"])
def test_missing_paths(capsys, command, missing):
    given = {"input": "output", "output": "input"}[missing]
    assert f"{command}: expected --{missing}=PATH" in _error(capsys, command, f"--{given}=somewhere")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--input=no/such", "--output=out"], "no/such does not exist"),
        (["train", "--input=.", "--output=out", "--epoch=5"], "did you mean --epochs?"),
        (["train", "--input=.", "--output=out", "--dataset_dir=."], "give it as --input=PATH"),
        (["infer", "--input=.", "--output=out", "--ckpt_path=no.pt"], "--ckpt_path: no.pt does not exist"),
        (["infer", "--input=.", "--output=out", "--native=3"], "--native=3: expected true or false"),
        (["infer", "--native", "--input=.", "--output=out", "--bundle=."], "inference_native.json does not exist"),
        (["infer", "--native", "--input=.", "--output=out", "--roi_size=[9,9,9]"], "inference_native.json has no such"),
        (["train", "--input=.", "--output=out", "stray"], "Could not consume arg: stray"),
        (["train", "--input=.", "--output=out", "--bundle=seunet_hippocampus"], f"did you mean {BUNDLE}?"),
        (["train", "--input=.", "--output=out", "--bundle=."], "train.json does not exist"),
        (["phantom"], "output"),
        (["phantom", "--output=out", "--cases=none"], "cases='none': expected a whole number"),
        (["demo", "--outptu=out"], "--outptu=out; did you mean --output?"),
        (["check", ".", "--frsh"], "check: Could not consume arg: --frsh; did you mean --fresh?"),
        (["check", "--imges=a", "--labels=b"], "did you mean --images?"),
        (["phantom", "--output=out", "--case=3"], "did you mean --cases?"),
        (["phantom", "--output=out", "--zzz=3"], "choose one of cases, debug, output, seed."),
        (["phantom", "--output=out", "--debug=no"], "--debug: expected true or false, got 'no'"),
    ],
)
def test_errors_take_one_line(capsys, tmp_path, monkeypatch, handed_over, argv, told):
    monkeypatch.chdir(tmp_path)
    assert told in _error(capsys, *argv)
    assert not handed_over
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["train", "--epoch=5"], "train.json has no such id; did you mean --epochs?"),
        (["train", "--network_def#chanels=[4,8]"], "did you mean --network_def#channels?"),
        (["evaluate", "--num_clases=3"], "did you mean --num_classes?"),
        (["infer", "--skip_exsting"], "did you mean --skip_existing?"),
        (["infer", "--evaluator#failure=x.json"], "did you mean --evaluator#failures?"),
        (["infer", "--evaluator#ampp=true"], "did you mean --evaluator#amp?"),
    ],
)
def test_misspelt_override(capsys, tmp_path, monkeypatch, handed_over, argv, told):
    monkeypatch.chdir(tmp_path)
    assert told in _error(capsys, *argv, "--input=.", "--output=out")
    assert not handed_over
    assert not any(tmp_path.iterdir())


def test_root_cause_of_what_monai_raises(capsys, tmp_path, phantoms):
    # The network's own complaint, which MONAI wraps in an error for each config item that needs the network.
    error = _error(capsys, "train", f"--input={phantoms}", f"--output={tmp_path / 'out'}", "--network_def#max_order=-1")
    assert "max_order" in error
    assert "instantiate" not in error


def test_names_the_file_that_cannot_be_read(capsys, tmp_path, phantoms):
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes((phantoms / "imagesTr" / "phantom_000.nii.gz").read_bytes()[:4000])
    error = _error(capsys, "infer", f"--input={cut}", f"--output={tmp_path / 'out'}")
    assert str(cut) in error


def test_long_errors_are_cut(capsys, monkeypatch, phantoms):
    def failing(**arguments):
        raise RuntimeError("config item") from RuntimeError("size\nmismatch " * 100)

    monkeypatch.setattr("monai.bundle.run", failing)
    error = _error(capsys, "train", f"--input={phantoms}", "--output=out")
    assert error.startswith("error: size mismatch size")
    assert error.endswith("(--debug shows all of it)\n")
    assert len(error) < 500


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "--input=no/such", "--output=out", "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: --input: ")


def test_interrupt(capsys, monkeypatch, phantoms):
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("monai.bundle.run", interrupted)
    assert main(["train", f"--input={phantoms}", "--output=out"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["train", "--help"]])
def test_help(capsys, argv):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "SYNOPSIS" in out
    assert err == ""
    assert all(name in out for name in (COMMANDS if argv[:1] != ["train"] else ("--input", "--output", "--bundle")))


def test_demo_refuses_a_folder_in_use(capsys, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "exists and is not empty" in _error(capsys, "demo", f"--output={tmp_path}")


def test_overlay(phantoms, tmp_path):
    from monai_scaleequiv.cli._overlay import save_overlay

    image, label = (phantoms / folder / "phantom_000.nii.gz" for folder in ("imagesTr", "labelsTr"))
    save_overlay(image, label, label, ["body", "core"], tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_as_a_module(tmp_path):
    def module(*argv):
        return subprocess.run(
            [sys.executable, "-m", "monai_scaleequiv", *argv], cwd=tmp_path, capture_output=True, text=True
        )

    made = module("phantom", "--output=made", "--cases=1")
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "made" / "dataset.json").is_file()
    refused = module("phantom", "--output=made", "--cases=1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert "exists already" in refused.stderr


SMALL = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 3], "strides": [2]}


def _report(capsys, folder, *argv):
    """What the command tells, and the numbers it writes."""
    assert main(["equivariance", f"--output={folder}", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {file.name for file in folder.iterdir()} == {"equivariance.json", "equivariance.png"}
    assert (folder / "equivariance.png").read_bytes().startswith(b"\x89PNG")
    return out, json.loads((folder / "equivariance.json").read_text())


def _volumes(folder, *shapes):
    folder.mkdir()
    for i, shape in enumerate(shapes):
        volume = np.random.default_rng(i).normal(size=shape).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"volume_{i}.nii.gz")
    return folder


def test_equivariance_of_a_network_with_a_scale_axis(capsys, tmp_path):
    definition = json.dumps({"_target_": "SEUNet", **SMALL, "scales": [1.0, 0.9]})
    out, report = _report(capsys, tmp_path / "out", f"--network={definition}", "--cases=1", "--ratios=0.8,0.9")
    assert report["network"]["class"] == "SEUNet"
    assert report["network"]["scales"] == [1.0, 0.9]
    assert report["network"]["weights"] == "random, seed 0"
    assert report["arguments"]["divisor"] == 1
    assert report["images"] == ["phantom_000.nii.gz"]
    other, step = report["ratios"]
    assert (other["ratio"], other["interior"]) == (0.8, None)
    assert 0 < step["interior"] < step["unshifted"]
    assert step["cases"][0]["size"] == [40, 50, 40]
    assert step["cases"][0]["rescaled_size"] == [36, 45, 36]
    row = next(line for line in out.splitlines() if line.split()[:1] == ["0.900"])
    values = [step[name] for name in ("floor", "interior", "unshifted", "projected", "consistency_dice")]
    assert [float(cell) for cell in row.split()[1:]] == pytest.approx(values, rel=0.06)


def test_equivariance_of_a_network_of_monai_is_that_of_the_function(capsys, tmp_path):
    torch.manual_seed(3)
    network = UNet(**SMALL).eval()
    torch.save({"network": network.state_dict()}, tmp_path / "model.pt")
    (tmp_path / "net.json").write_text(json.dumps({"_target_": "UNet", **SMALL}))
    folder = _volumes(tmp_path / "in", (20, 20, 20), (40, 20, 20))
    argv = [f"--network={tmp_path / 'net.json'}", f"--ckpt_path={tmp_path / 'model.pt'}", f"--input={folder}"]
    _, report = _report(capsys, tmp_path / "out", *argv, "--ratios=0.8", "--divisor=4")
    readings, agreement = [], []
    for name in ("volume_0", "volume_1"):
        image = torch.from_numpy(nib.load(folder / f"{name}.nii.gz").get_fdata(dtype=np.float32))[None, None]
        image = (image - image.mean()) / image.std(unbiased=False)
        # Sizes of 20, 40, 16 and 32 need no padding.
        size = [round(0.8 * n) for n in image.shape[2:]]
        readings.append(equivariance_error(network, image, size).projected)
        with torch.no_grad():
            agreement.append(consistency_dice(network(rescale(image, size)), network(image)).nanmean().item())
    (row,) = report["ratios"]
    assert [case["projected"] for case in row["cases"]] == pytest.approx(readings, rel=1e-3)
    assert [case["consistency_dice"] for case in row["cases"]] == pytest.approx(agreement, abs=1e-3)
    assert 0 < max(agreement) < 1
    assert row["projected"] == pytest.approx(sum(readings) / 2, rel=1e-3)
    assert row["interior"] is None


@pytest.mark.parametrize("ratio", [0.83, 1.3])
def test_equivariance_pads_and_crops_back(capsys, tmp_path, ratio):
    # Without its way down the network is pointwise, which padding does not change.
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    folder = _volumes(tmp_path / "in", (21, 13, 10))
    argv = [f"--network={json.dumps(definition)}", f"--input={folder}", f"--ratios={ratio}"]
    _, report = _report(capsys, tmp_path / "out", *argv)
    assert report["ratios"][0]["projected"] < 1e-9
    assert report["arguments"]["divisor"] == 16


def test_equivariance_of_a_2d_network_takes_middle_slices(capsys, tmp_path):
    definition = {"_target_": "UNet", **SMALL, "spatial_dims": 2, "out_channels": 1}
    folder = _volumes(tmp_path / "in", (20, 30, 7))
    _, report = _report(capsys, tmp_path / "out", f"--network={json.dumps(definition)}", f"--input={folder}")
    assert [row["ratio"] for row in report["ratios"]] == [0.7, 0.8, 0.9, 1.11, 1.25, 1.4]
    assert report["ratios"][1]["cases"][0]["size"] == [20, 30]
    assert report["ratios"][3]["used"] == pytest.approx(10 / 9)


def test_equivariance_of_a_bundle(capsys, tmp_path):
    folder = _volumes(tmp_path / "in", (20, 20, 20), (20, 20, 20))
    _, report = _report(capsys, tmp_path / "out", f"--input={folder}", "--ratios=0.9", "--cases=1")
    assert report["network"]["bundle"] == BUNDLE
    assert report["network"]["weights"].endswith("model.pt")
    assert report["images"] == ["volume_0.nii.gz"]
    assert report["ratios"][0]["interior"] > 0
    _, other = _report(
        capsys, tmp_path / "out2", f"--input={folder}", "--ratios=0.9", "--cases=1", "--load_pretrain=false"
    )
    assert other["network"]["weights"] == "random, seed 0"
    assert other["ratios"][0]["projected"] != report["ratios"][0]["projected"]
    assert other["arguments"]["overrides"] == {"load_pretrain": False}


def test_equivariance_of_a_network_without_any_error(capsys, tmp_path):
    folder = _volumes(tmp_path / "in", (10, 10, 10))
    out, report = _report(
        capsys, tmp_path / "out", '--network={"_target_": "torch.nn.Identity"}', f"--input={folder}", "--ratios=1.4"
    )
    assert report["ratios"][0]["projected"] == 0
    assert "0.0e+00" in out


def test_equivariance_keeps_an_earlier_report(capsys, tmp_path):
    (tmp_path / "equivariance.json").write_text("{}")
    assert "equivariance.json exists already" in _error(capsys, "equivariance", f"--output={tmp_path}")
    assert [file.name for file in tmp_path.iterdir()] == ["equivariance.json"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--network=UNet"], "--network: expected a JSON file"),
        (['--network={"spatial_dims": 2}'], "expected a _target_"),
        (['--network={"_target_": "UNett"}'], "UNett"),
        (['--network={"_target_": "DiceLoss"}', "--ckpt_path=no.pt"], "no.pt does not exist"),
        (['--network={"_target_": "NormalizeIntensity"}'], "expected a torch.nn.Module"),
        (['--network={"_target_": "torch.nn.Identity"}', "--epochs=3"], "--epochs: overrides belong to a bundle"),
        (['--network={"_target_": "torch.nn.Identity"}', f"--bundle={BUNDLE}"], "got both"),
        (['--network={"_target_": "torch.nn.Identity"}', "--ratios=1"], "--ratios must be numbers above 0"),
        (['--network={"_target_": "torch.nn.Identity"}', "--ratios=half"], "--ratios must be numbers above 0"),
        (['--network={"_target_": "torch.nn.Identity"}', "--cases=0"], "--cases: expected a whole number"),
        (['--network={"_target_": "torch.nn.Identity"}', "--divisor=x"], "--divisor: expected a whole number"),
        (['--network={"_target_": "torch.nn.Identity"}', "--input=no/such"], "no/such does not exist"),
        (["--num_clases=4"], "did you mean --num_classes?"),
        (["--ckpt_path=no.pt"], "no.pt does not exist"),
        (["--bundle=."], "inference.json does not exist"),
    ],
)
def test_equivariance_errors_take_one_line(capsys, tmp_path, monkeypatch, argv, told):
    monkeypatch.chdir(tmp_path)
    assert told in _error(capsys, "equivariance", "--output=out", *argv)
    assert not any(tmp_path.iterdir())


def test_equivariance_needs_an_output(capsys):
    assert "expected --output=PATH" in _error(capsys, "equivariance")


def test_equivariance_with_weights_of_another_network(capsys, tmp_path):
    torch.save(SEUNet(**SMALL).state_dict(), tmp_path / "model.pt")
    error = _error(capsys, "equivariance", f"--output={tmp_path}", f"--ckpt_path={tmp_path / 'model.pt'}")
    assert "does not fit the network" in error


@pytest.mark.parametrize("scales", [None, [1.0], [1.0, 0.9], [1.0, 0.87], [1.0, 0.95, 0.9025]])
def test_ratios_have_a_step_of_the_scales_both_ways(scales):
    ratios = ratios_to_measure(None, scales)
    assert ratios == sorted(ratios)
    if scales and len(scales) > 1:
        assert {scales[1], 1 / scales[1]} <= set(ratios)
        assert all(b / a > 1.009 for a, b in itertools.pairwise(ratios))


@pytest.mark.parametrize("size", [(40, 56, 40), (35, 51, 35), (256, 256), (17, 90)])
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.9, 10 / 9, 1.11, 1.25, 1.4, 0.87, 3.0])
def test_sizes_meet_the_ratio_where_they_can(size, ratio):
    crop, target = whole_sizes(size, ratio)
    assert all(0.75 * n <= m <= n for m, n in zip(crop, size, strict=True))
    used = [m / n for n, m in zip(crop, target, strict=True)]
    if ratio in (0.5, 3.0) or (min(size) > 30 and ratio in (0.7, 0.9, 10 / 9, 1.25, 1.4)):
        assert used == pytest.approx([ratio] * len(size), abs=1e-12)
    else:
        assert used == pytest.approx([ratio] * len(size), abs=0.5 / min(size) + 0.005)


@pytest.mark.slow
def test_demo(capsys, tmp_path):
    folder = tmp_path / "demo"
    assert main(["demo", f"--output={folder}"]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows if row["case"] == "mean"] == ["body", "core", "all"]
    assert float(rows[-1]["dice"]) > 0.85
    (labels,) = folder.glob("*_seg.nii.gz")
    labels, image = nib.load(labels), nib.load(folder / "held_out" / "imagesTr" / "phantom_000.nii.gz")
    np.testing.assert_array_equal(labels.affine, image.affine)
    assert np.unique(labels.dataobj).tolist() == [0, 1, 2]
    assert (folder / "overlay.png").stat().st_size > 10_000
    assert str(folder / "overlay.png") in capsys.readouterr().out
