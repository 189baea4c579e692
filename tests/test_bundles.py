"""Every bundle as its users run it: metadata, configs, exports, training, evaluation, inference, several processes."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import monai.bundle
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.metrics import compute_hausdorff_distance
from monai.networks.utils import one_hot
from monai.transforms import Compose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import monai_scaleequiv
from tests.conftest import BUNDLES
from tests.fault_files import write_volume

FOLDERS = sorted(folder.parent for folder in BUNDLES.glob("*/configs"))
SCHEMA = Path(__file__).parent / "data" / "meta_schema_20240725.json"
SIZE = (24, 32, 24)
CPU = "$torch.device('cpu')"
# Overrides that make a bundle's own network small.
TINY = {
    "SEUNet": {"network_def#channels": [4, 8], "network_def#strides": [2]},
    "RepUXNet": {
        "network_def#depths": [1, 1],
        "network_def#feature_size": [4, 8],
        "network_def#kernel_size": 7,
        "network_def#hidden_size": 8,
    },
}
QUICK = {"patch_size": [16, 16, 16], "roi_size": list(SIZE), "epochs": 2, "val_interval": 1}

IMPORTS = {"monai_scaleequiv", "os", "sys", "torch", "torch.distributed"}
# What bundles for the same task may have of their own; all else in their folders is the same.
OWN = {
    "train": {"network_def", "epochs", "learning_rate"},
    "inference": {"network_def"},
    "metadata": {"version", "changelog", "name", "description", "eval_metrics", "references"},
}
CALLS = {
    "dist.destroy_process_group",
    "dist.get_rank",
    "dist.init_process_group",
    "dist.is_initialized",
    "int",
    "max",
    "min",
    "monai.utils.set_determinism",
    "monai_scaleequiv.check_dataset",
    "monai_scaleequiv.check_dataset(reference, num_classes=reference).refuse_errors",
    "monai_scaleequiv.claim_checkpoint_dir",
    "monai_scaleequiv.claim_output_dir",
    "monai_scaleequiv.leave_process_group",
    "reference.attach",
    "reference.exit_if_stopped",
    "reference.parameters",
    "reference.run",
    "reference.to",
    "sys.stderr.isatty",
    "torch.cuda.is_available",
    "torch.cuda.set_device",
    "torch.device",
}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def bundle(request, tmp_path_factory):
    """A copy of the bundle, so that nothing is written into the original."""
    return Path(shutil.copytree(request.param, tmp_path_factory.mktemp("bundles") / request.param.name))


@pytest.fixture(scope="module")
def weights(bundle):
    """The weights that the bundle ships."""
    path = bundle / "models" / "model.pt"
    if not path.is_file():
        pytest.fail(f"bundles/{bundle.name}/models/model.pt is missing: the bundle cannot be published without it")
    return path


def skip_without_native(bundle):
    if not (bundle / "configs" / "inference_native.json").is_file():
        pytest.skip(f"bundles/{bundle.name} has no inference_native.json")


@pytest.fixture
def native(bundle):
    """A bundle with inference at each image's own voxel size."""
    skip_without_native(bundle)
    return bundle


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("phantoms"))


