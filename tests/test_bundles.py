"""Every bundle as its users run it: metadata, configs, exports, training, evaluation, inference, several processes."""

import ast
import hashlib
import json
import re
import shutil
from pathlib import Path

import jsonschema
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor, load_decathlon_datalist
from monai.metrics import compute_hausdorff_distance
from monai.networks.utils import one_hot
from monai.transforms import Compose
from monai.utils import fall_back_tuple

import monai_scaleequiv
from monai_scaleequiv.data import definition_of, read_record, split_datalist, write_record
from monai_scaleequiv.maths import rescale
from tests.bundle_runs import (
    CONFIGS,
    CPU,
    FOLDERS,
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
    probe_labels,
    run,
    run_on_two,
    scalars,
    tiny,
    train,
    write_probe,
)
from tests.conftest import BUNDLES, shared
from tests.fault_files import write_volume

ORIENTATION = np.array([[2, 1], [0, -1], [1, 1]])
SCHEMA = Path(__file__).parent / "data" / "meta_schema_20240725.json"
IMPORTS = {"datetime", "glob", "ignite.distributed", "monai_scaleequiv", "os", "torch", "torch.distributed"}
# What bundles for the same task may have of their own; all else in their folders is the same.
OWN = {
    "network_def",
    "network_data_format",
    "roi_size",
    "version",
    "changelog",
    "name",
    "description",
    "eval_metrics",
    "references",
}
# Sections of the Model Zoo's template for a README, in its order.
SECTIONS = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "Additional Usage Steps"]
SECTIONS += ["System Configuration", "Limitations", "Citation Info", "References"]
CALLS = {
    "datetime.timedelta",
    "dist.barrier",
    "dist.destroy_process_group",
    "dist.get_rank",
    "dist.get_world_size",
    "dist.init_process_group",
    "dist.is_initialized",
    "idist.all_gather",
    "int",
    "isinstance",
    "max",
    "min",
    "monai.utils.set_determinism",
    "monai.utils.str2bool",
    "monai_scaleequiv.data.loader_workers",
    "monai_scaleequiv.data.weights_digest",
    "monai_scaleequiv.handlers.leave_process_group",
    "reference.exit_if_stopped",
    "reference.parameters",
    "reference.run",
    "reference.to",
    "str",
    "torch.cuda.is_available",
    "torch.cuda.set_device",
    "torch.device",
    "zip",
}
# The weights that were released, byte for byte, and the cases that they have seen.
WEIGHTS = {
    "repuxnet": "4ad228dc11d70de13b0bcde34854eda6e5bf1429a93989beb8dc183bb5f1461c",
    "scalecanonicalizer": "36e04d486f2ff3a598a1218268d9a50cab0dc9db7282f7e99f0d696925fc93a3",
    "seunet": "eeb71a855b16f3a912beef7a37c4245669d7674a6f7fa71523fd4b1932ca60fd",
}
TRAINING_CASES = {"repuxnet": 166, "scalecanonicalizer": 168, "seunet": 166}
WORKFLOWS = pytest.mark.parametrize(
    "configs",
    [
        ["train"],
        ["train", "evaluate"],
        ["train", "evaluate", "sweep"],
        ["inference"],
        ["inference", "inference_native"],
    ],
)
EACH = pytest.mark.parametrize("bundle", [folder.name for folder in reversed(FOLDERS)], indirect=True)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return write_probe(tmp_path_factory.mktemp("probe") / "probe.pt")


# --- what is in the folder ---


