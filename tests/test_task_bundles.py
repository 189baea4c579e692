"""The bundles of the papers' own tasks, which ship without weights: what the others pass, and their data's layouts."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, Orientationd, Spacingd

from monai_scaleequiv.cli import main
from monai_scaleequiv.data import (
    brats_label_values,
    check_dataset,
    files_hashing,
    nifti_datalist,
    read_record,
    split_datalist,
)
from monai_scaleequiv.metrics import consistency_dice
from monai_scaleequiv.transforms import BratsRegionsInvertd
from tests.bundle_runs import (
    CPU,
    ONNX_AT_ANY_SIZE,
    QUICK,
    SIZE,
    check_onnx,
    config,
    config_files,
    error_of,
    files,
    load,
    metrics,
    network,
    per_case,
    run,
    tiny,
    train,
)
from tests.conftest import BUNDLES, ROOT
from tests.fault_files import write_volume
from tests.task_phantoms import MODALITIES, make_brats, make_flare
from tests.test_bundles import CONFIGS, SCHEMA, SECTIONS, expressions, unexpected
from tests.test_export_bundle import PROGRAM, elsewhere, exported, python, runs, verification  # noqa: F401
from tests.test_monai_tools import Label, LookUps, client, deployed, equal, scores, small
from tests.test_monai_tools import exported as export_network

BRATS, ABDOMEN = "seunet_brats_segmentation", "repuxnet_abdomen_segmentation"
OWN = {BRATS: {"paper"}, ABDOMEN: {"amos", "chaos", "finetune"}}
REGIONS = {"tumour core": [1, 4], "whole tumour": [1, 2, 4], "enhancing tumour": [4]}


@pytest.fixture(scope="module", params=[BRATS, ABDOMEN])
def bundle(request, tmp_path_factory):
    return shutil.copytree(BUNDLES / request.param, tmp_path_factory.mktemp("bundles") / request.param)


@pytest.fixture(scope="module")
def phantoms(bundle, tmp_path_factory):
    """Cases as the bundle's users download them."""
    folder = tmp_path_factory.mktemp("data")
    make = make_brats if bundle.name == BRATS else make_flare
    return make(folder / "data", folder / "source")


@pytest.fixture(scope="module")
def trained(bundle, phantoms, tmp_path_factory):
    return train(bundle, phantoms, tmp_path_factory.mktemp("trained"), cache_rate=1.0, learning_rate=0.02, epochs=3)


@pytest.fixture(scope="module")
def weights(bundle, trained):
    given = {"ckpt_path": trained / "models" / "model.pt", "roi_size": list(SIZE), **tiny(bundle)}
    return given | ({"threshold": 0.3} if bundle.name == BRATS else {})


@pytest.fixture(scope="module")
def images(bundle, phantoms):
    """The folder that inference is given, and the files of its first case."""
    folder = phantoms if bundle.name == BRATS else phantoms / "imagesTr"
    channels = config(bundle, "inference")["in_channels"]
    case = nifti_datalist(folder, channels=channels)[0]["image"]
    return folder, case if channels > 1 else [case]