def make_phantoms(folder):
    return monai_scaleequiv.make_phantom_dataset(folder, cases=5, size=SIZE).parent


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def config_files(bundle, *names):
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def network(bundle, **overrides):
    """The network of the config, with weights as they come."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update(overrides)
    return parser.get_parsed_content("network_def").eval()


def tiny(bundle):
    return TINY[config(bundle, "train")["network_def"]["_target_"]]


def run(bundle, *configs, **overrides):
    """What ``python -m monai.bundle run`` does."""
    path = sys.path.copy()
    try:
        monai.bundle.run(
            config_file=config_files(bundle, *configs),
            meta_file=str(bundle / "configs" / "metadata.json"),
            bundle_root=str(bundle),
            device=CPU,
            **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
        )
    finally:
        sys.path[:] = path


def train(bundle, phantoms, output, **overrides):
    run(bundle, "train", dataset_dir=phantoms, output_dir=output, **{**tiny(bundle), **QUICK, **overrides})
    return output


@pytest.fixture(scope="module")
def trained(bundle, phantoms, tmp_path_factory):
    """Output of two epochs with a small network."""
    return train(bundle, phantoms, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def repeated(bundle, phantoms, tmp_path_factory):
    """Output of the same training, every checkpoint kept."""
    return train(bundle, phantoms, tmp_path_factory.mktemp("repeated"), **{"train#last_checkpoint#n_saved": 2})


def load(path):
    return torch.load(path, weights_only=True)


def scalars(output, tag):
    """Step and value of what was written for TensorBoard."""
    (folder,) = {file.parent for file in output.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def metrics(output):
    """Means over all cases, from ``metrics.csv``."""
    return {name: float(value) for name, value in rows(output / "metrics.csv")}


def per_case(output, metric):
    """Values of each class by the case's file name, in the order of the table."""
    table = rows(output / f"{metric}_raw.csv")
    return [(Path(row[0]).name, [float(value) for value in row[1:]]) for row in table[1:]]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def root_cause(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# --- what is in the folder ---


def test_there_are_bundles():
    assert FOLDERS


def test_files_of_a_bundle(bundle):
    expected = ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json"]
    expected += [
        f"configs/{name}.json" for name in ("train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate")
    ]
    assert [name for name in expected if not (bundle / name).is_file()] == []
    assert "Apache License" in (bundle / "LICENSE").read_text(encoding="utf-8")


def test_weights_are_small_and_fit_the_network(bundle, weights):
    assert all(path.stat().st_size < 25e6 for path in weights.parent.glob("*.pt"))
    network(bundle).load_state_dict(load(weights), strict=True)


def test_metadata_follow_the_schema(bundle):
    meta = config(bundle, "metadata")
    jsonschema.validate(meta, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert meta["schema"].endswith(f"/{SCHEMA.name}")
    assert meta["version"] in meta["changelog"]
    assert meta["required_packages_version"]["monai-scaleequiv"] == monai_scaleequiv.__version__


def test_verify_metadata_needs_no_network(bundle, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    schema = shutil.copy(SCHEMA, tmp_path)
    meta = str(bundle / "configs" / "metadata.json")
    monai.bundle.verify_metadata(meta_file=meta, filepath=schema)
    changed = {key: value for key, value in config(bundle, "metadata").items() if key != "task"}
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="'task' is a required property"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "changed.json"), filepath=schema)


def same_task(bundle):
    """The bundles for the same task, of which names tell after the network's."""
    return [folder for folder in FOLDERS if folder.name.split("_", 1)[1] == bundle.name.split("_", 1)[1]]


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate", "metadata"]
)
def test_bundles_for_the_same_task_share_all_but_the_network(bundle, name):
    own = OWN.get(name, set())
    assert own <= set(config(bundle, name))
    shared = [{id: part for id, part in config(other, name).items() if id not in own} for other in same_task(bundle)]
    assert shared == [shared[0]] * len(shared)


@pytest.mark.parametrize("name", ["LICENSE", "docs/data_license.txt"])
def test_bundles_for_the_same_task_have_the_same_terms(bundle, name):
    assert len({(other / name).read_text(encoding="utf-8") for other in same_task(bundle)}) == 1