@EACH
def test_files_of_a_bundle(bundle):
    expected = ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "models/model.json"]
    expected += [f"configs/{name}.json" for name in CONFIGS]
    assert [name for name in expected if not (bundle / name).is_file()] == []
    assert "Apache License" in (bundle / "LICENSE").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", (bundle / "docs" / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    # The sizes of the zoo's spleen bundle.
    for name, lines in {"train": 307, "inference": 152}.items():
        assert len((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8").splitlines()) <= lines
    content = (bundle / "models" / "model.pt").read_bytes()
    assert len(content) < 25e6
    kind = bundle.name.split("_")[0]
    assert hashlib.sha256(content).hexdigest() == WEIGHTS[kind]
    made = network(bundle)
    made.load_state_dict(load(bundle / "models" / "model.pt"), strict=True)
    record, training = read_record(bundle / "models" / "model.pt"), config(bundle, "train")
    definition = record.pop("network_def")
    assert definition == definition_of(made)
    again = ConfigParser({"network": definition}).get_parsed_content("network")
    again.load_state_dict(made.state_dict(), strict=True)
    assert len(record.pop("training_cases")) == TRAINING_CASES[kind]
    assert record == {id: training[id] for id in ("spacing", "num_classes", "in_channels", "normalization")}


@EACH
def test_shipped_record_lists_the_cases_of_the_training(bundle):
    folder = shared("data", "Task04_Hippocampus")
    listed = load_decathlon_datalist(str(folder / "dataset.json"))
    sizes = {Path(case["image"]).name: Path(case["image"]).stat().st_size for case in listed}
    seen = read_record(bundle / "models" / "model.pt")["training_cases"]
    assert seen.items() <= sizes.items()
    if len(seen) == 168:  # all but the first 40, which docs/results.md tests every network on
        assert set(seen) == set(sorted(sizes)[40:])
    else:
        assert {Path(case["image"]).name for case in split_datalist(folder)[0]} == set(seen)


def innermost(definition):
    """The definition of the network that others are around."""
    while "network" in definition:
        definition = definition["network"]
    return definition


@pytest.mark.slow
@EACH
def test_evaluation_gives_the_figures_of_the_metadata(bundle, tmp_path):
    run(bundle, "train", "evaluate", dataset_dir=shared("data", "Task04_Hippocampus"), output_dir=tmp_path)
    rows = np.array([values for _, values in per_case(tmp_path, "val_mean_dice")])[:, :2]
    found = dict(zip(("anterior", "posterior"), rows.mean(0), strict=True))
    figures = {f"mean_dice_{name}": value for name, value in found.items()} | {"mean_dice": rows.mean()}
    assert figures == pytest.approx(config(bundle, "metadata")["eval_metrics"], abs=2e-3)


@EACH
def test_metadata_follow_the_schema_and_the_network(bundle):
    meta, parser = config(bundle, "metadata"), ConfigParser(config(bundle, "inference"))
    jsonschema.validate(meta, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert meta["schema"].endswith(f"/{SCHEMA.name}")
    assert meta["version"] in meta["changelog"]
    assert meta["required_packages_version"]["monai-scaleequiv"] == monai_scaleequiv.__version__
    data = meta["network_data_format"]
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    made = innermost(definition_of(network(bundle)))
    assert len(image["channel_def"]) == image["num_channels"] == made["in_channels"]
    assert len(pred["channel_def"]) == pred["num_channels"] == made["out_channels"]
    window = fall_back_tuple(parser["roi_size"], image["spatial_shape"])  # -1 for the whole volume
    assert image["spatial_shape"] == pred["spatial_shape"] == list(window)


def test_bundles_for_the_same_task_share_all_but_the_network():
    for task in {folder.name.split("_", 1)[1] for folder in FOLDERS}:
        for name in [*(f"configs/{name}.json" for name in [*CONFIGS, "metadata"]), "LICENSE", "docs/data_license.txt"]:
            texts = [(folder / name).read_text(encoding="utf-8") for folder in FOLDERS if folder.name.endswith(task)]
            if name.endswith(".json"):
                texts = [{id: part for id, part in json.loads(text).items() if id not in OWN} for text in texts]
            assert texts == [texts[0]] * len(texts), name


def test_inference_does_what_evaluation_and_training_do(bundle):
    training, inference, native = (config(bundle, name) for name in ("train", "inference", "inference_native"))
    for id in ("network_def", "network", "roi_size", "record", *inference["record"]):
        assert training[id] == inference[id]
    assert training["validate"]["inferer"] == inference["inferer"]

    def steps(transforms):
        of_images = [step for step in transforms if step["keys"] != "label"]
        return [{key: value for key, value in step.items() if key not in ("keys", "mode")} for step in of_images]

    one = steps(inference["preprocessing"]["transforms"])
    assert one == steps(config(bundle, "evaluate")["validate#preprocessing#transforms"])
    assert one == steps(training["to_working_grid"])
    without = [
        {k: v for k, v in step.items() if k != "pixdim"} for step in one if step["_target_"] != "OwnKeysSpacingd"
    ]
    assert without == steps(native["preprocessing#transforms"])
    assert len(without) == len(one) - 1


def test_a_switch_is_never_taken_as_a_text():
    """MONAI's command line leaves ``false`` a text: expressions read it by MONAI's ``str2bool``."""
    names = "amp|channel_wise|load_pretrain|mirrored|nonzero|probabilities|save_scale_map|tensorboard"
    files = sorted(BUNDLES.glob("*/configs/*.json"))
    found = [(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    used = [(name, line) for name, line in found if re.search(rf"@(\w+#)?({names})\b", line)]
    assert len(used) > 50
    read = re.compile(rf"str2bool\(str\(@(\w+#)?({names})\b")
    assert [(name, line) for name, line in used if re.search(rf"@(\w+#)?({names})\b", read.sub("", line))] == []


def expressions(part):
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from expressions(value)
    elif isinstance(part, str) and part.startswith("$"):
        yield part[1:]


def unexpected(expression):
    """What a config's expression does beyond the few things that ours need."""
    try:
        tree = ast.parse(re.sub(r"[@%]\w+((#|::)\w+)*", "reference", expression))
    except SyntaxError:
        return {"not Python"}
    nodes = list(ast.walk(tree))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    other = {type(node).__name__ for node in nodes if isinstance(node, (ast.ImportFrom, ast.NamedExpr))}
    private = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    names = {node.id for node in nodes if isinstance(node, ast.Name) and node.id.startswith("_")}
    return imported - IMPORTS | called - CALLS | other | private - {"__version__"} | names


@EACH
def test_expressions_are_few_and_plain(bundle):
    for name in CONFIGS:
        found = set(expressions(config(bundle, name)))
        assert found
        assert {expression: unexpected(expression) for expression in found if unexpected(expression)} == {}


@WORKFLOWS
def test_what_initialize_touches(bundle, phantoms, tmp_path, monkeypatch, configs):
    """Neither data nor disk; and nothing is written before the run, whatever MONAI builds to find its properties."""
    monkeypatch.chdir(tmp_path)
    before, kind = files(bundle), configs[0].removesuffix("ence")  # "train" or "infer"
    for data in ("/no/such/folder", str(phantoms if kind == "train" else phantoms / "imagesTr")):
        given = {"bundle_root": str(bundle), "dataset_dir": data, "output_dir": str(tmp_path / "out"), "device": CPU}
        workflow = ConfigWorkflow(config_files(bundle, *configs), workflow_type=kind, logging_file=False, **given)
        workflow.initialize()
        assert workflow.network_def is not None
    assert workflow.check_properties() == []
    assert not list(tmp_path.iterdir())
    assert files(bundle) == before


def test_monai_loads_a_bundle_without_data(bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"workflow_type": "inference"}):
        loaded = monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent), **options)
        assert loaded is not None
    assert not list(tmp_path.iterdir())


def test_seed_decides_the_first_weights(bundle):
    def weights(seed):
        workflow = ConfigWorkflow(
            config_files(bundle, "train"), "train", logging_file=False, seed=seed, device=CPU, **tiny(bundle)
        )
        workflow.initialize()
        return torch.cat([p.flatten() for p in workflow.network_def.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


# --- network and exports ---


@EACH
def test_verify_net_in_out(bundle):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config_files(bundle, "inference"),
        device="cpu",
    )


@pytest.fixture(scope="module")
def shipped(bundle):
    """The network with the weights that the bundle ships."""
    shipped = network(bundle)
    shipped.load_state_dict(load(bundle / "models" / "model.pt"))
    return shipped


def _export(command, bundle, target, **options):
    command(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config_files(bundle, "inference"),
        **options,
    )


@EACH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_computes_the_same(bundle, shipped, tmp_path):
    _export(monai.bundle.ckpt_export, bundle, tmp_path / "model.ts")
    exported = torch.jit.load(tmp_path / "model.ts")
    whole = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["spatial_shape"]
    for size in (whole, [19, 22, 17]):
        # Blobs, as organs are: noise would be taken for a tiny image by the one that estimates sizes, and enlarged.
        image = rescale(torch.randn(1, 1, *[n // 6 for n in size]), size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), shipped(image), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_computes_the_same_at_any_size(bundle, shipped, tmp_path):
    _export(monai.bundle.onnx_export, bundle, tmp_path / "model.onnx", converter_kwargs=ONNX_AT_ANY_SIZE)
    check_onnx(tmp_path / "model.onnx", shipped)


# --- training ---


@EACH
def test_what_a_training_leaves(bundle, trained):
    folder = trained / "models"
    epochs = [load(folder / f"checkpoint_epoch={n}.pt") for n in (1, 2)]
    names = {"model.pt", "model.json", "model_final.pt", "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"}
    names |= {"curve.png", "overlay_epoch=1.png", "overlay_epoch=2.png"}
    assert {path.name for path in folder.iterdir()} == names
    made = network(bundle, **tiny(bundle))
    made.load_state_dict(load(folder / "model.pt"), strict=True)
    assert epochs[1]["lr_scheduler"]["last_epoch"] == 2
    assert epochs[1]["trainer"]["iteration"] == 2 * epochs[1]["trainer"]["epoch_length"]
    first, second = (epoch["network"] for epoch in epochs)
    final = load(folder / "model_final.pt")
    assert all(torch.equal(final[name], weight) for name, weight in second.items())
    assert set(first) == set(load(folder / "model.pt"))
    assert [name for name in first if first[name].is_floating_point() and torch.equal(first[name], second[name])] == []
    losses, dice = scalars(trained, "train_loss"), scalars(trained, "val_mean_dice")
    assert len(losses) == epochs[1]["trainer"]["iteration"]
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    assert set(dice) == {1, 2}
    assert all(0 <= value <= 1 for value in dice.values())
    record = read_record(folder / "model.pt")
    assert record["network_def"] == definition_of(made)
    assert len(record["training_cases"]) == 4
    assert record["spacing"] == [1.0, 1.0, 1.0]


def test_resuming_with_more_epochs_goes_on_learning(bundle, phantoms, trained, tmp_path):
    # The schedule follows the number of epochs now asked for, not the one in the checkpoint.
    train(bundle, phantoms, tmp_path, resume=str(trained / "models" / "checkpoint_epoch=1.pt"), epochs=3)
    assert set(scalars(tmp_path, "val_mean_dice")) == {2, 3}
    second, third = (load(tmp_path / "models" / f"checkpoint_epoch={n}.pt") for n in (2, 3))
    assert third["trainer"]["iteration"] == 3 * third["trainer"]["epoch_length"]
    weights = [name for name, _ in network(bundle, **tiny(bundle)).named_parameters()]
    assert [name for name in weights if torch.equal(second["network"][name], third["network"][name])] == []


def test_resuming_does_not_replace_a_better_network(bundle, phantoms, trained, tmp_path):
    output = Path(shutil.copytree(trained, tmp_path / "output"))
    last = output / "models" / "checkpoint_epoch=2.pt"
    worse = load(last)
    worse["network"] = {name: torch.zeros_like(weight) for name, weight in worse["network"].items()}
    worse["trainer"]["iteration"] = worse["trainer"]["epoch_length"]
    torch.save(worse, last)
    assert max(scalars(trained, "val_mean_dice").values()) > 0
    train(bundle, phantoms, output, resume=str(last), learning_rate=0.0)
    assert (output / "models" / "model.pt").read_bytes() == (trained / "models" / "model.pt").read_bytes()


def test_second_training_into_the_same_folder_is_an_error(bundle, phantoms, trained):
    before = files(trained)
    message = error_of(train, bundle, phantoms, trained, seed=1, kind=FileExistsError)
    assert "choose another output_dir" in message
    assert files(trained) == before


@EACH
def test_training_from_weights_with_other_classes(bundle, phantoms, trained, tmp_path):
    """The head alone is new; weights of one channel do not start a training of two."""
    weights = str(trained / "models" / "model.pt")
    train(bundle, phantoms, tmp_path / "four", weights=weights, num_classes=4, epochs=1, learning_rate=0.0)
    old, new = load(weights), load(tmp_path / "four" / "models" / "model.pt")
    heads = [name for name in old if old[name].shape != new[name].shape]
    assert heads
    differing = [{(a, b) for a, b in zip(old[n].shape, new[n].shape, strict=True) if a != b} for n in heads]
    assert differing == [{(3, 4)}] * len(heads)
    parameters = {name for name, _ in network(bundle, **tiny(bundle)).named_parameters()} - set(heads)
    assert all(torch.equal(old[name], new[name]) for name in parameters)
    record = read_record(tmp_path / "four" / "models" / "model.pt")
    assert record["num_classes"] == innermost(record["network_def"])["out_channels"] == 4
    assert "\n" not in error_of(train, bundle, phantoms, tmp_path / "two", weights=weights, in_channels=2)


def test_training_in_place_from_the_weights_that_are_there(bundle, phantoms, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "own"))
    models = folder / "models"
    torch.save(torch.ones(2), models / "of_another_kind.pt")
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    error_of(train, bundle, phantoms, folder, epochs=1, kind=FileExistsError)  # random weights would replace them
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    train(bundle, phantoms, folder, weights=str(models / "model.pt"), epochs=1, learning_rate=0.0)
    assert {path.name: path.read_bytes() for path in (models / "earlier_1").iterdir()} == before
    old, new = (load(path / "model.pt") for path in (models / "earlier_1", models))
    parameters = [name for name, _ in network(bundle, **tiny(bundle)).named_parameters()]
    assert all(torch.equal(old[name], new[name]) for name in parameters)


def test_two_modalities(bundle, phantoms, tmp_path):
    folder = Path(shutil.copytree(phantoms, tmp_path / "two"))
    for path in (folder / "imagesTr").iterdir():
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([values, 3 * values + 1], -1), image.affine), path)
    given = {**tiny(bundle), "in_channels": 2, "roi_size": list(SIZE)}
    output = train(bundle, folder, tmp_path / "out", in_channels=2, epochs=1)
    weights = {"ckpt_path": output / "models" / "model.pt", **given}
    run(bundle, "train", "evaluate", dataset_dir=folder, output_dir=tmp_path / "eval", **weights)
    assert len(per_case(tmp_path / "eval", "val_mean_dice")) == 1
    image = folder / "imagesTr" / "phantom_000.nii.gz"
    run(bundle, "inference", dataset_dir=image, output_dir=tmp_path / "seg", **weights)
    assert nib.load(tmp_path / "seg" / "phantom_000_seg.nii.gz").shape == SIZE
    message = error_of(run, bundle, "inference", dataset_dir=image, output_dir=tmp_path / "one")
    assert "expected 1 channel(s), got 2" in message


def test_inference_of_another_training_s_weights_is_an_error(bundle, phantoms, trained, tmp_path):
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    given = {"dataset_dir": image, "output_dir": tmp_path, "ckpt_path": trained / "models" / "model.pt", **tiny(bundle)}
    for id, value, expected in (
        ("spacing", [2.0, 2.0, 2.0], "spacing=[1.0, 1.0, 1.0]"),
        ("normalization", {"nonzero": True, "channel_wise": True}, "normalization"),
        ("network_def#filters#sigma", 0.9, "network_def#filters#sigma=1.0"),
    ):
        message = error_of(run, bundle, "inference", **given, **{id: value})
        assert re.search(rf"model\.pt: expected {re.escape(expected)}.* got ", message)
    assert not list(tmp_path.iterdir())


# --- as unit tests of the Model Zoo run a bundle ---


def workflow_of_the_zoo(bundle, kind, *configs, **overrides):
    """A workflow that has run, with all properties that MONAI knows."""
    given = {"bundle_root": str(bundle), "device": CPU, **overrides}
    workflow = ConfigWorkflow(config_files(bundle, *configs), workflow_type=kind, logging_file=False, **given)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


def test_training_and_evaluation_with_overrides_of_the_zoo(bundle, phantoms, tmp_path):
    overrides = {
        **tiny(bundle),
        "dataset_dir": str(phantoms),
        "epochs": 1,
        "train#dataset#cache_rate": 0.0,
        "validate#dataset#cache_rate": 0.0,
        "train#dataloader#num_workers": 0,
        "validate#dataloader#num_workers": 0,
        "train#random_transforms#2#roi_size": [16, 16, 16],
        "validate#inferer#roi_size": list(SIZE),
    }
    workflow_of_the_zoo(bundle, "train", "train", output_dir=str(tmp_path / "train"), **overrides)
    overrides["ckpt_path"] = str(tmp_path / "train" / "models" / "model.pt")
    with pytest.warns(UserWarning, match="1 of 5 labelled cases"):
        workflow_of_the_zoo(bundle, "train", "train", "evaluate", output_dir=str(tmp_path / "eval"), **overrides)
    assert metrics(tmp_path / "eval")["val_mean_dice"] == pytest.approx(
        max(scalars(tmp_path / "train", "val_mean_dice").values()), abs=1e-4
    )


@pytest.mark.parametrize("configs", [["inference"], ["inference", "inference_native"]])
def test_inference_with_overrides_of_the_zoo(bundle, phantoms, probe, tmp_path, configs):
    """The list of inputs as plain paths, by an expression or not, or as dictionaries; windows of another size."""
    images = sorted(str(path) for path in (phantoms / "imagesTr").iterdir())[:2]
    shared_by_all = {**probe, "dataset_dir": str(phantoms / "imagesTr"), "inferer#roi_size": [16, 16, 16]}
    for name, datalist in {
        "paths": images,
        "cases": [{"image": image} for image in images],
        "glob": "$list(sorted(glob.glob(@dataset_dir + '/*_00[01].nii.gz')))",
    }.items():
        output = tmp_path / name
        overrides = {**shared_by_all, "output_dir": str(output), "datalist": datalist}
        workflow = workflow_of_the_zoo(bundle, "infer", *configs, **overrides)
        windows = getattr(workflow.inferer, "edges", workflow.inferer.roi_size)  # in mm, or in voxels
        assert list(windows) == [16, 16, 16]
        assert {path.name for path in output.iterdir()} == {"phantom_000_seg.nii.gz", "phantom_001_seg.nii.gz"}
        for image in images:
            labels = nib.load(output / Path(image).name.replace(".nii.gz", "_seg.nii.gz"))
            expected = probe_labels(nib.load(image).get_fdata(), config(bundle, "inference")["num_classes"])
            np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)


# --- evaluation and inference ---


def dice_of(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def sizes(folder, *numbers):
    paths = [folder / "imagesTr" / f"phantom_{number:03d}.nii.gz" for number in numbers]
    return {path.name: path.stat().st_size for path in paths}


@pytest.fixture(scope="module")
def evaluated(bundle, phantoms, probe, tmp_path_factory):
    """Output of the evaluation of three phantoms as if with voxels of 1.5 x 1 x 1 mm, axes permuted and flipped."""
    folder = shutil.copytree(phantoms, tmp_path_factory.mktemp("wide") / "phantoms")
    affine = np.array([[0, 1.0, 0, -9], [0, 0, -1.0, 30], [1.5, 0, 0, 4], [0, 0, 0, 1]])
    for path in folder.rglob("*.nii.gz"):
        values = np.asanyarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(values, affine), path)
    output = tmp_path_factory.mktemp("evaluated")
    write_record(Path(probe["ckpt_path"]).with_suffix(".json"), {"training_cases": sizes(folder, 0, 3)})
    options = {"dataset_dir": str(folder), **probe}
    run(bundle, "train", "evaluate", output_dir=output, **options)
    return output, folder, options


def test_evaluation_measures_label_maps_of_the_inference(bundle, evaluated, probe, tmp_path):
    # The whole chain again by other means: label maps as files, Dice by counting, distances with the file's voxel size.
    output, folder, _ = evaluated
    classes, means = config(bundle, "inference")["num_classes"], metrics(output)
    assert set(means) == {"val_mean_dice", "val_hd95"}
    for metric, mean in means.items():
        values = np.array([value for _, value in per_case(output, metric)])[:, : classes - 1]
        assert np.nanmean(np.nanmean(values, axis=0)) == pytest.approx(mean, abs=1e-3)
    dice, distance = (dict(per_case(output, name)) for name in ("val_mean_dice", "val_hd95"))
    assert list(dice) == list(distance)
    assert len(dice) == 3
    images = [str(folder / "imagesTr" / name) for name in dice]
    run(bundle, "inference", output_dir=tmp_path, **{**probe, "dataset_dir": images})
    for name in dice:
        prediction = np.asarray(nib.load(tmp_path / name.replace(".nii.gz", "_seg.nii.gz")).dataobj)
        truth = np.asarray(nib.load(folder / "labelsTr" / name).dataobj)
        expected = [dice_of(prediction == c, truth == c) for c in range(1, classes)]
        assert min(expected) > 0.02
        np.testing.assert_allclose(dice[name][: classes - 1], expected, atol=1e-5)
        pair = [one_hot(torch.from_numpy(x.astype(np.int64))[None, None], classes) for x in (prediction, truth)]
        expected = compute_hausdorff_distance(*pair, percentile=95, spacing=(1.5, 1.0, 1.0))[0]
        np.testing.assert_allclose(distance[name][: classes - 1], expected, atol=1e-4)


def test_evaluation_of_the_trained_network_gives_its_best_validation(bundle, phantoms, trained, tmp_path):
    weights = trained / "models" / "model.pt"
    given = {"dataset_dir": phantoms, "output_dir": tmp_path, "ckpt_path": weights, "roi_size": list(SIZE)}
    with pytest.warns(UserWarning, match="1 of 5 labelled cases"):
        run(bundle, "train", "evaluate", **given, **tiny(bundle))
    best = max(scalars(trained, "val_mean_dice").values())
    assert metrics(tmp_path)["val_mean_dice"] == pytest.approx(best, abs=1e-4)


@EACH
def test_inference_with_the_shipped_weights(bundle, phantoms, tmp_path):
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    run(bundle, "inference", dataset_dir=image, output_dir=tmp_path)
    (saved,) = tmp_path.iterdir()
    assert saved.name == "phantom_000_seg.nii.gz"
    labels = nib.load(saved)
    assert labels.get_data_dtype() == np.uint8
    assert set(np.unique(labels.dataobj)) <= set(range(config(bundle, "inference")["num_classes"]))
    np.testing.assert_array_equal(labels.affine, nib.load(image).affine)


def test_label_maps_do_not_depend_on_how_a_volume_is_stored(bundle, phantoms, trained, tmp_path):
    image = nib.load(phantoms / "imagesTr" / "phantom_000.nii.gz")
    turned = image.as_reoriented(ORIENTATION)
    assert turned.shape != image.shape
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "plain.nii.gz")
    nib.save(turned, tmp_path / "in" / "turned.nii")
    given = {"ckpt_path": trained / "models" / "model.pt", "roi_size": list(SIZE), **tiny(bundle)}
    run(bundle, "inference", dataset_dir=tmp_path / "in", output_dir=tmp_path / "out", **given)
    plain, other = (nib.load(next((tmp_path / "out").glob(f"{name}_seg.nii*"))) for name in ("plain", "turned"))
    assert other.shape == turned.shape
    np.testing.assert_array_equal(other.affine, turned.affine)
    np.testing.assert_array_equal(np.asarray(plain.as_reoriented(ORIENTATION).dataobj), np.asarray(other.dataobj))
    assert len(np.unique(plain.dataobj)) > 1


def test_label_map_of_an_oblique_volume_with_thick_slices(bundle, probe, tmp_path):
    shape, spacing = (40, 14, 26), np.array([0.8, 2.5, 1.3])
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * spacing
    centre = np.array([14.0, 17.0, 19.0])
    image = (1000 * np.exp(-np.square((grid - centre) / [7, 9, 8]).sum(-1) / 2)).astype(np.int16)
    permuted = np.array([[0, 2.5, 0, -20], [0, 0, -1.3, 31.5], [0.8, 0, 0, 7.25], [0, 0, 0, 1]])
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nifti = nib.Nifti1Image(image, turn @ permuted)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(turn @ permuted, 1)
    nifti.set_qform(turn @ permuted, 1)
    nib.save(nifti, tmp_path / "oblique.nii.gz")
    run(bundle, "inference", **{**probe, "dataset_dir": tmp_path / "oblique.nii.gz", "output_dir": tmp_path / "out"})
    written, source = nib.load(tmp_path / "out" / "oblique_seg.nii.gz"), nib.load(tmp_path / "oblique.nii.gz")
    assert written.shape == shape
    for get in ("get_sform", "get_qform"):
        np.testing.assert_array_equal(getattr(written.header, get)(), getattr(source.header, get)())
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"
    classes = config(bundle, "inference")["num_classes"]
    labels, expected = np.asarray(written.dataobj), probe_labels(image.astype(float), classes)
    for c in range(1, classes):
        assert dice_of(labels == c, expected == c) > 0.85, c


def test_inference_replaces_label_maps_only_with_overwrite(bundle, phantoms, probe, tmp_path):
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    options = {**probe, "dataset_dir": image, "output_dir": tmp_path}
    target = tmp_path / "phantom_000_seg.nii.gz"
    target.write_bytes(b"mine")
    error_of(run, bundle, "inference", **options, kind=FileExistsError)
    error_of(run, bundle, "inference", **options, overwrite="false", kind=FileExistsError)  # as Fire hands it on
    assert target.read_bytes() == b"mine"
    run(bundle, "inference", **options, overwrite=True)
    assert nib.load(target).shape == nib.load(image).shape


def test_volume_smaller_than_the_crop(bundle, trained, tmp_path):
    case = {"image": str(write_volume(tmp_path / "in" / "a.nii", shape=(5, 9, 1)))}
    case["label"] = str(write_volume(tmp_path / "b.nii", np.ones((5, 9, 1), np.uint8)))
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "train"))
    prepare = Compose(parser.get_parsed_content("to_working_grid"))
    crop = prepare(case)
    for transform in parser.get_parsed_content("train#random_transforms"):
        crop = transform(crop)
    assert [list(crop[key].shape) for key in case] == [[1, *config(bundle, "train")["patch_size"]]] * 2
    # Each field of a header would be sent by the loader's workers as a tensor of its own.
    assert not {"sizeof_hdr", "pixdim", "srow_x"} & set(crop["image"].meta)
    assert crop["image"].meta["filename_or_obj"] == case["image"]
    weights = {"ckpt_path": trained / "models" / "model.pt", **tiny(bundle)}
    run(bundle, "inference", dataset_dir=case["image"], output_dir=tmp_path / "out", **weights)
    assert nib.load(tmp_path / "out" / "a_seg.nii.gz").shape == (5, 9, 1)


