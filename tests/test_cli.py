"""Command line: arguments and their errors, what reaches ``monai.bundle``, the data check, the equivariance report."""

import csv
import itertools
import json
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from monai_scaleequiv import SEUNet, consistency_dice, equivariance_error, rescale
from monai_scaleequiv.cli import _demo, main
from monai_scaleequiv.cli._bundles import find_bundle
from monai_scaleequiv.cli._commands import COMMANDS
from monai_scaleequiv.cli._equivariance import ratios_to_measure, whole_sizes
from monai_scaleequiv.cli._overrides import check_overrides, override_value
from monai_scaleequiv.data import make_phantom_dataset

from . import memory_run
from .fault_files import cut, write_task, write_volume

BUNDLE = "seunet_hippocampus_segmentation"
POINTWISE = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}


@pytest.fixture
def parser():
    parser = ConfigParser()
    parser.read_config(find_bundle(BUNDLE) / "configs" / "train.json")
    return parser


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", cases=3).parent


@pytest.fixture
def handed_over(monkeypatch):
    """What MONAI is called with; nothing runs."""
    calls = []
    monkeypatch.setattr("monai.bundle.run", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr("monai_scaleequiv.cli._bundles.ConfigWorkflow", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr("monai_scaleequiv.cli._bundles.segment", lambda workflow: None)
    return calls


def _error(capsys, *argv):
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_override_value():
    table = {
        "3": 3,
        "1e-3": 1e-3,
        "false": False,
        "False": False,
        "null": "$None",
        "None": "$None",
        "[32,48,32]": [32, 48, 32],
        "[axial,coronal]": ["axial", "coronal"],
        '{"lr": 1}': {"lr": 1},
        "~/model.pt": str(Path.home() / "model.pt"),
        **{text: text for text in ("@train#dataset", "word#part", "$torch.device('cpu')", "some/model.pt")},
    }
    for text, value in table.items():
        assert override_value(text) == value


def test_known_ids_are_applied(parser):
    table = {
        "epochs": 5,
        "train#trainer#max_epochs": 3,
        "train::trainer::max_epochs": 3,
        "train#trainer#epoch_length": 1,  # not in the config, but a parameter of SupervisedTrainer
        "optimizer#betas": [0.9, 0.99],
        "to_working_grid#5#pixdim": 2,
        "train#handlers#2#_disabled_": True,
    }
    for key, value in table.items():
        check_overrides(parser, {key: value})
        assert parser[key] == value
    check_overrides(parser, {"loss": {"_target_": "FocalLoss"}, "loss#gamma": 2.0})  # a later one sees earlier ones
    assert parser["loss"] == {"_target_": "FocalLoss", "gamma": 2.0}


def test_unknown_ids(parser):
    table = {
        "epoch": "--epochs?",
        "train#trainer#max_epoch": "--train#trainer#max_epochs?",
        "train::trainer::max_epoch": "--train::trainer::max_epochs?",
        "trian#trainer#max_epochs": "--train#trainer#max_epochs?",
        "optimizer#weight_deacy": "--optimizer#weight_decay?",
        "network_def#chanels": "--network_def#channels?",
        "to_working_grid#50#pixdim": "--to_working_grid#5#pixdim?",
        "network#channels": "override it whole.",
        "zzzzzzzz": "choose one of ",
    }
    for key, hint in table.items():
        with pytest.raises(ValueError, match=f"^--{key}: ") as raised:
            check_overrides(parser, {key: 1})
        assert hint in str(raised.value)


WORDS = ("no", "off", "n", "FALSE", "'false'", '"no"', "yes")


def test_no_text_counts_as_true(capsys, handed_over, phantoms):
    texts = itertools.product(("overwrite", "skip_existing", "load_pretrain"), (*WORDS, "0", "1", "[]", "epoch"))
    for key, value in [*texts, *(("amp", word) for word in WORDS)]:  # amp is an expression in the config, of no kind
        error = _error(capsys, "infer", f"--input={phantoms}", "--output=out", f"--{key}={value}")
        assert error.startswith(f"error: --{key}: expected true or false, got ")
        assert error.endswith(f"; write --{key}=true or --{key}=false.\n")
    assert not handed_over
    for value, taken in {"true": True, "True": True, "false": False, "$True": "$True", "@amp": "@amp"}.items():
        assert main(["infer", f"--input={phantoms}", "--output=out", f"--overwrite={value}"]) == 0
        assert handed_over.pop()["overwrite"] == taken


def test_weights_in_a_file_with_the_name_of_a_truth_value(handed_over, phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("no").touch()
    assert main(["infer", f"--input={phantoms}", "--output=out", "--ckpt_path=no"]) == 0
    assert handed_over[0]["ckpt_path"] == "no"


def test_values_of_another_kind(capsys, handed_over, phantoms):
    table = {
        "--epochs=0": "--epochs: expected a whole number of at least 1, got 0; write --epochs=3",
        "--epochs=1.5": "--epochs: expected a whole number of at least 1, got 1.5",
        "--num_classes=abc": "--num_classes: expected a whole number of at least 1, got 'abc'",
        "--num_classes=null": "--num_classes: expected a whole number of at least 1, got None",
        "--batch_size": "--batch_size: expected a whole number of at least 1, got True",
        "--validate#inferer#sw_batch_size=-1": "sw_batch_size: expected a whole number of at least 1, got -1",
        "--learning_rate=fast": "--learning_rate: expected a number such as 0.004, got 'fast'",
        "--roi_size=large": "--roi_size: expected a list such as [40, 56, 40], got 'large'; write it in brackets",
        "--train#handlers=none": "--train#handlers: expected a list such as [...], got 'none'",
        "--device=gpu": "--device: expected a device of this machine, got 'gpu' (",
        "--device=cuda:99": "--device: expected a device of this machine, got 'cuda:99' (",
        "--weights=": "--weights: expected a path, got ''",
    }
    for option, text in table.items():
        assert text in _error(capsys, "train", f"--input={phantoms}", "--output=out", option)
    for command, (value, got) in itertools.product(
        ("evaluate", "infer"), {"": "''", "null": "None", "3": "3", "true": "True"}.items()
    ):
        error = _error(capsys, command, f"--input={phantoms}", "--output=out", f"--ckpt_path={value}")
        assert error == f"error: --ckpt_path: expected a path, got {got}; leave it out for what the config names.\n"
    assert not handed_over


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_a_gpu_without_cuda(capsys, phantoms, tmp_path):
    error = _error(capsys, "infer", f"--input={phantoms}", f"--output={tmp_path}", "--device=cuda:0")
    assert "got 'cuda:0' (Torch not compiled with CUDA enabled); choose another" in error


def test_comma_with_nothing_beside_it_is_not_the_current_folder(capsys, handed_over, phantoms, monkeypatch):
    monkeypatch.chdir(phantoms / "imagesTr")
    for command, form in itertools.product(("infer", "equivariance"), ("{0},", ",{0}", "{0},,{0}", ",", "{0}, ")):
        name = form.format("phantom_000.nii.gz")
        error = _error(capsys, command, f"--input={name}", "--output=out")
        assert f"--input: expected paths with commas between, got an empty one in {name!r}; take it out.\n" in error
    assert not handed_over
    assert not Path("out").exists()


def test_hands_over_absolute_paths(handed_over, phantoms, monkeypatch):
    monkeypatch.chdir(phantoms.parent)
    root = find_bundle(BUNDLE)
    for command, configs in {
        "train": ["train"],
        "evaluate": ["train", "evaluate"],
        "infer": ["inference"],
        "infer --native": ["inference", "inference_native"],
        "infer --native=false": ["inference"],
    }.items():
        assert main([*command.split(), "--input=phantom", "--output=2024", "--amp=false"]) == 0
        expected = {
            "config_file": [str(root / "configs" / f"{name}.json") for name in configs],
            "meta_file": str(root / "configs" / "metadata.json"),
            "bundle_root": str(root),
            "dataset_dir": str(phantoms),
            "output_dir": str(phantoms.parent / "2024"),
            "amp": False,
        }
        got = handed_over.pop()
        assert {key: got[key] for key in expected} == expected
    files = [str(phantoms / "imagesTr" / f"phantom_{i:03d}.nii.gz") for i in (0, 1)]
    assert main(["infer", f"--input={','.join(files)}", "--output=out"]) == 0
    assert handed_over[0]["dataset_dir"] == files


def test_bundle_in_a_folder(handed_over, phantoms, tmp_path, monkeypatch):
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    config = '{"bundle_root": "", "dataset_dir": "", "output_dir": ""}'
    (tmp_path / "mine" / "configs" / "train.json").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--bundle=mine", f"--input={phantoms}", "--output=out"]) == 0
    assert handed_over[0]["bundle_root"] == str(tmp_path / "mine")


LINES = [
    (["trian"], "did you mean train?"),
    *(([c, "--output=x"], f"{c}: expected --input=PATH") for c in ("train", "evaluate", "sweep", "infer")),
    *(
        ([c, "--input=x"], f"{c}: expected --output=PATH")
        for c in ("train", "evaluate", "sweep", "infer", "equivariance")
    ),
    (["train", "--input=no/such", "--output=out"], "no/such does not exist"),
    (["train", "--input=.", "--output=out", "--epoch=5"], "train.json has no such id; did you mean --epochs?"),
    (["train", "--input=.", "--output=out", "--network_def#chanels=[4]"], "did you mean --network_def#channels?"),
    (["evaluate", "--input=.", "--output=out", "--num_clases=3"], "did you mean --num_classes?"),
    (["sweep", "--input=.", "--output=out", "--scale=[1]"], "did you mean --scales?"),
    (["infer", "--input=.", "--output=out", "--skip_exsting"], "did you mean --skip_existing?"),
    (["infer", "--input=.", "--output=out", "--evaluator#ampp=true"], "did you mean --evaluator#amp?"),
    (["train", "--input=.", "--output=out", "--dataset_dir=."], "give it as --input=PATH"),
    (["train", "--input=.", "--output=out", "--weights=no.pt"], "--weights: no.pt does not exist"),
    (["infer", "--input=.", "--output=out", "--ckpt_path=no.pt"], "--ckpt_path: no.pt does not exist"),
    (["infer", "--input=.", "--output=out", "--native=3"], "--native=3: expected true or false"),
    *(
        (
            ["train", "--input=.", "--output=out", "--bundle=repuxnet_abdomen_segmentation", f"--coordinates={given}"],
            "--coordinates: expected different axes from 0 to 2, got",
        )
        for given in ("0", "null", "false", "[5]", "[-1]", "[0.5]", "[0,0]", '["a"]', "[true]", "x")
    ),
    (
        ["train", "--input=.", "--output=out", "--bundle=seunet_brats_segmentation", "--mirrored=null"],
        "--mirrored: expected true or false, got None",
    ),
    (["infer", "--native", "--input=.", "--output=out", "--bundle=."], "inference.json does not exist"),
    (["train", "--input=.", "--output=out", "stray"], "Could not consume arg: stray"),
    (["train", "--input=.", "--output=out", "--bundle=seunet_hippocampus"], f"did you mean {BUNDLE}?"),
    (["train", "--input=.", "--output=out", "--bundle=."], "train.json does not exist"),
    (["phantom"], "output"),
    (["phantom", "--output=out", "--cases=none"], "cases='none': expected a whole number"),
    (["demo", "--outptu=out"], "--outptu=out; did you mean --output?"),
    (["check", ".", "--channls=2"], "check: Could not consume arg: --channls=2; did you mean --channels?"),
    (["check", "--imges=a", "--labels=b"], "did you mean --images?"),
    (["phantom", "--output=out", "--case=3"], "did you mean --cases?"),
    (["phantom", "--output=out", "--zzz=3"], "choose one of cases, output, seed."),
    (["phantom", "--output=out", "--debug=no"], "Could not consume arg: --debug=no"),
]


def test_errors_take_one_line(capsys, tmp_path, monkeypatch, handed_over):
    monkeypatch.chdir(tmp_path)
    for argv, text in LINES:
        assert text in _error(capsys, *argv), argv
    assert not handed_over
    assert not any(tmp_path.iterdir())


def test_root_cause_of_what_monai_raises(capsys, tmp_path, phantoms):
    # The network's own complaint, which MONAI wraps in an error for each config item that needs the network.
    error = _error(capsys, "train", f"--input={phantoms}", f"--output={tmp_path}", "--network_def#filters#max_order=-1")
    assert "max_order" in error
    assert "instantiate" not in error


def test_long_errors_are_cut_and_interrupts_have_their_status(capsys, monkeypatch, phantoms):
    causes = [RuntimeError("size\nmismatch " * 100), KeyboardInterrupt()]

    def failing(**arguments):
        raise causes.pop(0)

    monkeypatch.setattr("monai.bundle.run", failing)
    error = _error(capsys, "train", f"--input={phantoms}", "--output=out")
    assert error.startswith("error: size mismatch size")
    assert error.endswith("(--debug shows all of it)\n")
    assert len(error) < 500
    assert main(["train", f"--input={phantoms}", "--output=out"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "--input=no/such", "--output=out", "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: --input: ")


def test_help(capsys):
    for argv, shown in {
        (): COMMANDS,
        ("--help",): COMMANDS,
        ("train", "--help"): ("--input", "--output", "--bundle"),
    }.items():
        assert main(argv) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert all(text in out for text in ("SYNOPSIS", "takes --debug", *shown))


def test_training_starts_with_a_check_of_the_data(capsys, handed_over, tmp_path):
    """Of the cases that it uses: a test set need not be there."""
    task = write_task(tmp_path / "task", cases=4, test=["./imagesTs/gone.nii.gz"])
    arguments = ["train", f"--input={task / 'dataset.json'}", "--output=out"]
    assert main(arguments) == 0
    assert handed_over.pop()["dataset_dir"] == str(task)
    assert capsys.readouterr().err.startswith("warning: data: 1 warning; data: expected label 2 ")
    assert "expected 2 channel(s), got 1" in _error(capsys, *arguments, "--in_channels=2")
    assert "expected whole numbers from 0 to 0" in _error(capsys, *arguments, "--num_classes=1")
    cut(task / "imagesTr" / "case_1.nii.gz")
    error = _error(capsys, *arguments)
    assert error.startswith("error: data: 1 error; ")
    assert str(task / "imagesTr" / "case_1.nii.gz") in error
    assert not handed_over


def test_evaluation_of_a_held_out_set(capsys, phantoms, tmp_path):
    """Of the cases that the training has not seen, in one line how many and why; tables are kept unless asked for."""
    weights = memory_run.write_weights(tmp_path / "weights.pt", 3)
    sizes = {file.name: file.stat().st_size for file in (phantoms / "imagesTr").glob("*_000.nii.gz")}
    (tmp_path / "weights.json").write_text(json.dumps({"num_classes": 3, "training_cases": sizes}))
    arguments = ["evaluate", f"--input={phantoms}", f"--output={tmp_path / 'out'}", f"--ckpt_path={weights}"]
    arguments.append(f"--network_def={json.dumps(POINTWISE)}")
    assert main(arguments) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "2 of 3" in line
    tables = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(tables) == 6  # with the report
    with (tmp_path / "out" / "val_mean_dice_raw.csv").open() as file:
        names = [Path(row["filename"]).name for row in csv.DictReader(file)]
    assert names == ["phantom_001.nii.gz", "phantom_002.nii.gz"]
    for path in tables:
        for other in tables:
            other.unlink(missing_ok=True)
        path.write_bytes(b"mine")
        assert main(arguments) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: output_dir: {path} exists already; choose another folder, or set")
        assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"mine"]
    assert main([*arguments, "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == tables


def test_demo_needs_a_new_folder(capsys, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "exists and is not empty" in _error(capsys, "demo", f"--output={tmp_path}")


def test_as_a_module(capsys, phantoms, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai_scaleequiv", "phantom", f"--output={phantoms}", "--cases=1"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("monai_scaleequiv", run_name="__main__")
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (1, "", 1)
    assert "exists already" in err


def test_phantom(capsys, tmp_path):
    assert main(["phantom", f"--output={tmp_path / 'made'}", "--cases=1"]) == 0
    made = tmp_path / "made" / "dataset.json"
    assert capsys.readouterr() == (f"1 volumes: {made}\n", "")
    assert made.is_file()


# The equivariance report.

SMALL = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 3], "strides": [2]}


def _report(capsys, folder, *argv):
    """What the command says, and the numbers it writes."""
    assert main(["equivariance", f"--output={folder}", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {file.name for file in folder.iterdir()} == {"equivariance.json", "equivariance.png"}
    assert (folder / "equivariance.png").read_bytes().startswith(b"\x89PNG")
    return out, json.loads((folder / "equivariance.json").read_text())


def _volumes(folder, *shapes):
    for i, shape in enumerate(shapes):
        write_volume(folder / f"volume_{i}.nii.gz", shape=shape)
    return folder


def test_equivariance_of_a_network_with_a_scale_axis(capsys, tmp_path):
    definition = json.dumps({"_target_": "SEUNet", **SMALL, "filters": {"scales": [1.0, 0.9]}})
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


def test_equivariance_pads_and_crops_back(capsys, tmp_path):
    folder = _volumes(tmp_path / "in", (21, 13, 10))
    network = f"--network={json.dumps(POINTWISE)}"  # which padding does not change
    out, report = _report(capsys, tmp_path / "out", network, f"--input={folder}", "--ratios=0.83,1.3")
    assert all(row["projected"] < 1e-9 for row in report["ratios"])
    assert report["arguments"]["divisor"] == 16
    out, report = _report(capsys, tmp_path / "none", NETWORK, f"--input={folder}", "--ratios=1.4")
    assert report["ratios"][0]["projected"] == 0
    assert "0.0e+00" in out


def test_equivariance_of_a_2d_network_takes_middle_slices(capsys, tmp_path):
    definition = {"_target_": "UNet", **SMALL, "spatial_dims": 2, "out_channels": 1}
    folder = _volumes(tmp_path / "in", (20, 30, 7))
    _, report = _report(capsys, tmp_path / "out", f"--network={json.dumps(definition)}", f"--input={folder}")
    assert [row["ratio"] for row in report["ratios"]] == [0.7, 0.8, 0.9, 1.11, 1.25, 1.4]
    assert report["ratios"][1]["cases"][0]["size"] == [20, 30]
    assert report["ratios"][3]["used"] == pytest.approx(10 / 9)


def test_equivariance_of_a_bundle(capsys, tmp_path):
    folder = _volumes(tmp_path / "in", (20, 20, 20), (20, 20, 20))
    arguments = [f"--input={folder}", "--ratios=0.9", "--cases=1"]
    _, report = _report(capsys, tmp_path / "out", *arguments)
    assert report["network"]["bundle"] == BUNDLE
    assert report["network"]["weights"].endswith("model.pt")
    assert report["images"] == ["volume_0.nii.gz"]
    assert report["ratios"][0]["interior"] > 0
    _, other = _report(capsys, tmp_path / "random", *arguments, "--load_pretrain=false")
    assert other["network"]["weights"] == "random, seed 0"
    assert other["ratios"][0]["projected"] != report["ratios"][0]["projected"]
    assert other["arguments"]["overrides"] == {"load_pretrain": False}


def test_equivariance_keeps_an_earlier_report(capsys, tmp_path):
    (tmp_path / "equivariance.json").write_text("{}")
    assert "equivariance.json exists already" in _error(capsys, "equivariance", f"--output={tmp_path}")
    assert [file.name for file in tmp_path.iterdir()] == ["equivariance.json"]


NETWORK = '--network={"_target_": "torch.nn.Identity"}'
EQUIVARIANCE_LINES = [
    (["--network=UNet"], "--network: expected a JSON file"),
    (['--network={"spatial_dims": 2}'], "expected a _target_"),
    (['--network={"_target_": "UNett"}'], "UNett"),
    (['--network={"_target_": "DiceLoss"}', "--ckpt_path=no.pt"], "no.pt does not exist"),
    (['--network={"_target_": "NormalizeIntensity"}'], "expected a torch.nn.Module"),
    ([NETWORK, "--epochs=3"], "--epochs: a bundle has overrides"),
    ([NETWORK, f"--bundle={BUNDLE}"], "got both"),
    ([NETWORK, "--ratios=1"], "--ratios must be numbers above 0"),
    ([NETWORK, "--ratios=half"], "--ratios must be numbers above 0"),
    ([NETWORK, "--cases=0"], "--cases: expected a whole number"),
    ([NETWORK, "--divisor=x"], "--divisor: expected a whole number"),
    ([NETWORK, "--input=no/such"], "no/such does not exist"),
    ([NETWORK, "--ckpt_path="], "--ckpt_path: expected a path, got ''"),
    (["--num_clases=4"], "did you mean --num_classes?"),
    (["--ckpt_path=no.pt"], "no.pt does not exist"),
    (["--bundle=."], "inference.json does not exist"),
]


def test_equivariance_errors_take_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv, text in EQUIVARIANCE_LINES:
        assert text in _error(capsys, "equivariance", "--output=out", *argv), argv
    assert not any(tmp_path.iterdir())


def test_equivariance_with_weights_of_another_network(capsys, tmp_path):
    torch.save(SEUNet(**SMALL).state_dict(), tmp_path / "model.pt")
    error = _error(capsys, "equivariance", f"--output={tmp_path}", f"--ckpt_path={tmp_path / 'model.pt'}")
    assert "expected weights of this SEUNet, got others" in error


def test_ratios_have_a_step_of_the_scales_both_ways():
    for scales in (None, [1.0], [1.0, 0.9], [1.0, 0.87], [1.0, 0.95, 0.9025]):
        ratios = ratios_to_measure(None, scales)
        assert ratios == sorted(ratios)
        if scales and len(scales) > 1:
            assert {scales[1], 1 / scales[1]} <= set(ratios)
            assert all(b / a > 1.009 for a, b in itertools.pairwise(ratios))


def test_sizes_meet_the_ratio_where_they_can():
    sizes, ratios = [(40, 56, 40), (35, 51, 35), (256, 256), (17, 90)], [0.7, 0.9, 10 / 9, 1.25, 1.4]
    for size, ratio in itertools.product(sizes, [0.5, 3.0, *ratios, 1.11, 0.87]):
        crop, target = whole_sizes(size, ratio)
        assert all(0.75 * n <= m <= n for m, n in zip(crop, size, strict=True))
        exact = ratio in (0.5, 3.0) or (min(size) > 30 and ratio in ratios)
        used = [m / n for n, m in zip(crop, target, strict=True)]
        assert used == pytest.approx([ratio] * len(size), abs=1e-12 if exact else 0.5 / min(size) + 0.005)


def test_demo(capsys, tmp_path, monkeypatch):
    # In small: `.ci/run` runs it whole, with a limit for its Dice.
    folder = tmp_path / "demo"
    monkeypatch.setattr(_demo, "TRAINING", {"epochs": 1, "val_interval": 1, "network_def": POINTWISE})
    monkeypatch.setattr(_demo, "TRAINING_CASES", 5)
    monkeypatch.setattr(_demo, "HELD_OUT_CASES", 2)
    assert main(["demo", f"--output={folder}"]) == 0
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    *cases, body, core, both = rows
    assert [row["class"] for row in (body, core, both)] == ["body", "core", "all"]
    assert [(row["case"], row["class"]) for row in cases[:3]] == [
        ("phantom_000", "body"),
        ("phantom_000", "core"),
        ("phantom_001", "body"),
    ]
    for mean, group in ((body, cases[::2]), (core, cases[1::2]), (both, cases)):
        assert mean["case"] == "mean"
        assert float(mean["dice"]) == pytest.approx(np.mean([float(row["dice"]) for row in group]), abs=1e-4)
    (labels,) = folder.glob("*_seg.nii.gz")
    labels, image = nib.load(labels), nib.load(folder / "held_out" / "imagesTr" / "phantom_000.nii.gz")
    np.testing.assert_array_equal(labels.affine, image.affine)
    assert (folder / "overlay.png").stat().st_size > 10_000
    assert str(folder / "overlay.png") in capsys.readouterr().out