@pytest.mark.parametrize("name", ["docs/README.md", "configs/metadata.json"])
def test_no_figure_is_still_to_be_measured(bundle, name):
    assert "TODO-FIGURE" not in (bundle / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("id", ["network_def", "network", "roi_size", "spacing", "num_classes", "device"])
def test_inference_uses_what_training_used(bundle, id):
    assert config(bundle, "train")[id] == config(bundle, "inference")[id]


def test_inference_treats_images_as_the_evaluation_does(bundle):
    def steps(transforms):
        of_images = [step for step in transforms if step["keys"] != "label"]
        return [{key: value for key, value in step.items() if key != "keys"} for step in of_images]

    inference, evaluation = config(bundle, "inference"), config(bundle, "evaluate")
    assert steps(inference["preprocessing"]["transforms"]) == steps(evaluation["validate#preprocessing#transforms"])
    assert inference["inferer"]["windows"] == config(bundle, "train")["validate"]["inferer"]


def test_metadata_tell_of_the_network_in_the_config(bundle):
    data = config(bundle, "metadata")["network_data_format"]
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    parser = ConfigParser(config(bundle, "inference"))
    definition = {key: parser.get_parsed_content(f"network_def#{key}") for key in ("in_channels", "out_channels")}
    assert definition == {"in_channels": image["num_channels"], "out_channels": pred["num_channels"]}
    assert len(image["channel_def"]) == image["num_channels"]
    assert len(pred["channel_def"]) == pred["num_channels"] == parser["num_classes"]
    assert image["spatial_shape"] == pred["spatial_shape"] == parser["roi_size"]


def _expressions(part):
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from _expressions(value)
    elif isinstance(part, str) and part.startswith("$"):
        yield part[1:]


@pytest.mark.parametrize(
    "id", ["network_def", "network", "spacing", "num_classes", "device", "dataset_dir", "handlers"]
)
def test_native_inference_uses_what_inference_uses(native, id):
    assert config(native, "inference_native")[id] == config(native, "inference")[id]


def test_native_inference_differs_in_resampling_alone(native):
    one, other = (config(native, name)["preprocessing"]["transforms"] for name in ("inference", "inference_native"))
    assert other == [step for step in one if step["_target_"] not in ("CheckSpacingd", "Spacingd")]
    assert len(other) == len(one) - 2


CONFIGS = ["train", "evaluate", "inference", "inference_native", "multi_gpu_train", "multi_gpu_evaluate"]


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


@pytest.mark.parametrize("name", CONFIGS)
def test_expressions_are_few_and_plain(bundle, name):
    if name == "inference_native":
        skip_without_native(bundle)
    found = set(_expressions(config(bundle, name)))
    assert found
    assert {expression: unexpected(expression) for expression in found if unexpected(expression)} == {}


@pytest.mark.parametrize(
    ("configs", "workflow_type"),
    [
        (["train"], "train"),
        (["train", "evaluate"], "train"),
        (["inference"], "infer"),
        (["inference_native"], "infer"),
    ],
    ids=["train", "evaluate", "infer", "native"],
)
def test_monai_finds_its_properties(bundle, phantoms, tmp_path, configs, workflow_type):
    if "inference_native" in configs:
        skip_without_native(bundle)
    workflow = ConfigWorkflow(
        config_file=config_files(bundle, *configs),
        workflow_type=workflow_type,
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(phantoms if workflow_type == "train" else phantoms / "imagesTr"),
        output_dir=str(tmp_path / "out"),
        device=CPU,
        cache_rate=0,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


# --- network and exports ---


def test_verify_net_in_out(bundle):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config_files(bundle, "inference"),
        device="cpu",
    )


@pytest.fixture(scope="module")
def shipped(bundle, weights):
    """The network with the weights that the bundle ships."""
    shipped = network(bundle)
    shipped.load_state_dict(load(weights))
    return shipped


def _export(command, bundle, weights, target, **options):
    command(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(weights),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config_files(bundle, "inference"),
        **options,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_computes_the_same(bundle, weights, shipped, tmp_path):
    _export(monai.bundle.ckpt_export, bundle, weights, tmp_path / "model.ts")
    exported = torch.jit.load(tmp_path / "model.ts")
    for size in (config(bundle, "train")["roi_size"], [19, 22, 17]):
        image = torch.randn(1, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), shipped(image), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_computes_the_same_at_any_size(bundle, weights, shipped, tmp_path):
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    converter = {
        "input_names": ["image"],
        "output_names": ["pred"],
        "dynamic_axes": {"image": axes, "pred": axes},
        "verify": True,
        "use_ort": True,
        "atol": 1e-4,
    }
    _export(monai.bundle.onnx_export, bundle, weights, tmp_path / "model.onnx", converter_kwargs=converter)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 19, 22, 17), (2, 1, *SIZE)):
        image = torch.randn(shape)
        (exported,) = session.run(["pred"], {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(exported), shipped(image), atol=1e-3, rtol=1e-3)


# --- training ---


def test_checkpoints(bundle, trained):
    folder = trained / "models"
    kept = {"checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"}
    assert {path.name for path in folder.iterdir()} == {"model.pt", "checkpoint_best.pt", *kept}
    model = load(folder / "model.pt")
    network(bundle, **tiny(bundle)).load_state_dict(model, strict=True)
    best, last = load(folder / "checkpoint_best.pt"), load(folder / "checkpoint_epoch=2.pt")
    assert set(best) == {"network", "optimizer", "lr_scheduler", "trainer"}
    assert set(last) >= set(best)
    for checkpoint in (best, last):
        assert set(checkpoint["network"]) == set(model)
    assert all(torch.equal(best["network"][name], model[name]) for name in model)
    assert last["lr_scheduler"]["last_epoch"] == 2
    assert last["trainer"]["iteration"] == 2 * last["trainer"]["epoch_length"]


def test_training_moves_every_weight(bundle, repeated):
    first, second = (load(repeated / "models" / f"checkpoint_epoch={n}.pt")["network"] for n in (1, 2))
    same = [name for name in first if first[name].is_floating_point() and torch.equal(first[name], second[name])]
    assert same == []


def test_tensorboard(trained):
    losses, dice = scalars(trained, "train_loss"), scalars(trained, "val_mean_dice")
    assert len(losses) == load(trained / "models" / "checkpoint_epoch=2.pt")["trainer"]["iteration"]
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    assert set(dice) == {1, 2}
    assert all(0 <= value <= 1 for value in dice.values())


def test_same_seed_same_weights(trained, repeated):
    first, second = (load(output / "models" / "checkpoint_epoch=2.pt") for output in (trained, repeated))
    assert all(torch.equal(first["network"][name], second["network"][name]) for name in first["network"])
    assert scalars(trained, "train_loss") == scalars(repeated, "train_loss")


def test_another_seed_another_training(bundle, phantoms, trained, tmp_path):
    other = train(bundle, phantoms, tmp_path, seed=1, epochs=1)
    assert scalars(other, "train_loss")[1] != scalars(trained, "train_loss")[1]


def test_resuming_goes_on_where_training_stopped(bundle, phantoms, repeated, tmp_path):
    start = repeated / "models" / "checkpoint_epoch=1.pt"
    train(bundle, phantoms, tmp_path, resume=str(start))
    assert set(scalars(tmp_path, "val_mean_dice")) == {2}
    resumed, whole = (load(output / "models" / "checkpoint_epoch=2.pt") for output in (tmp_path, repeated))
    assert resumed["trainer"]["iteration"] == whole["trainer"]["iteration"]
    assert resumed["lr_scheduler"]["last_epoch"] == 2
    assert resumed["lr_scheduler"]["_last_lr"] == whole["lr_scheduler"]["_last_lr"]
    assert {path.name for path in (tmp_path / "models").iterdir()} >= {"model.pt", "checkpoint_best.pt"}


def test_resuming_with_more_epochs_goes_on_learning(bundle, phantoms, repeated, tmp_path):
    # The schedule follows the number of epochs now asked for, not the one in the checkpoint.
    keep = {"train#last_checkpoint#n_saved": 2}
    train(bundle, phantoms, tmp_path, resume=str(repeated / "models" / "checkpoint_epoch=1.pt"), epochs=3, **keep)
    second, third = (load(tmp_path / "models" / f"checkpoint_epoch={n}.pt")["network"] for n in (2, 3))
    weights = [name for name, _ in network(bundle, **tiny(bundle)).named_parameters()]
    assert [name for name in weights if torch.equal(second[name], third[name])] == []


def test_resuming_does_not_replace_better_weights(bundle, phantoms, trained, tmp_path):
    output = Path(shutil.copytree(trained, tmp_path / "output"))
    worse = load(output / "models" / "checkpoint_epoch=2.pt")
    worse["network"] = {name: torch.zeros_like(weight) for name, weight in worse["network"].items()}
    worse["trainer"]["iteration"] = worse["trainer"]["epoch_length"]
    torch.save(worse, tmp_path / "worse.pt")
    assert max(scalars(trained, "val_mean_dice").values()) > 0
    try:
        train(bundle, phantoms, output, resume=str(tmp_path / "worse.pt"))
    except RuntimeError as error:  # a folder of its own asked for is as good
        assert isinstance(root_cause(error), FileExistsError)  # noqa: PT017
    for name in ("model.pt", "checkpoint_best.pt"):
        assert (output / "models" / name).read_bytes() == (trained / "models" / name).read_bytes()


def test_second_training_into_the_same_folder_is_refused(bundle, phantoms, trained):
    before = files(trained)
    with pytest.raises(RuntimeError) as refused:
        train(bundle, phantoms, trained, seed=1)
    error = root_cause(refused.value)
    assert isinstance(error, FileExistsError)
    assert "choose another output_dir" in str(error)
    assert files(trained) == before


# --- evaluation and inference ---


@pytest.fixture(scope="module")
def probe(bundle, tmp_path_factory):
    """Overrides with a network that tells classes by brightness alone, so that what comes out is known."""
    inference = config(bundle, "inference")
    classes = inference["num_classes"]
    thresholds = probe_thresholds(classes)
    layer = torch.nn.Conv3d(1, classes, 1)
    with torch.no_grad():
        layer.weight.copy_(20 * torch.arange(classes).reshape(-1, 1, 1, 1, 1))
        layer.bias.copy_(-20 * torch.tensor([0.0, *thresholds]).cumsum(0))
    path = tmp_path_factory.mktemp("probe") / "probe.pt"
    torch.save(layer.state_dict(), path)
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": classes, "kernel_size": 1}
    return {"network_def": definition, "ckpt_path": str(path), "roi_size": list(SIZE)}


def probe_thresholds(classes):
    return np.linspace(0.5, 1.5, classes - 1).tolist()


def probe_labels(image, classes):
    return np.digitize((image - image.mean()) / image.std(), probe_thresholds(classes)).astype(np.uint8)


@pytest.fixture(scope="module")
def evaluated(bundle, phantoms, probe, tmp_path_factory):
    """Output of the evaluation of three phantoms as if with voxels of 1.5 x 1 x 1 mm, axes permuted and flipped."""
    folder = shutil.copytree(phantoms, tmp_path_factory.mktemp("wide") / "phantoms")
    affine = np.array([[0, 1.0, 0, -9], [0, 0, -1.0, 30], [1.5, 0, 0, 4], [0, 0, 0, 1]])
    for path in folder.rglob("*.nii.gz"):
        values = np.asanyarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(values, affine), path)
    output = tmp_path_factory.mktemp("evaluated")
    options = {"dataset_dir": str(folder), "split#ratios": [0.4, 0.6], **probe}
    run(bundle, "train", "evaluate", output_dir=output, **options)
    return output, folder, options