def test_files_of_the_bundle(bundle):
    names = {path.stem for path in (bundle / "configs").iterdir()}
    assert names == {*CONFIGS, "metadata", "persistent", *OWN[bundle.name]}
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"\b[A-Z]{6,}\b", re.sub(r"`[^`]*`|```.*?```", "", text, flags=re.S))  # no gap left to fill
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    assert "without weights" in " ".join(text.split())
    assert not (bundle / "models").exists()
    assert "without weights" in (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8")
    for name, lines in {"train": 307, "inference": 152}.items():
        assert len((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8").splitlines()) <= lines


def without_names(part):
    """A section without where the names of classes come from, which regions have of their own."""
    if not isinstance(part, list):
        return part
    return [{k: v for k, v in step.items() if k not in ("names", "source")} for step in part if isinstance(step, dict)]


def test_configs_are_those_of_the_hippocampus_but_for_the_task(bundle):
    """Word for word where the task makes no difference, id for id where it does."""
    other = BUNDLES / f"{bundle.name.split('_')[0]}_hippocampus_segmentation"
    for name in ("multi_gpu_train", "multi_gpu_evaluate", "multi_gpu_inference"):
        assert config(bundle, name) == config(other, name)
    mine, theirs = config(bundle, "sweep"), config(other, "sweep")
    assert {**mine, "sweep": without_names([mine["sweep"]])} == {**theirs, "sweep": without_names([theirs["sweep"]])}
    mine, theirs = config(bundle, "train"), config(other, "train")
    assert set(mine) - set(theirs) <= {"coordinates", "foreground", "label_values", "mirrored", "threshold", "window"}
    assert set(theirs) <= set(mine)
    same = {"lr_scheduler", "optimizer", "network", "split", "summary_writer", "initialize", "run", "finalize"}
    assert {id: mine[id] for id in same} == {id: theirs[id] for id in same}
    for part in ("train", "validate"):
        for id in ("handlers", "dataset", "dataloader", "trainer", "evaluator", "state", "stop"):
            assert without_names(mine[part].get(id)) == without_names(theirs[part].get(id)), id


def test_metadata_and_expressions(bundle):
    meta = config(bundle, "metadata")
    jsonschema.validate(meta, json.loads(SCHEMA.read_text(encoding="utf-8")))
    data = meta["network_data_format"]
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    inference = config(bundle, "inference")
    assert (
        len(image["channel_def"])
        == image["num_channels"]
        == inference["in_channels"] * (1 + inference.get("mirrored", 0))
    )
    assert len(pred["channel_def"]) == pred["num_channels"] == inference["num_classes"]
    assert image["spatial_shape"] == pred["spatial_shape"] == inference["roi_size"]
    for path in (bundle / "configs").glob("*.json"):
        found = set(expressions(config(bundle, path.stem)))
        allowed = {"monai_scaleequiv.data.brats_label_values", "bool", "len", "str"}
        assert {e: unexpected(e) - allowed for e in found if unexpected(e) - allowed} == {}, path


def test_nothing_is_read_or_written_before_the_run(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(bundle)
    for names, kind in ((["train"], "train"), (["train", "evaluate"], "train"), (["inference"], "infer")):
        given = {"bundle_root": str(bundle), "dataset_dir": "/no/such/folder", "device": CPU, **tiny(bundle)}
        workflow = ConfigWorkflow(config_files(bundle, *names), workflow_type=kind, logging_file=False, **given)
        workflow.initialize()
        assert workflow.network_def is not None
    assert (files(bundle), list(tmp_path.iterdir())) == (before, [])


def test_configs_on_top_fit_what_comes_after_the_training(bundle):
    """As the READMEs' commands have it, for evaluation and inference as for the training."""
    for own in OWN[bundle.name] - {"finetune"}:
        for names, kind in ((["train", own, "evaluate"], "train"), (["inference", own], "infer")):
            given = {"bundle_root": str(bundle), "dataset_dir": "/no/such/folder", "device": CPU, **tiny(bundle)}
            workflow = ConfigWorkflow(config_files(bundle, *names), workflow_type=kind, logging_file=False, **given)
            workflow.initialize()
            assert workflow.network_def is not None, own


def test_training_evaluation_and_inference(bundle, phantoms, trained, weights, images, tmp_path):
    record, given = read_record(trained / "models" / "model.pt"), config(bundle, "train")
    expected = {id: given[id] for id in given["record"]} | (
        {"label_values": [1, 2, 4]} if "label_values" in given else {}
    )
    assert {id: record[id] for id in given["record"]} == expected
    run(bundle, "train", "evaluate", dataset_dir=phantoms, output_dir=tmp_path / "evaluation", **weights)
    (values,) = [values for _, values in per_case(tmp_path / "evaluation", "val_mean_dice")]
    assert metrics(tmp_path / "evaluation")["val_mean_dice"] == pytest.approx(np.nanmean(values[:-1]), abs=1e-5)
    folder, case = images
    run(bundle, "inference", dataset_dir=folder, output_dir=tmp_path / "labels", **weights)
    assert len(list((tmp_path / "labels").iterdir())) == 5  # the label maps of BraTS are no images
    held = split_datalist(phantoms)[1][0]
    first = held["image"] if isinstance(held["image"], str) else held["image"][0]
    name = first.rsplit("/", 1)[1].replace(".nii", "_seg.nii")
    found, label = nib.load(tmp_path / "labels" / name), nib.load(held["label"])
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, label.affine)
    found, label = np.asarray(found.dataobj), np.asarray(label.dataobj)
    if bundle.name == BRATS:
        assert set(np.unique(found)) <= {0, 1, 2, 4}
        pairs = [(np.isin(found, region), np.isin(label, region)) for region in REGIONS.values()]
    else:
        pairs = [(found == organ, label == organ) for organ in range(1, 5)]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]
    assert dice == pytest.approx(values[:-1], abs=1e-3)
    assert max(dice) > 0
    run(bundle, "inference", "inference_native", dataset_dir=case[0].rsplit("/", 1)[0], output_dir=tmp_path / "native",
        **weights)  # fmt: skip
    native, grid = nib.load(next((tmp_path / "native").iterdir())), nib.load(case[0])
    assert (native.shape, native.get_data_dtype()) == (grid.shape, np.uint8)
    if (
        bundle.name == BRATS
    ):  # whose voxels have the training's size; windows that fit into the head, so that none is padded
        inside = {**weights, "roi_size": [16, 16, 16], "dataset_dir": case[0].rsplit("/", 1)[0]}
        for name, configs in (("one", ["inference"]), ("other", ["inference", "inference_native"])):
            run(bundle, *configs, output_dir=tmp_path / name, **inside)
        one, other = (nib.load(next((tmp_path / name).iterdir())) for name in ("one", "other"))
        np.testing.assert_array_equal(one.dataobj, other.dataobj)
        assert np.unique(one.dataobj).size > 1


def test_equivariance_of_a_case(bundle, trained, images, tmp_path):
    """The channels that the network has beside those of the files are not looked for."""
    source = Path(images[1][0]).parent if len(images[1]) > 1 else images[1][0]
    arguments = [f"--bundle={bundle}", f"--ckpt_path={trained / 'models' / 'model.pt'}", f"--input={source}"]
    assert main(["equivariance", *arguments, f"--output={tmp_path}", "--cases=1", "--ratios=0.9"]) == 0
    assert json.loads((tmp_path / "equivariance.json").read_text(encoding="utf-8"))


def test_tools_of_the_zoo_export_and_load(bundle, trained, monkeypatch, tmp_path):
    own = small(bundle, trained, tmp_path / bundle.name)
    files = {"meta_file": str(own / "configs" / "metadata.json"), "config_file": config_files(own, "inference")}
    monai.bundle.verify_net_in_out(net_id="network_def", **files, device="cpu")
    script = torch.jit.load(export_network(own))
    made = network(own)
    made.load_state_dict(load(own / "models" / "model.pt"))
    image = torch.randn(1, made.in_channels, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(script(image), made(image), atol=1e-4, rtol=1e-4)
    found = monai.bundle.load(own.name, bundle_dir=str(own.parent), device="cpu")
    assert equal(found.state_dict(), made.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_computes_the_same_at_any_size(bundle, trained, tmp_path):
    own = small(bundle, trained, tmp_path / bundle.name)
    filepath = str(tmp_path / "model.onnx")
    export_network(own, monai.bundle.onnx_export, filepath=filepath, converter_kwargs=ONNX_AT_ANY_SIZE)
    made = network(own)
    made.load_state_dict(load(own / "models" / "model.pt"))
    check_onnx(filepath, made)


def stack(case, path):
    """One file of a case's: of several modalities a 4D one, as MONAI Label and Deploy have it."""
    parts = [nib.load(file) for file in case]
    values = np.stack([part.get_fdata(dtype=np.float32) for part in parts], -1).squeeze()
    nib.save(nib.Nifti1Image(values, parts[0].affine), path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_deploy_gives_what_the_inference_gives(bundle, trained, images, monkeypatch, tmp_path):
    """Without the package, of BraTS the regions one by one, from which the labels follow."""
    own, image = small(bundle, trained, tmp_path / bundle.name), stack(images[1], tmp_path / "image.nii.gz")
    run(own, "inference", dataset_dir=image, output_dir=tmp_path / "out")
    expected = np.asarray(nib.load(tmp_path / "out" / "image_seg.nii.gz").dataobj)
    assert np.unique(expected).size > 1
    found, without = deployed(own, image, monkeypatch, tmp_path)
    np.testing.assert_array_equal(found, expected)
    if bundle.name == BRATS:
        core, whole, enhancing = without
        without = np.select([enhancing > 0, core > 0, whole > 0], [4, 1, 2], 0)
    np.testing.assert_array_equal(without, expected)


@pytest.mark.parametrize("tool", [LookUps, Label])
def test_label_looks_up_and_trains(bundle, trained, phantoms, images, tmp_path, tool):
    own, image = small(bundle, trained, tmp_path / bundle.name), stack(images[1], tmp_path / "image.nii.gz")
    tool = tool(own)
    found = tool.infer(image)
    run(own, "inference", dataset_dir=image, output_dir=tmp_path / "out")
    expected = np.asarray(nib.load(tmp_path / "out" / "image_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(np.asarray(found).squeeze(), expected)
    assert np.unique(expected).size > 1
    before = (own / "models" / "model.pt").read_bytes()
    given = {"label_values": [1, 2, 4]} if bundle.name == BRATS else {}
    parser = ConfigParser(config(own, "train"))
    parser.update({"dataset_dir": str(phantoms), **given})
    ConfigParser.export_config_file(parser.get(), config_files(own, "train")[0])
    tool.train([part for parts in split_datalist(phantoms) for part in parts][:4])
    assert (own / "models" / "model.pt").read_bytes() != before


@pytest.mark.slow
def test_federated_round(bundle, trained, phantoms, tmp_path):
    own = small(bundle, trained, tmp_path / "bundle")
    algo = client(own, phantoms, tmp_path / "site")
    zeros = {name: torch.zeros_like(weight) for name, weight in load(own / "models" / "model.pt").items()}
    start = scores([algo], load(own / "models" / "model.pt"))[0]
    assert scores([algo], zeros)[0] < start
    algo.train(monai.fl.utils.exchange_object.ExchangeObject(weights=load(own / "models" / "model.pt")))
    assert not equal(algo.get_weights().weights, load(own / "models" / "model.pt"))


@pytest.mark.slow
def test_export_runs_without_the_package(bundle, trained, phantoms, images, tmp_path_factory, tmp_path, request):
    own = small(bundle, trained, tmp_path / bundle.name)
    copied = tmp_path / "elsewhere"
    assert main(["export_bundle", str(own), str(copied)]) == 0
    assert not (request.getfixturevalue("exported") / "models").exists()
    env = request.getfixturevalue("elsewhere")
    (copied / "eval").mkdir()
    shutil.copy(SCHEMA, copied / "eval" / "schema.json")
    commands = [*verification(), *runs(own, phantoms, tmp_path)][:-1]
    done = python("-c", PROGRAM, json.dumps([commands, str(images[0])]), cwd=copied, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "evaluate" / "metrics.csv").is_file()


# --- BraTS ---


@pytest.fixture(scope="module")
def since_2023(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brats_2023")
    return make_brats(folder / "data", folder / "source", since_2023=True)


def test_brats_names_before_and_since_2023(since_2023, tmp_path):
    folder = make_brats(tmp_path / "data", tmp_path / "source")
    for data, column, values in ((folder, 0, [1, 2, 4]), (since_2023, 1, [1, 2, 3])):
        case = split_datalist(data)[0][0]
        endings = [path.split("phantom_00")[-1][1:].strip("_-").split(".")[0] for path in case["image"]]
        assert endings == [names[column] for names in MODALITIES.items()]
        assert brats_label_values(data) == values
        assert (check_dataset(data).errors, check_dataset(data).warnings) == ([], [])
    shutil.copytree(since_2023, tmp_path / "both")
    shutil.copytree(folder / "phantom_000", tmp_path / "both" / "earlier")
    with pytest.raises(ValueError, match="keep challenges before and since 2023 apart"):
        split_datalist(tmp_path / "both")


def test_answers_have_the_labels_of_the_training(since_2023, tmp_path, capsys):
    """Evaluated on cases of another code, trained on one: each with its own; another code for answers by its name."""
    bundle, output = BUNDLES / BRATS, tmp_path / "training"
    train(bundle, since_2023, output, learning_rate=0.02)
    weights = output / "models" / "model.pt"
    assert read_record(weights)["label_values"] == [1, 2, 3]
    size = "--roi_size=[24,32,24]"

    def infer(*options):
        arguments = [f"--bundle={bundle}", f"--input={since_2023 / 'phantom_001'}", f"--ckpt_path={weights}", size]
        return main(["infer", *arguments, f"--output={tmp_path / 'labels'}", *options])

    def found():
        return np.asarray(nib.load(next((tmp_path / "labels").iterdir())).dataobj)

    assert infer() == 0
    own = found()
    assert set(np.unique(own)) <= {0, 1, 2, 3}
    assert infer("--label_values=[1,2,4]") == 1  # not those of the training
    assert infer("--output_values=[1,2,4]", "--skip_existing=true") == 1  # two codes in one folder
    assert "expected a result of weights [1, 2, 4]" in capsys.readouterr().err
    assert infer("--threshold=0.2", "--skip_existing=true") == 1  # two thresholds
    assert "expected a result of weights [1, 2, 3] 0.2" in capsys.readouterr().err
    assert infer("--output_values=[1,2,4]", "--overwrite=true") == 0
    np.testing.assert_array_equal(found(), np.where(own == 3, 4, own))
    earlier = make_brats(tmp_path / "earlier", tmp_path / "source")
    arguments = [f"--bundle={bundle}", f"--ckpt_path={weights}", size]
    for data, name in ((since_2023, "one"), (earlier, "other")):
        assert main(["evaluate", f"--input={data}", f"--output={tmp_path / name}", *arguments]) == 0
    values = [dict(per_case(tmp_path / name, "val_mean_dice")) for name in ("one", "other")]
    (one,), other = values[0].values(), values[1]
    held = next(iter(values[0])).replace("-t2f", "_flair")
    assert other[held] == pytest.approx(one, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "names", [["T1", "T1ce", "T2", "Flair"], ["FLAIR", "T1w", "T2w", "t1gd"], ["a", "b", "c", "d"]]
)
def test_channels_in_another_order_are_an_error(tmp_path, names):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for channel in range(4):
        write_volume(tmp_path / "imagesTr" / f"a_{channel:04d}.nii.gz")
    write_volume(tmp_path / "labelsTr" / "a.nii.gz")
    labels = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 3}

    def task(names):
        given = {"channel_names": {str(i): name for i, name in enumerate(names)}, "labels": labels}
        (tmp_path / "dataset.json").write_text(json.dumps({**given, "file_ending": ".nii.gz"}))

    task(["Flair", "T1", "T1ce", "T2"])
    assert brats_label_values(tmp_path) == [1, 2, 3]
    task(names)
    with pytest.raises(ValueError, match="expected FLAIR, T1, T1ce, T2, got"):
        brats_label_values(tmp_path)


def test_two_files_of_one_modality_are_an_error(since_2023, tmp_path):
    data = shutil.copytree(since_2023, tmp_path / "data")
    file = data / "phantom_003" / "phantom_003-t1c.nii.gz"
    shutil.copy(file, file.with_name("phantom_003-T1C.nii"))
    with pytest.raises(ValueError, match="expected one file of t1c for phantom_003"):
        split_datalist(data)


def test_scans_of_one_patient_stay_together(tmp_path):
    """As since 2023, when patients have several."""
    for patient in range(5):
        for scan in range(2):
            name = f"BraTS-GLI-{patient:05d}-{scan:03d}"
            (tmp_path / name).mkdir()
            for part in (*MODALITIES.values(), "seg"):
                (tmp_path / name / f"{name}-{part}.nii.gz").write_bytes(b"")
    parts = [{case["label"].split("/")[-2][:15] for case in part} for part in split_datalist(tmp_path)]
    assert [len(part) for part in parts] == [4, 1]
    assert not set.intersection(*parts)


def test_consistency_of_regions_that_overlap():
    """Each by itself: the region that covers everything does not hide the others, and none is a background."""
    logits = torch.full((1, 3, 8, 8), -4.0)
    logits[:, 1] = 4
    logits[:, 2, 2:6] = 4
    torch.testing.assert_close(consistency_dice(logits, logits, overlapping=True)[0, 1:], torch.ones(2))
    other = logits.clone()
    other[:, 2] = -4
    assert consistency_dice(other, logits, overlapping=True)[0, 2] == 0


@pytest.mark.parametrize("command", ["check", "train"])
def test_missing_modality_names_the_case(since_2023, tmp_path, capsys, command):
    data = shutil.copytree(since_2023, tmp_path / "data")
    (data / "phantom_003" / "phantom_003-t1c.nii.gz").unlink()
    options = [] if command == "check" else [f"--output={tmp_path / 'out'}", f"--bundle={BUNDLES / BRATS}"]
    assert main([command, f"--input={data}", *options]) == 1
    told = capsys.readouterr()
    (line,) = {line for line in (told.out + told.err).splitlines() if "no t1ce" in line}
    assert "phantom_003" in line


@pytest.mark.parametrize("part", ["t1c", "t2f"])  # among others, and what the case is named after
def test_case_that_lacks_a_modality_fails_alone(since_2023, tmp_path, capsys, part):
    data, bundle = shutil.copytree(since_2023, tmp_path / "data"), BUNDLES / BRATS
    (data / "phantom_003" / f"phantom_003-{part}.nii.gz").unlink()
    torch.save(network(bundle, **tiny(bundle)).state_dict(), tmp_path / "model.pt")
    options = {"ckpt_path": tmp_path / "model.pt", "roi_size": list(SIZE), **tiny(bundle)}
    told = [f"--{name}={value}" for name, value in options.items()]
    assert main(["infer", f"--input={data}", f"--output={tmp_path / 'out'}", f"--bundle={bundle}", *told]) == 1
    assert "1 of 5 volumes failed" in capsys.readouterr().err
    (text,) = json.loads((tmp_path / "out" / "failures.json").read_text()).values()
    assert text.endswith(f"{data}/phantom_003/phantom_003-{part}.nii.gz: expected a file, got none; restore it.")
    cases = {case.name for case in data.iterdir() if case.is_dir()} - {"phantom_003"}
    assert {path.name.split("-")[0] for path in (tmp_path / "out").glob("*.nii.gz")} == cases


def test_missing_modality_is_named_as_the_others_are(tmp_path):
    for part in ("flair", "t1", "t2"):
        (tmp_path / f"BraTS20_001_{part}.nii").write_bytes(b"")
    (case,) = nifti_datalist(tmp_path, channels=4)
    names = [Path(file).name for file in case["image"]]
    assert names == [f"BraTS20_001_{part}.nii" for part in ("flair", "t1", "t1ce", "t2")]


def test_labels_of_the_decathlon_by_their_names(since_2023, tmp_path):
    """A 4D file per case; 1 is the oedema there and 2 the core, so that a code that is not told is an error."""
    entries = []
    for case in split_datalist(since_2023)[0]:
        name = case["label"].split("/")[-2]
        stacked = np.stack([nib.load(path).get_fdata(dtype=np.float32) for path in case["image"]], -1)
        label = np.choose(np.asarray(nib.load(case["label"]).dataobj), [0, 2, 1, 3]).astype(np.uint8)
        for part, values in (("images", stacked), ("labels", label)):
            (tmp_path / f"{part}Tr").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{part}Tr" / f"{name}.nii.gz")
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    names = ["background", "edema", "non-enhancing tumor", "enhancing tumour"]
    task = {"labels": {str(i): name for i, name in enumerate(names)}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(task))
    assert brats_label_values(tmp_path) == [2, 1, 3]

    def regions(folder, **given):
        options = {"dataset_dir": str(folder), "bundle_root": str(BUNDLES / BRATS), **given}
        parser = ConfigParser()
        parser.read_config(config_files(BUNDLES / BRATS, "train"))
        parser.update(options)
        item = parser.get_parsed_content("validate")["preprocessing"](split_datalist(since_2023)[0][0] | (
            {"image": str(tmp_path / entries[0]["image"]), "label": str(tmp_path / entries[0]["label"])}
            if folder == tmp_path else {}
        ))  # fmt: skip
        return np.asarray(item["label"]), np.asarray(item["image"])

    for one, other in zip(regions(tmp_path), regions(since_2023), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(RuntimeError) as raised:
        regions(since_2023, label_values=[1, 2, 4])
    assert "expected one of the labels 0, 1, 2, 4, got 3" in str(raised.value.__cause__ or raised.value)
    task["labels"]["3"] = "tumour"
    (tmp_path / "dataset.json").write_text(json.dumps(task))
    with pytest.raises(ValueError, match="expected one label for the enhancing tumour"):
        brats_label_values(tmp_path)


def test_label_values_of_the_answer(since_2023, tmp_path):
    bundle = BUNDLES / BRATS
    small_net = {**tiny(bundle), "roi_size": list(SIZE), "load_pretrain": False, "handlers": []}
    case = since_2023 / "phantom_001"
    found = {}
    for values in ([1, 2, 4], [1, 2, 3], [2, 1, 3]):
        torch.manual_seed(1)
        output = tmp_path / "".join(map(str, values))
        run(bundle, "inference", dataset_dir=case, output_dir=output, output_values=values, **small_net)
        found[tuple(values)] = np.asarray(nib.load(next(output.iterdir())).dataobj)
    one, other, third = found.values()
    assert np.unique(one).size > 1
    np.testing.assert_array_equal(np.where(one == 4, 3, one), other)
    np.testing.assert_array_equal(np.choose(other, [0, 2, 1, 3]), third)
    message = error_of(run, bundle, "inference", dataset_dir=case, output_dir=tmp_path, output_values=[1, 1, 4])
    assert message.startswith("label_values: expected three labels from 1 to 255")


def test_what_lies_around_the_head_does_not_matter(since_2023, tmp_path):
    """The plane that is mirrored in is the head's, wherever it lies on the grid; air gets no label."""
    margins, found = ((7, 1), (0, 3), (2, 2)), []
    for margin, case in (((0, 0),) * 3, tmp_path / "a"), (margins, tmp_path / "b"):
        case.mkdir()
        for path in sorted((since_2023 / "phantom_001").glob("*-t*.nii.gz")):
            values = np.pad(nib.load(path).get_fdata(dtype=np.float32)[4:20] + 1, margin)  # nothing of the head is 0
            nib.save(nib.Nifti1Image(values, np.eye(4)), case / path.name)
        torch.manual_seed(1)
        options = {**tiny(BUNDLES / BRATS), "roi_size": list(SIZE), "load_pretrain": False, "handlers": []}
        run(BUNDLES / BRATS, "inference", dataset_dir=case, output_dir=case / "out", **options)
        found.append(np.asarray(nib.load(next((case / "out").iterdir())).dataobj))
    assert np.unique(found[0]).size > 1
    np.testing.assert_array_equal(np.pad(found[0], margins), found[1])


def test_weights_say_whether_the_other_side_is_seen(since_2023, tmp_path, capsys):
    """Four channels in, as the paper's network has them, and no override when they are applied."""
    options = [f"--bundle={BRATS}", f"--input={since_2023}", "--device=cpu", f"--roi_size={list(SIZE)}"]
    definition = {**config(BUNDLES / BRATS, "train")["network_def"], "channels": [2, 4], "strides": [2]}
    ckpt = f"--ckpt_path={tmp_path / 'out' / 'models' / 'model.pt'}"
    given = {"patch_size": list(SIZE), "roi_size": list(SIZE), "epochs": 1, "network_def": definition}
    run(BUNDLES / BRATS, "train", dataset_dir=since_2023, output_dir=tmp_path / "out", mirrored="false", **given)
    assert read_record(tmp_path / "out" / "models" / "model.pt")["mirrored"] is False
    assert main(["evaluate", *options, ckpt, f"--output={tmp_path / 'eval'}"]) == 0
    case = f"--input={since_2023 / 'phantom_001'}"
    assert main(["infer", *options[:1], *options[2:], case, ckpt, f"--output={tmp_path / 'labels'}"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *options, ckpt, f"--output={tmp_path / 'eval2'}", "--mirrored=true"]) == 1
    assert "mirrored" in capsys.readouterr().err.splitlines()[-1]


# --- abdomen ---


@pytest.fixture(scope="module")
def flare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flare")
    return make_flare(folder / "data", folder / "source")


def test_evaluation_after_a_training_without_a_window(flare, tmp_path):
    """What the record says is taken, null as well, without the config that said it."""
    bundle = f"--bundle={BUNDLES / ABDOMEN}"
    quick = [f"--{id}={json.dumps(value)}" for id, value in {**tiny(BUNDLES / ABDOMEN), **QUICK, "epochs": 1}.items()]
    arguments = [bundle, f"--input={flare}", f"--output={tmp_path / 'out'}", "--config=amos, finetune", *quick]
    assert main(["train", *arguments, "--window=null", "--weights=null"]) == 1  # a path is expected
    arguments[3] = "--config=amos"
    assert main(["train", *arguments, "--window=null"]) == 0
    weights = f"--ckpt_path={tmp_path / 'out' / 'models' / 'model.pt'}"
    given = [bundle, f"--input={flare}", f"--output={tmp_path / 'evaluation'}", weights, "--roi_size=[24,32,24]"]
    assert main(["evaluate", *given]) == 0


@pytest.mark.parametrize("name", ["train", "metadata", "2", "ammos", "amos,,"])
def test_config_that_is_none_to_lie_on_top(flare, tmp_path, capsys, name):
    arguments = [f"--bundle={BUNDLES / ABDOMEN}", f"--input={flare}", f"--output={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments, f"--config={name}"]) == 1
    assert "expected a config of" in capsys.readouterr().err


def test_another_window_than_the_training_s_is_an_error(flare, tmp_path):
    bundle = BUNDLES / ABDOMEN
    output = train(bundle, flare, tmp_path / "out", epochs=1)
    assert read_record(output / "models" / "model.pt")["window"] == [-175, 250]
    given = {"ckpt_path": output / "models" / "model.pt", "roi_size": list(SIZE), **tiny(bundle)}
    message = error_of(
        run, bundle, "inference", dataset_dir=flare / "imagesTr", output_dir=tmp_path, window="$None", **given
    )
    assert "expected window=[-175, 250] as in its training" in message


def test_fine_tuning_to_other_labels_and_images(flare, phantoms_of_the_decathlon, tmp_path, caplog):
    """From the weights of one label set, with a new head for another, that of `amos.json`; what is new is named."""
    bundle = BUNDLES / ABDOMEN
    first = train(bundle, flare, tmp_path / "first", epochs=1) / "models" / "model.pt"
    options = {**tiny(bundle), **QUICK, "epochs": 1, "weights": first, "learning_rate": 0.0}
    run(bundle, "train", "amos", "finetune", dataset_dir=flare, output_dir=tmp_path / "amos", **options)
    old, new = load(first), load(tmp_path / "amos" / "models" / "model.pt")
    heads = [name for name in old if old[name].shape != new[name].shape]
    assert {new[name].shape[0] for name in heads} == {16}
    assert all(name in caplog.text for name in heads)
    learned = {name for name, _ in network(bundle, **tiny(bundle)).named_parameters()} - set(heads)
    assert all(torch.equal(old[name], new[name]) for name in learned)
    shipped = BUNDLES / "repuxnet_hippocampus_segmentation" / "models" / "model.pt"
    options = {**QUICK, "epochs": 1, "weights": shipped, "learning_rate": 0.0, "spacing": [1.0, 1.0, 1.0]}
    options["coordinates"] = []  # those weights are of images alone
    run(bundle, "train", "chaos", dataset_dir=phantoms_of_the_decathlon, output_dir=tmp_path / "chaos", **options)
    assert read_record(tmp_path / "chaos" / "models" / "model.pt")["window"] is None


def test_place_within_the_image_as_channels(flare, tmp_path):
    """Weights say which axes; a network that passes one on gives the half that it is told, on the input's own grid."""
    bundle, output, images = BUNDLES / ABDOMEN, tmp_path / "out", flare / "imagesTr"
    train(bundle, flare, output, epochs=1, coordinates=[0, 2])
    weights = f"--ckpt_path={output / 'models' / 'model.pt'}"
    record = read_record(output / "models" / "model.pt")
    assert (record["coordinates"], record["network_def"]["in_channels"]) == ([0, 2], 3)
    given = [f"--bundle={bundle}", weights, "--roi_size=[24,32,24]"]
    assert main(["evaluate", *given, f"--input={flare}", f"--output={tmp_path / 'evaluation'}"]) == 0
    assert main(["infer", *given, f"--input={images}", f"--output={tmp_path / 'labels'}"]) == 0
    place = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 2, "kernel_size": 1}
    layer = torch.nn.Conv3d(2, 2, 1)
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1, 1))
    torch.save(layer.state_dict(), tmp_path / "place.pt")
    options = {"network_def": place, "num_classes": 2, "ckpt_path": tmp_path / "place.pt", "coordinates": [1]}
    for configs in (["inference"], ["inference", "inference_native"]):
        result = tmp_path / configs[-1]
        run(bundle, *configs, dataset_dir=images, output_dir=result, **options)
        half = nib.load(next(path for path in result.rglob("*.nii.gz")))
        labels = np.asarray(half.dataobj)
        front, behind = (nib.affines.apply_affine(half.affine, np.argwhere(labels == k))[:, 1] for k in (1, 0))
        assert 0.3 < labels.mean() < 0.7
        assert front.min() > behind.max() - 1e-3


@pytest.fixture(scope="module")
def phantoms_of_the_decathlon(tmp_path_factory):
    from monai_scaleequiv.data import make_phantom_dataset

    return make_phantom_dataset(tmp_path_factory.mktemp("decathlon"), cases=5, size=SIZE).parent


def test_cache_on_disk_gives_the_same_training(bundle, phantoms, trained, tmp_path):
    """Crops and augmentations are drawn as without it, and a changed transform does not take the stored volumes."""
    options = {"cache_rate": 1.0, "learning_rate": 0.02, "epochs": 3}
    given = {**tiny(bundle), **QUICK, **options}
    run(bundle, "train", "persistent", dataset_dir=phantoms, output_dir=tmp_path, cache_dir=tmp_path / "cache", **given)
    assert equal(load(tmp_path / "models" / "model_final.pt"), load(trained / "models" / "model_final.pt"))
    stored = len(list((tmp_path / "cache").iterdir()))
    other = {**given, "epochs": 1, "spacing": [1.5, 1.5, 1.5]}
    again = {"dataset_dir": phantoms, "output_dir": tmp_path / "again", "cache_dir": tmp_path / "cache"}
    run(bundle, "train", "persistent", **again, **other)
    assert len(list((tmp_path / "cache").iterdir())) == 2 * stored
    label = split_datalist(phantoms)[0][0]["label"]
    before = files_hashing({"label": label})
    copied = shutil.copy2(label, tmp_path / "label.nii.gz")
    assert files_hashing({"label": str(copied)}) != before
    os.utime(copied, ns=(0, 0))
    changed = files_hashing({"label": str(copied)})
    os.utime(copied, ns=(0, 1))
    assert files_hashing({"label": str(copied)}) != changed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory as Linux tells it")
def test_a_worker_holds_a_large_case_once(tmp_path):
    """What it needs beyond the case, such as for a crop's rotation, does not grow with the case."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.large_training", "256", "256", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["case"] > 100e6
    assert max(found["above"]) < found["case"] + 150e6


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_regions_are_those_of_monai_s_own_transforms(threshold):
    """Resampled, for interpolation tells probabilities from logits; inner regions count in the outer ones, too."""
    torch.manual_seed(0)
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    steps = Compose([Orientationd("image", axcodes="LPS", labels=None), Spacingd("image", pixdim=(1, 1, 1))])
    data = steps({"image": MetaTensor(torch.rand(1, 8, 9, 10), affine=affine)})
    logits = 2 * torch.randn(3, *data["image"].shape[1:]) + math.log(threshold / (1 - threshold))
    plain = Compose(
        [
            Activationsd("pred", sigmoid=True),
            Invertd("pred", steps, "image", nearest_interp=False),
            AsDiscreted("pred", threshold=threshold),
        ]
    )
    core, whole, enhancing = plain({**data, "pred": MetaTensor(logits.clone())})["pred"].as_tensor().bool()
    expected = torch.stack([core | enhancing, whole | core | enhancing, enhancing])
    step = BratsRegionsInvertd("pred", steps, "image", label_values=None, threshold=threshold)
    found = step({**data, "pred": logits.clone()})["pred"]
    assert torch.equal(torch.as_tensor(found).bool(), expected)
    assert 0.2 < expected.float().mean() < 0.8
    logits[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        BratsRegionsInvertd("pred", steps, "image")({**data, "pred": logits})
    with pytest.raises(ValueError, match="expected a probability between 0 and 1, got 20"):
        BratsRegionsInvertd("pred", steps, "image", threshold=20)