def test_inference_names_a_bad_volume_and_stops(bundle, probe, tmp_path):
    values = np.zeros(SIZE, np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "bad.nii.gz")
    given = {**probe, "dataset_dir": tmp_path / "bad.nii.gz", "output_dir": tmp_path / "out"}
    message = error_of(run, bundle, "inference", **given)
    assert re.match(rf"{tmp_path / 'bad.nii.gz'}.*: expected finite values, got 1", message)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("configs", [["inference"], ["inference", "inference_native"], ["train", "evaluate"]])
def test_random_weights_write_nothing(bundle, phantoms, tmp_path, configs):
    evaluates = "evaluate" in configs
    data = phantoms if evaluates else phantoms / "imagesTr" / "phantom_000.nii.gz"
    given = {"dataset_dir": data, "output_dir": tmp_path / "out", "roi_size": list(SIZE), **tiny(bundle)}
    loader = {f"{'validate#' if evaluates else ''}handlers#1#_disabled_": True}
    for without in [loader] if evaluates else [loader, {"load_pretrain": False}]:
        message = error_of(run, bundle, *configs, **given, **without)
        assert "expected weights, got the random ones of a new " in message
    assert not list((tmp_path / "out").iterdir())


def test_transforms_take_what_is_in_memory(bundle, probe):
    """As MONAI Label and MONAI Deploy hand it over: a MetaTensor, with the reading left out."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update({**probe, "output_dir": ".", "device": CPU})
    steps = parser.get_parsed_content("preprocessing").transforms
    prepare = Compose([step for step in steps if type(step).__name__ not in ("LoadImaged", "EnsureChannelFirstd")])
    affine = torch.diag(torch.tensor([-1.0, 1.5, 1.0, 1.0], dtype=torch.float64))
    data = prepare({"image": MetaTensor(torch.rand(1, 12, 14, 10), affine=affine)})
    inferer, made = (parser.get_parsed_content(id) for id in ("inferer", "network"))
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], made)[0]
    steps = parser.get_parsed_content("postprocessing").transforms
    (invert,) = [step for step in steps if "Argmax" in type(step).__name__]
    invert.transform = prepare
    found = invert(data)["pred"]
    assert found.shape == (1, 12, 14, 10)
    torch.testing.assert_close(found.affine, affine)


def test_evaluation_replaces_tables_only_with_overwrite(bundle, evaluated, tmp_path):
    output, _, options = evaluated
    for table in output.iterdir():
        (tmp_path / table.name).write_bytes(b"mine")
        error_of(run, bundle, "train", "evaluate", output_dir=tmp_path, **options, kind=FileExistsError)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
        (tmp_path / table.name).unlink()
    (tmp_path / "metrics.csv").write_bytes(b"mine")
    error_of(run, bundle, "train", "evaluate", output_dir=tmp_path, overwrite="false", **options, kind=FileExistsError)
    run(bundle, "train", "evaluate", output_dir=tmp_path, overwrite=True, **options)
    assert metrics(tmp_path) == pytest.approx(metrics(output))


# --- inference at each image's own voxel size ---


@pytest.fixture(scope="module")
def grids(phantoms, tmp_path_factory):
    """A phantom with voxels of 1 mm; of 0.5 x 1 x 1 mm, axes permuted and flipped; and the latter said to be 1 mm."""
    folder = tmp_path_factory.mktemp("grids")
    image = nib.load(phantoms / "imagesTr" / "phantom_000.nii.gz")
    values = torch.from_numpy(image.get_fdata(dtype=np.float32))
    fine = rescale(values, [2 * SIZE[0], SIZE[1], SIZE[2]]).numpy()
    half = np.diag([0.5, 1.0, 1.0, 1.0])
    half[0, 3] = -0.25
    nib.save(nib.Nifti1Image(values.numpy(), image.affine), folder / "plain.nii.gz")
    nib.save(nib.Nifti1Image(fine, image.affine @ half).as_reoriented(ORIENTATION), folder / "fine.nii.gz")
    nib.save(nib.Nifti1Image(fine, image.affine), folder / "wrong.nii.gz")
    return folder


def on_their_grids(results, images, postfix):
    """The results by the name of their image, after a look at grid and header."""
    found = {}
    for file in sorted(images.iterdir()):
        image = nib.load(file)
        found[file.name.split(".")[0]] = result = nib.load(results / file.name.replace(".nii", f"_{postfix}.nii"))
        assert result.shape == image.shape
        np.testing.assert_array_equal(result.affine, image.affine)
    return found


@EACH
def test_native_inference_sees_millimetres(bundle, grids, trained, tmp_path):
    given = {"dataset_dir": grids, "ckpt_path": trained / "models" / "model.pt", **tiny(bundle)}
    run(bundle, "inference", "inference_native", output_dir=tmp_path, **given)
    assert len(list(tmp_path.iterdir())) == 3
    labels = on_their_grids(tmp_path, grids, "seg")
    plain = nib.Nifti1Image(np.asarray(labels["plain"].dataobj).repeat(2, 0), np.eye(4))
    same = np.asarray(plain.as_reoriented(ORIENTATION).dataobj) == np.asarray(labels["fine"].dataobj)
    other = np.asarray(plain.dataobj) == np.asarray(labels["wrong"].dataobj)
    assert len(np.unique(plain.dataobj)) > 1
    assert 1 - same.mean() < 0.5 * (1 - other.mean())
    assert labels["fine"].get_data_dtype() == np.uint8


def test_native_label_map_is_the_known_one(bundle, grids, probe, tmp_path):
    options = {**probe, "roi_size": [14, 18, 14]}
    run(bundle, "inference", "inference_native", dataset_dir=grids, output_dir=tmp_path, **options)
    classes = config(bundle, "inference")["num_classes"]
    for name, labels in on_their_grids(tmp_path, grids, "seg").items():
        expected = probe_labels(nib.load(grids / f"{name}.nii.gz").get_fdata(), classes)
        found = np.asarray(labels.dataobj)
        inner = tuple(slice(3, -3) for _ in found.shape)
        assert (found == expected)[inner].mean() > 0.97, name


def test_native_inference_writes_the_scale_map_in_mm(bundle, grids, trained, tmp_path):
    options = {"dataset_dir": grids, "ckpt_path": trained / "models" / "model.pt", **tiny(bundle)}
    scales = {"scales": [0.8, 1.0, 1.25], "spacing": [2.0, 1.0, 1.0]}
    shutil.copy(options.pop("ckpt_path"), tmp_path / "weights.pt")  # without the record, which says otherwise
    options["ckpt_path"] = tmp_path / "weights.pt"
    run(bundle, "inference", "inference_native", output_dir=tmp_path, save_scale_map=True, **scales, **options)
    assert len(list(tmp_path.glob("*.nii.gz"))) == 6
    mean = 2 ** (1 / 3)
    for name, scale_map in on_their_grids(tmp_path, grids, "scale").items():
        assert scale_map.get_data_dtype() == np.float32
        values = np.unique(np.round(scale_map.get_fdata(), 5))  # the windows' weights leave rounding errors
        assert len(values) > 1
        assert values.min() >= 0.8 * mean - 1e-4
        assert values.max() <= 1.25 * mean + 1e-4
        if name != "wrong":  # that one has two windows, which are averaged where they overlap
            assert all(np.isclose(value, [0.8 * mean, mean, 1.25 * mean], atol=1e-4).any() for value in values)
    labels = on_their_grids(tmp_path, grids, "seg")["fine"]
    assert set(np.unique(labels.dataobj)) <= set(range(config(bundle, "inference")["num_classes"]))


def test_native_inference_keeps_an_earlier_scale_map(bundle, grids, tmp_path):
    (tmp_path / "plain_scale.nii.gz").write_bytes(b"mine")
    given = {"dataset_dir": grids, "output_dir": tmp_path, "save_scale_map": True}
    error_of(run, bundle, "inference", "inference_native", **given, kind=FileExistsError)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"mine"]


def test_native_inference_adds_a_scale_map_and_keeps_an_edited_mask(bundle, grids, probe, tmp_path):
    options = {**probe, "dataset_dir": grids, "output_dir": tmp_path}
    run(bundle, "inference", "inference_native", **options)
    mask = tmp_path / "plain_seg.nii.gz"
    edited = np.asarray(nib.load(mask).dataobj).copy()
    edited[0] = 2
    nib.save(nib.Nifti1Image(edited, nib.load(mask).affine), mask)
    (tmp_path / "fine_seg.nii.gz").write_bytes(b"")
    before = files(tmp_path)
    run(bundle, "inference", "inference_native", **options, save_scale_map=True, skip_existing=True)
    after = files(tmp_path)
    assert {path.name for path in set(after) - set(before)} == {f"{n}_scale.nii.gz" for n in ("plain", "fine", "wrong")}
    assert {path.name for path in before if before[path] != after[path]} == {"fine_seg.nii.gz"}  # the empty one
    on_their_grids(tmp_path, grids, "seg")


# --- two processes ---


@pytest.mark.slow
def test_evaluation_in_two_processes_equals_one(bundle, evaluated, tmp_path):
    output, folder, options = evaluated
    run_on_two(bundle, folder, tmp_path / "out", "train", "evaluate", "multi_gpu_evaluate", **options)
    one, two = metrics(output), metrics(tmp_path / "out")
    assert two == pytest.approx(one, abs=1e-6)
    for metric in one:
        in_one, in_two = dict(per_case(output, metric)), per_case(tmp_path / "out", metric)
        assert sorted(name for name, _ in in_two) == sorted(in_one)
        for name, values in in_two:
            assert values == pytest.approx(in_one[name], abs=1e-6, nan_ok=True)


def test_training_in_two_processes(bundle, phantoms, tmp_path):
    options = {**tiny(bundle), **QUICK, "epochs": 1, "split#ratio": 0.6}
    run_on_two(bundle, phantoms, tmp_path / "out", "train", "multi_gpu_train", **options)
    folder = tmp_path / "out" / "models"
    names = {"model.pt", "model.json", "model_final.pt", "checkpoint_epoch=1.pt", "curve.png", "overlay_epoch=1.png"}
    assert {path.name for path in folder.iterdir()} == names
    made = network(bundle, **tiny(bundle))
    made.load_state_dict(load(folder / "model.pt"), strict=True)
    assert read_record(folder / "model.pt")["network_def"] == definition_of(made)
    assert load(folder / "checkpoint_epoch=1.pt")["trainer"]["epoch_length"] == 1  # two batches of two, one a process
    assert set(scalars(tmp_path / "out", "val_mean_dice")) == {1}


@WORKFLOWS
def test_unwritable_output_is_an_error_before_the_work(bundle, phantoms, tmp_path, configs):
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "out"
    reason = rf"(output|ckpt)_dir: expected a folder that can be written to, got {re.escape(str(output))}.*Not a dir"
    # The missing weights would be the next error.
    options = {} if configs == ["train"] else {"ckpt_path": tmp_path / "missing.pt"}
    data = phantoms if "train" in configs else phantoms / "imagesTr"
    assert re.match(reason, error_of(run, bundle, *configs, dataset_dir=data, output_dir=output, **options))