def test_evaluation_table(bundle, evaluated):
    output, _, _ = evaluated
    means = metrics(output)
    assert set(means) == {"val_mean_dice", "val_hd95"}
    dice = per_case(output, "val_mean_dice")
    assert len(dice) == 3
    assert len({name for name, _ in dice}) == 3
    assert [name for name, _ in dice] == [name for name, _ in per_case(output, "val_hd95")]
    for metric, mean in means.items():
        values = np.array([value for _, value in per_case(output, metric)])[
            :, : config(bundle, "train")["num_classes"] - 1
        ]
        assert np.nanmean(np.nanmean(values, axis=0)) == pytest.approx(mean, abs=1e-3)


def test_evaluation_measures_label_maps_of_the_inference(bundle, evaluated, probe, tmp_path):
    # The whole chain again by other means: label maps as files, Dice by counting, distances with the file's voxel size.
    output, folder, _ = evaluated
    classes = config(bundle, "inference")["num_classes"]
    dice, distance = (dict(per_case(output, name)) for name in ("val_mean_dice", "val_hd95"))
    run(
        bundle,
        "inference",
        output_dir=tmp_path,
        **{**probe, "dataset_dir": [str(folder / "imagesTr" / n) for n in dice]},
    )
    for name in dice:
        label_map = nib.load(tmp_path / name.replace(".nii.gz", "_seg.nii.gz"))
        prediction = np.asarray(label_map.dataobj)
        truth = np.asarray(nib.load(folder / "labelsTr" / name).dataobj)
        expected = [
            2 * ((prediction == c) & (truth == c)).sum() / ((prediction == c).sum() + (truth == c).sum())
            for c in range(1, classes)
        ]
        assert min(expected) > 0.02
        np.testing.assert_allclose(dice[name][: classes - 1], expected, atol=1e-5)
        pair = [
            one_hot(torch.from_numpy(labels.astype(np.int64))[None, None], classes) for labels in (prediction, truth)
        ]
        expected = compute_hausdorff_distance(*pair, percentile=95, spacing=(1.5, 1.0, 1.0))[0]
        np.testing.assert_allclose(distance[name][: classes - 1], expected, atol=1e-4)


def test_evaluation_of_the_trained_network_gives_its_best_validation(bundle, phantoms, trained, tmp_path):
    run(
        bundle,
        "train",
        "evaluate",
        dataset_dir=phantoms,
        output_dir=tmp_path,
        ckpt_path=trained / "models" / "model.pt",
        **tiny(bundle),
        roi_size=list(SIZE),
    )
    assert metrics(tmp_path)["val_mean_dice"] == pytest.approx(
        max(scalars(trained, "val_mean_dice").values()), abs=1e-4
    )


def test_inference_with_the_shipped_weights(bundle, weights, phantoms, tmp_path):
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
    orientation = np.array([[2, 1], [0, -1], [1, 1]])
    turned = image.as_reoriented(orientation)
    assert turned.shape != image.shape
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "plain.nii.gz")
    nib.save(turned, tmp_path / "in" / "turned.nii")
    run(
        bundle,
        "inference",
        dataset_dir=tmp_path / "in",
        output_dir=tmp_path / "out",
        ckpt_path=trained / "models" / "model.pt",
        **tiny(bundle),
        roi_size=list(SIZE),
    )
    plain, other = (nib.load(next((tmp_path / "out").glob(f"{name}_seg.nii*"))) for name in ("plain", "turned"))
    assert other.shape == turned.shape
    np.testing.assert_array_equal(other.affine, turned.affine)
    np.testing.assert_array_equal(np.asarray(plain.as_reoriented(orientation).dataobj), np.asarray(other.dataobj))
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
        dice = 2 * ((labels == c) & (expected == c)).sum() / ((labels == c).sum() + (expected == c).sum())
        assert dice > 0.85, c


def test_inference_replaces_label_maps_only_if_told_to(bundle, phantoms, probe, tmp_path):
    image = phantoms / "imagesTr" / "phantom_000.nii.gz"
    options = {**probe, "dataset_dir": image, "output_dir": tmp_path}
    target = tmp_path / "phantom_000_seg.nii.gz"
    target.write_bytes(b"mine")
    with pytest.raises(RuntimeError) as refused:
        run(bundle, "inference", **options)
    assert isinstance(root_cause(refused.value), FileExistsError)
    assert target.read_bytes() == b"mine"
    run(bundle, "inference", **options, overwrite=True)
    assert nib.load(target).shape == nib.load(image).shape


def test_volume_smaller_than_the_crop(bundle, tmp_path):
    case = {"image": str(write_volume(tmp_path / "in" / "a.nii", shape=(5, 9, 1)))}
    case["label"] = str(write_volume(tmp_path / "b.nii", np.ones((5, 9, 1), np.uint8)))
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "train"))
    prepare = Compose(parser.get_parsed_content("to_working_grid"))
    crop = prepare(case)
    for transform in parser.get_parsed_content("train#random_transforms"):
        crop = transform(crop)
    assert [list(crop[key].shape) for key in case] == [[1, *config(bundle, "train")["patch_size"]]] * 2
    run(bundle, "inference", dataset_dir=case["image"], output_dir=tmp_path / "out")
    assert nib.load(tmp_path / "out" / "a_seg.nii.gz").shape == (5, 9, 1)


def test_inference_names_a_bad_volume(bundle, probe, tmp_path):
    values = np.zeros(SIZE, np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(RuntimeError) as refused:
        run(bundle, "inference", **{**probe, "dataset_dir": tmp_path / "bad.nii.gz", "output_dir": tmp_path / "out"})
    error = root_cause(refused.value)
    assert str(error).startswith(f"{tmp_path / 'bad.nii.gz'}, image: expected finite values, got 1")


def test_evaluation_replaces_tables_only_if_told_to(bundle, evaluated, tmp_path):
    output, _, options = evaluated
    for table in output.iterdir():
        (tmp_path / table.name).write_bytes(b"mine")
        with pytest.raises(RuntimeError) as refused:
            run(bundle, "train", "evaluate", output_dir=tmp_path, **options)
        assert isinstance(root_cause(refused.value), FileExistsError)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
        (tmp_path / table.name).unlink()
    (tmp_path / "metrics.csv").write_bytes(b"mine")
    run(bundle, "train", "evaluate", output_dir=tmp_path, overwrite=True, **options)
    assert metrics(tmp_path) == pytest.approx(metrics(output))


# --- inference at each image's own voxel size ---

ORIENTATION = np.array([[2, 1], [0, -1], [1, 1]])


@pytest.fixture(scope="module")
def grids(phantoms, tmp_path_factory):
    """A phantom with voxels of 1 mm; of 0.5 x 1 x 1 mm, axes permuted and flipped; and the latter said to be 1 mm."""
    folder = tmp_path_factory.mktemp("grids")
    image = nib.load(phantoms / "imagesTr" / "phantom_000.nii.gz")
    values = torch.from_numpy(image.get_fdata(dtype=np.float32))
    fine = monai_scaleequiv.rescale(values, [2 * SIZE[0], SIZE[1], SIZE[2]]).numpy()
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


def test_native_inference_sees_millimetres(native, grids, trained, tmp_path):
    weights = trained / "models" / "model.pt"
    run(native, "inference_native", dataset_dir=grids, output_dir=tmp_path, ckpt_path=weights, **tiny(native))
    assert len(list(tmp_path.iterdir())) == 3
    labels = on_their_grids(tmp_path, grids, "seg")
    plain = nib.Nifti1Image(np.asarray(labels["plain"].dataobj).repeat(2, 0), np.eye(4))
    same = np.asarray(plain.as_reoriented(ORIENTATION).dataobj) == np.asarray(labels["fine"].dataobj)
    other = np.asarray(plain.dataobj) == np.asarray(labels["wrong"].dataobj)
    assert len(np.unique(plain.dataobj)) > 1
    assert 1 - same.mean() < 0.5 * (1 - other.mean())
    assert labels["fine"].get_data_dtype() == np.uint8


def test_native_label_map_is_the_known_one(native, grids, probe, tmp_path):
    options = {key: value for key, value in probe.items() if key != "roi_size"}
    run(native, "inference_native", dataset_dir=grids, output_dir=tmp_path, window=[14, 18, 14], **options)
    classes = config(native, "inference")["num_classes"]
    for name, labels in on_their_grids(tmp_path, grids, "seg").items():
        expected = probe_labels(nib.load(grids / f"{name}.nii.gz").get_fdata(), classes)
        found = np.asarray(labels.dataobj)
        inner = tuple(slice(3, -3) for _ in found.shape)
        assert (found == expected)[inner].mean() > 0.97, name


def test_native_inference_writes_the_scale_map_in_mm(native, grids, trained, tmp_path):
    options = {"dataset_dir": grids, "ckpt_path": trained / "models" / "model.pt", **tiny(native)}
    scales = {"scales": [0.8, 1.0, 1.25], "spacing": [2.0, 1.0, 1.0]}
    run(native, "inference_native", output_dir=tmp_path, save_scale_map=True, **scales, **options)
    assert len(list(tmp_path.iterdir())) == 6
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
    assert set(np.unique(labels.dataobj)) <= set(range(config(native, "inference")["num_classes"]))


def test_native_inference_keeps_an_earlier_scale_map(native, grids, tmp_path):
    (tmp_path / "plain_scale.nii.gz").write_bytes(b"mine")
    with pytest.raises(RuntimeError) as refused:
        run(native, "inference_native", dataset_dir=grids, output_dir=tmp_path, save_scale_map=True)
    assert isinstance(root_cause(refused.value), FileExistsError)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"mine"]


def test_native_inference_adds_a_scale_map_and_keeps_an_edited_mask(native, grids, probe, tmp_path):
    options = {key: value for key, value in probe.items() if key != "roi_size"}
    options |= {"dataset_dir": grids, "output_dir": tmp_path}
    run(native, "inference_native", **options)
    mask = tmp_path / "plain_seg.nii.gz"
    edited = np.asarray(nib.load(mask).dataobj).copy()
    edited[0] = 2
    nib.save(nib.Nifti1Image(edited, nib.load(mask).affine), mask)
    (tmp_path / "fine_seg.nii.gz").write_bytes(b"")
    before = files(tmp_path)
    run(native, "inference_native", **options, save_scale_map=True, skip_existing=True)
    after = files(tmp_path)
    assert {path.name for path in set(after) - set(before)} == {f"{n}_scale.nii.gz" for n in ("plain", "fine", "wrong")}
    assert {path.name for path in before if before[path] != after[path]} == {"fine_seg.nii.gz"}  # the empty one
    on_their_grids(tmp_path, grids, "seg")


# --- two processes ---


# Told by each process before its interpreter shuts down.
AT_EXIT = """
import atexit, os
from pathlib import Path

def tell():
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    Path(os.environ["THREADS"], os.environ["RANK"]).write_text(" ".join(names))

"RANK" in os.environ and atexit.register(tell)
"""


def run_on_two(bundle, folder, *configs, **overrides):
    """``torchrun`` with two processes on the CPU, of which no thread may outlive its work."""
    (folder / "sitecustomize.py").write_text(AT_EXIT)
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "monai.bundle", "run", f"--config_file={config_files(bundle, *configs)}"),
            *(f"--bundle_root={bundle}", *arguments),
        ],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
            "THREADS": str(folder),
        },
        cwd=bundle.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if Path("/proc/self/task").is_dir():
        assert not any("gloo" in (folder / rank).read_text() for rank in "01")


def test_evaluation_in_two_processes_equals_one(bundle, evaluated, tmp_path_factory, tmp_path):
    output, _, options = evaluated
    seen = tmp_path_factory.mktemp("seen")
    run_on_two(bundle, seen, "train", "evaluate", "multi_gpu_evaluate", output_dir=tmp_path, **options)
    one, two = metrics(output), metrics(tmp_path)
    assert two == pytest.approx(one, abs=1e-6)
    for metric in one:
        in_one, in_two = dict(per_case(output, metric)), per_case(tmp_path, metric)
        assert sorted(name for name, _ in in_two) == sorted(in_one)
        for name, values in in_two:
            assert values == pytest.approx(in_one[name], abs=1e-6, nan_ok=True)


def test_training_in_two_processes(bundle, phantoms, tmp_path_factory, tmp_path):
    options = {**tiny(bundle), **QUICK, "epochs": 1, "split#ratios": [0.6, 0.4]}
    seen = tmp_path_factory.mktemp("seen")
    run_on_two(bundle, seen, "train", "multi_gpu_train", dataset_dir=phantoms, output_dir=tmp_path, **options)
    folder = tmp_path / "models"
    assert {path.name for path in folder.iterdir()} == {"model.pt", "checkpoint_best.pt", "checkpoint_epoch=1.pt"}
    network(bundle, **tiny(bundle)).load_state_dict(load(folder / "model.pt"), strict=True)
    assert load(folder / "checkpoint_epoch=1.pt")["trainer"]["epoch_length"] == 1  # two batches of two, one a process
    assert set(scalars(tmp_path, "val_mean_dice")) == {1}


@pytest.mark.parametrize("name", ["evaluate", "inference", "inference_native", "train"])
def test_unwritable_output_is_told_before_the_work(bundle, phantoms, tmp_path, name):
    configs = ["train", "evaluate"] if name == "evaluate" else [name]
    if not (bundle / "configs" / f"{name}.json").exists():
        pytest.skip(f"{bundle.name} has no {name}.json")
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "out"
    reason = rf"(output|ckpt)_dir: expected a folder that can be written to, got {re.escape(str(output))}.*Not a dir"
    # The missing weights would be the next error.
    options = {} if name == "train" else {"ckpt_path": tmp_path / "missing.pt"}
    with pytest.raises(RuntimeError) as error:
        run(bundle, *configs, dataset_dir=phantoms, output_dir=output, **options)
    assert re.match(reason, str(error.value.__cause__))
