"""MONAI's own tools on every bundle: federated learning, `monai.bundle`, MONAI Label, MONAI Deploy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.transforms import Invertd, SaveImaged

from monai_scaleequiv.data import make_phantom_dataset
from tests.bundle_runs import (
    CPU,
    FOLDERS,
    QUICK,
    SIZE,
    config,
    config_files,
    files,
    load,
    metrics,
    network,
    run,
    tiny,
    train,
)
from tests.conftest import ROOT

NAMES = [folder.name for folder in reversed(FOLDERS)]
# The first bundle stands for all; the others are slow.
EACH = pytest.mark.parametrize(
    "bundle", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])], indirect=True
)


# --- federated learning ---


def client(bundle, data, app, **train):
    """A client as MONAI's default arguments make it, in a folder with the bundle."""
    if not app.exists():
        shutil.copytree(bundle, app / "bundle")
    both = {"dataset_dir": str(data), "device": CPU, "roi_size": list(SIZE), **tiny(bundle)}
    algo = MonaiAlgo(
        "bundle",
        train_kwargs={**both, "patch_size": [16] * 3, "resume": "federated", "learning_rate": 0.02, **train},
        eval_kwargs={**both, "validate#dataset#data": "$@split[1]", "overwrite": True},
        send_weight_diff=False,
        local_epochs=2,
    )
    algo.initialize({ExtraItems.CLIENT_NAME: app.name, ExtraItems.APP_ROOT: str(app)})
    return algo


def scores(clients, weights):
    return [algo.evaluate(ExchangeObject(weights=dict(weights))).metrics["val_mean_dice"] for algo in clients]


def stored(algo, kind):
    return algo.get_weights({ExtraItems.MODEL_TYPE: kind}).weights


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@EACH
def test_two_clients_two_rounds_and_a_restart(bundle, phantoms, tmp_path):
    datas = [phantoms, make_phantom_dataset(tmp_path / "data", cases=5, size=SIZE, seed=1).parent]
    apps = [tmp_path / "site_0", tmp_path / "site_1"]
    clients = [client(bundle, data, app) for data, app in zip(datas, apps, strict=True)]
    random = network(bundle, **tiny(bundle)).state_dict()
    zeros = {name: torch.zeros_like(weight) for name, weight in random.items()}
    assert scores(clients, zeros) == [0, 0]
    before = scores(clients, random)
    assert max(before) < 0.2
    weights = random
    for _ in range(2):
        for algo in clients:
            algo.train(ExchangeObject(weights=dict(weights)))
        local = [algo.get_weights().weights for algo in clients]
        weights = {n: sum(w[n] for w in local).div(2).to(random[n].dtype) for n in random}
    average = scores(clients, weights)
    assert all(after > start + 0.02 for after, start in zip(average, before, strict=True)), (average, before)
    best = [stored(algo, ModelType.BEST_MODEL) for algo in clients]
    assert not equal(*best)
    for algo, app, own, mine in zip(clients, apps, local, best, strict=True):
        assert equal(stored(algo, ModelType.FINAL_MODEL), own)
        assert equal(mine, load(app / "bundle" / "models" / "model.pt"))
        # What the bundle brought along is kept.
        for name in ("model.pt", "model.json"):
            shipped = (bundle / "models" / name).read_bytes()
            assert (app / "bundle" / "models" / "earlier_1" / name).read_bytes() == shipped
        algo.finalize()
    again, began = client(bundle, datas[0], apps[0]), []

    def note(engine):
        began.append({name: weight.clone() for name, weight in engine.network.state_dict().items()})

    again.trainer.add_event_handler(Events.EPOCH_STARTED, note)
    again.train(ExchangeObject(weights=dict(weights)))
    assert equal(began[0], weights)  # the server's, not those of the client's own checkpoint
    state = load(apps[0] / "bundle" / "models" / "checkpoint_epoch=6.pt")
    assert (state["trainer"]["iteration"], state["lr_scheduler"]["last_epoch"]) == (12, 6)
    assert state["epoch_seed"] == {"seed": 0}
    assert state["trainer"]["best"][1][0] >= max(scores([again], best[0])) - 1e-4
    assert {path.name for path in (apps[0] / "bundle" / "models").iterdir()} == {
        "checkpoint_epoch=5.pt",
        "checkpoint_epoch=6.pt",
        "curve.png",
        "earlier_1",
        "model.json",
        "model.pt",
        "model_final.pt",
        *(f"overlay_epoch={n}.png" for n in (2, 4, 6)),
    }


@pytest.mark.slow
@EACH
def test_statistics_of_a_client(bundle, phantoms, tmp_path):
    pytest.importorskip("yaml", reason="MONAI writes statistics with PyYAML")
    given = {"dataset_dir": str(phantoms), "device": CPU}
    workflow = ConfigWorkflow(config_files(bundle, "train"), workflow_type="train", logging_file=False, **given)
    algo = MonaiAlgoStats(str(bundle), workflow=workflow)
    before = files(bundle)
    algo.initialize({ExtraItems.APP_ROOT: str(tmp_path)})
    found = algo.get_data_stats({FlStatistics.HIST_BINS: 10, FlStatistics.HIST_RANGE: [0, 1000]}).statistics
    counts = {key: (part[FlStatistics.DATA_COUNT], part[FlStatistics.FAIL_COUNT]) for key, part in found.items()}
    assert counts == {"train": (4, 0), "eval": (1, 0), FlStatistics.TOTAL_DATA: (5, 0)}
    assert found["train"][FlStatistics.DATA_STATS]["image_stats"]["shape"]["mean"] == list(SIZE)
    assert files(bundle) == before


# --- monai.bundle ---


def exported(bundle, command=monai.bundle.ckpt_export, **options):
    """The bundle's network by one of MONAI's exports."""
    given = {
        "net_id": "network_def",
        "filepath": str(bundle / "models" / "model.ts"),
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": config_files(bundle, "inference")[0],
    }
    command(**given | options)
    return Path((given | options)["filepath"])


@EACH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_load_and_download(bundle, monkeypatch, tmp_path):
    """As a model, into another one, with another head, as TorchScript, out of an archive: nothing else is left."""
    monkeypatch.chdir(tmp_path)
    archive = Path(shutil.make_archive(str(tmp_path / bundle.name), "zip", bundle.parent, bundle.name))
    monai.bundle.download(name=bundle.name, url=archive.as_uri(), bundle_dir="zoo", progress=False)
    archive.unlink()
    Path("zoo", archive.name).unlink()
    folder = Path("zoo", bundle.name)
    before = {path.relative_to(bundle): content for path, content in files(bundle).items()}
    assert {path.relative_to(folder): content for path, content in files(folder).items()} == before
    weights = load(folder / "models" / "model.pt")
    given = {"name": bundle.name, "bundle_dir": "zoo", "device": "cpu"}
    for options in ({}, {"workflow_type": "inference"}, {"model": network(bundle)}):
        assert equal(monai.bundle.load(**given, **options).state_dict(), weights)
    path, definition = "", config(bundle, "inference")["network_def"]
    while "network" in definition:
        path, definition = f"{path}network#", definition["network"]
    wider = monai.bundle.load(**given, net_override={f"{path}out_channels": 4}).state_dict()
    same = [name for name in weights if wider[name].shape == weights[name].shape]
    assert len(weights) - 6 <= len(same) < len(weights)
    assert all(torch.equal(wider[name], weights[name]) for name in same)
    script = exported(folder)
    model, meta, extra = monai.bundle.load(**given, load_ts_module=True, config_files=("inference.json",))
    assert isinstance(model, torch.jit.ScriptModule)
    assert meta["network_data_format"] == config(bundle, "metadata")["network_data_format"]
    assert json.loads(extra["inference.json"])["network_def"] == config(bundle, "inference")["network_def"]
    script.unlink()
    assert {path.relative_to(folder): content for path, content in files(folder).items()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


@pytest.mark.parametrize(
    "configs",
    [["inference"], *(pytest.param(names, marks=pytest.mark.slow) for names in (["train"], ["train", "evaluate"]))],
)
def test_each_property_of_a_workflow_can_be_set(bundle, phantoms, tmp_path, configs):
    """To what it is, whereupon everything else still finds it."""
    kind, engine = ("infer", "evaluator") if configs == ["inference"] else ("train", "trainer")
    data = phantoms if kind == "train" else phantoms / "imagesTr"
    given = {"bundle_root": "/elsewhere", "dataset_dir": "/no/data", "output_dir": str(tmp_path / "out"), "device": CPU}
    given |= {"cache_rate": 0.0} if kind == "train" else {}

    def fresh():
        files = config_files(bundle, *configs)
        workflow = create_workflow(workflow_type=kind, config_file=files, logging_file=False, **given)
        workflow.dataset_dir, workflow.bundle_root = str(data), str(bundle)
        workflow.initialize()
        return workflow

    for name in fresh().properties:
        workflow = fresh()
        value = getattr(workflow, name)
        setattr(workflow, name, value)
        workflow.initialize()
        assert getattr(workflow, name) is value or getattr(workflow, name) == value, name
        assert getattr(workflow, engine) is not None, name
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tensorboard_and_mlflow_by_one_switch_each(bundle, phantoms, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    pytest.importorskip("sqlalchemy", reason="MONAI keeps MLflow's records in SQLite")
    train(bundle, phantoms, tmp_path / "train", tracking="mlflow", tensorboard="false")
    assert {path.name for path in (tmp_path / "train").iterdir() if path.suffix != ".json"} == {"mlruns.db", "models"}
    weights = {"ckpt_path": tmp_path / "train" / "models" / "model.pt", "roi_size": list(SIZE), **tiny(bundle)}
    given = {**weights, "tracking": "mlflow"}
    run(bundle, "train", "evaluate", dataset_dir=phantoms, output_dir=tmp_path / "evaluate", **given)
    run(bundle, "inference", dataset_dir=phantoms / "imagesTr", output_dir=tmp_path / "inference", **given)
    found = {}
    for name in ("train", "evaluate", "inference"):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / name / 'mlruns.db'}")
        (record,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
        found[name] = record.data.metrics
        if name == "train":
            losses = client.get_metric_history(record.info.run_id, "train_loss")
            assert len(losses) == QUICK["epochs"] * int(record.data.params["epoch_length"])
    assert found["train"].keys() >= {"train_loss", "train_mean_dice", "val_mean_dice", "lr_group_0"}
    assert found["evaluate"] == pytest.approx(metrics(tmp_path / "evaluate"), abs=1e-5)
    assert len(list((tmp_path / "inference").glob("*_seg.nii.gz"))) == 5


@EACH
def test_what_tensorrt_is_given(bundle, monkeypatch, tmp_path):
    """MONAI asks for a GPU within this call; up to there all is done without one."""
    calls = []

    def convert(model, precision, input_shape, dynamic_batchsize, use_trace, **options):
        calls.append((precision, input_shape, dynamic_batchsize, use_trace))
        assert equal(model.state_dict(), load(bundle / "models" / "model.pt"))
        return torch.jit.script(torch.nn.Identity())

    monkeypatch.setattr("monai.bundle.scripts.convert_to_trt", convert)
    target = str(tmp_path / "model.trt.ts")
    exported(bundle, monai.bundle.trt_export, filepath=target, precision="fp16", dynamic_batchsize=[1, 2, 4])
    shape = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert calls == [("fp16", (1, 1, *shape), [1, 2, 4], False)]
    assert Path(target).is_file()


@pytest.mark.slow
@EACH
def test_what_is_pushed_to_the_hugging_face_hub(bundle, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    folder = Path(shutil.copytree(bundle, tmp_path / bundle.name))
    api, pushed = create_autospec(hub.HfApi, instance=True), {}
    api.upload_folder.side_effect = lambda repo_id, folder_path: pushed.update(files(Path(folder_path)))
    monkeypatch.setattr("monai.bundle.scripts.huggingface_hub", SimpleNamespace(HfApi=lambda token: api))
    version = config(bundle, "metadata")["version"]
    monai.bundle.push_to_hf_hub("someone/bundle", bundle.name, str(tmp_path), token="none", version=version)
    assert api.create_repo.call_args.kwargs == {"repo_id": "someone/bundle", "private": True, "exist_ok": True}
    assert api.create_tag.call_args.kwargs["tag"] == version
    assert {path.relative_to(folder).as_posix() for path in pushed} >= {
        *("LICENSE", "README.md", "docs/README.md", "docs/data_license.txt", "configs/metadata.json"),
        *("configs/inference.json", "configs/train.json", "models/model.pt", "models/model.json"),
    }
    card = hub.ModelCard(pushed[folder / "README.md"].decode())
    assert (card.data.license, card.data.library_name, card.data.tags) == ("apache-2.0", "monai", ["monai", "medical"])
    assert card.text.lstrip().startswith(f"# {config(bundle, 'metadata')['name']}\n")


# --- MONAI Label and MONAI Deploy: each by itself where it is installed, and by the look-ups that it makes ---


@pytest.fixture(scope="module")
def grids(phantoms, tmp_path_factory):
    """One image in three ways: axes in the orders LPS and PIR, and slices of 2.5 mm."""
    folder = tmp_path_factory.mktemp("grids")
    image = nib.load(phantoms / "imagesTr" / "phantom_000.nii.gz")
    for code in ("LPS", "PIR"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(code))
        nib.save(image.as_reoriented(turn), folder / f"{code}.nii.gz")
    thick = image.affine @ np.diag([1, 1, 2.5, 1])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::2], thick), folder / "thick.nii.gz")
    return folder


class LookUps:
    """What MONAI Label 0.8.5 does in ``tasks/infer/bundle.py`` and ``tasks/train/bundle.py`` with a bundle."""

    def __init__(self, bundle):
        self.bundle = bundle

    def infer(self, image, dropout=0.0, left_out=(SaveImaged,), probabilities=False):
        parser = ConfigParser()
        parser.read_config(config_files(self.bundle, "inference"))
        parser.config |= {"bundle_root": str(self.bundle), "device": "cpu", "probabilities": probabilities}
        if dropout:
            parser["network_def"]["dropout"] = dropout
        net = parser.get_parsed_content("network_def")
        net.load_state_dict(load(self.bundle / "models" / "model.pt"), strict=False)
        data = {"image": str(image), "image_path": str(image), "device": "cpu"}
        for step in parser.get_parsed_content("preprocessing").transforms:
            data = step(data)
        with torch.no_grad():
            inferer = parser.get_parsed_content("inferer")
            data["pred"] = inferer(data["image"][None], net.train(dropout > 0))[0]
        for step in parser.get_parsed_content("postprocessing").transforms:
            data = data if isinstance(step, left_out) else step(data)
        return data["pred"]

    def train(self, cases):
        handlers = config(self.bundle, "train")["train"]["handlers"]
        assert not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
        weights = {"load_path": str(self.bundle / "models" / "model.pt"), "load_dict": {"model": "$@network"}}
        overrides = {"train#trainer#max_epochs": 1, "train#dataset#data": cases[:-1], "device": "cpu"}
        monai.bundle.run(
            run_id="run",
            init_id=None,
            final_id=None,
            meta_file=str(self.bundle / "configs" / "metadata.json"),
            config_file=config_files(self.bundle, "train")[0],
            bundle_root=str(self.bundle),
            **overrides,
            **{"train#handlers": [{"_target_": "CheckpointLoader", **weights, "strict": False}, *handlers]},
            **{"validate#dataset#data": cases[-1:]},
        )


class Label:
    """MONAI Label itself."""

    def __init__(self, bundle):
        pytest.importorskip("monailabel", reason="needs monailabel (0.8.5 asks for torchvision and sam2)")
        self.bundle = bundle

    def infer(self, image, dropout=0.0, left_out=(SaveImaged,), probabilities=False):
        from monailabel.tasks.infer.bundle import BundleInferTask

        options = {"train_mode": dropout > 0, "dropout": dropout, "skip_writer": True}
        task = BundleInferTask(str(self.bundle), {}, post_filter=list(left_out), **options)
        task.bundle_config["probabilities"] = probabilities
        return task({"image": str(image), "device": "cpu"})[1]["pred"]

    def train(self, cases):
        from monailabel.tasks.train.bundle import BundleTrainTask

        request = {"model": self.bundle.name, "max_epochs": 1, "device": "cpu", "val_split": 0.25}
        BundleTrainTask(str(self.bundle), {})(request, SimpleNamespace(datalist=lambda: cases))


def small(bundle, trained, target):
    """A copy of the bundle whose configs hold the small network that was trained, with its weights."""
    shutil.copytree(bundle, target)
    for name in ("train", "inference"):
        parser = ConfigParser(config(bundle, name))
        parser.update({**tiny(bundle), "roi_size": list(SIZE)} | ({"patch_size": [16] * 3} if name == "train" else {}))
        ConfigParser.export_config_file(parser.get(), config_files(target, name)[0])
    (target / "models").mkdir(exist_ok=True)
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / "models" / name, target / "models" / name)
    return target


@EACH
@pytest.mark.parametrize("tool", [LookUps, Label])
def test_label_segments_trains_and_scores(bundle, trained, phantoms, grids, tmp_path, tool):
    own = small(bundle, trained, tmp_path / bundle.name)
    shipped, before = tool(own), files(own)
    run(own, "inference", dataset_dir=grids, output_dir=tmp_path / "out")
    for image in sorted(grids.iterdir()):
        expected = nib.load(tmp_path / "out" / image.name.replace(".nii", "_seg.nii"))
        found = shipped.infer(image)
        assert len(np.unique(expected.dataobj)) > 1
        np.testing.assert_array_equal(np.asarray(found).squeeze(), np.asarray(expected.dataobj))
        np.testing.assert_allclose(np.asarray(found.affine), expected.affine, atol=1e-5)
    one, other = (
        shipped.infer(image, dropout=0.2, left_out=(SaveImaged, Invertd), probabilities=True) for _ in range(2)
    )
    for probabilities in (one, other):
        assert probabilities.min() >= 0
        torch.testing.assert_close(torch.as_tensor(probabilities).sum(0), torch.ones(probabilities.shape[1:]))
    assert not torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert files(own) == before
    cases = [
        {key: str(phantoms / f"{key}sTr" / f"phantom_00{i}.nii.gz") for key in ("image", "label")} for i in (4, 3, 2, 1)
    ]
    seen, masks = len(config_record(own)["training_cases"]), [shipped.infer(image)]
    for turn in (1, 2):
        old = {name: (own / "models" / name).read_bytes() for name in ("model.pt", "model.json")}
        shipped.train(cases)
        assert {name: (own / "models" / f"earlier_{turn}" / name).read_bytes() for name in old} == old
        assert (own / "models" / "model.pt").read_bytes() != old["model.pt"]
        masks.append(tool(own).infer(image))
        assert not torch.equal(torch.as_tensor(masks[-1]), torch.as_tensor(masks[-2]))
    assert len(config_record(own)["training_cases"]) == seen + 1  # number 4 is new


def config_record(bundle):
    return json.loads((bundle / "models" / "model.json").read_text(encoding="utf-8"))


# What `MonaiBundleInferenceOperator` of MONAI Deploy 4.0 does with a model.ts, an image in memory and its affine.
DEPLOY = """
import json, sys, tempfile, zipfile
from pathlib import Path
import nibabel as nib, numpy as np, torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import ensure_tuple

model, image, result, *names = sys.argv[1:]
parser = ConfigParser()
with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(model) as archive:
    extra = f"{Path(model).stem}/extra/"
    parser.read_meta(f=json.loads(archive.read(f"{extra}metadata.json")))
    archive.extractall(folder, [f"{extra}{name}.json" for name in names])
    parser.read_config([Path(folder, f"{extra}{name}.json") for name in names])
parser.parse()
assert list(parser["_meta_"]["network_data_format"]["inputs"]) == ["image"]
device, inferer = (parser.get_parsed_content(id) for id in ("device", "inferer"))
pre, post = (parser.get_parsed_content(id) for id in ("preprocessing", "postprocessing"))
for steps in (pre, post):
    kept = [t for t in steps.transforms if not any(n in type(t).__name__ for n in ("LoadImage", "SaveImage"))]
    steps.transforms = tuple(kept)
nifti = nib.load(image)
meta = {"original_affine": nifti.affine, "affine": nifti.affine.copy(), "spatial_shape": np.asarray(nifti.shape[:3])}
meta |= {"original_channel_dim": -1 if nifti.ndim > 3 else "no_channel", "SeriesInstanceUID": "1.2.3"}
with torch.no_grad():
    value = np.asarray(nifti.dataobj).astype(np.float32)
    inputs = pre({"image": MetaTensor.ensure_torch_and_prune_meta(value, meta)})
    image = inputs["image"]
    pred = inferer(inputs=image[None].to(device), network=torch.jit.load(model, map_location=device).eval())
    labels = post({"pred": ensure_tuple(pred)[0], **inputs})["pred"]
np.save(result, np.squeeze(labels.cpu().numpy()).astype(np.uint8))
"""
BLOCK = "import sys\nsys.modules['monai_scaleequiv'] = None\n"


def deployed(bundle, image, monkeypatch, folder):
    """What Deploy makes of the archive with this package, and without it."""
    both = [config_files(bundle, name)[0] for name in ("deploy", "inference")]  # of two, the later one counts
    model = exported(bundle, filepath=str(folder / "model.ts"), config_file=both)
    arguments = [str(model), str(image), str(folder / "with.npy"), "inference"]
    monkeypatch.setattr(sys, "argv", ["deploy", *arguments])
    exec(DEPLOY, {})
    command = [sys.executable, "-W", "ignore", "-c", BLOCK + DEPLOY, model, image, folder / "without.npy"]
    done = subprocess.run([*command, "inference", "deploy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [np.load(folder / f"{name}.npy") for name in ("with", "without")]


@EACH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_deploy_with_and_without_this_package(bundle, grids, monkeypatch, tmp_path):
    """The archive alone gives the same label maps, by its own configs."""
    image = grids / "PIR.nii.gz"
    run(bundle, "inference", dataset_dir=image, output_dir=tmp_path / "out")
    expected = np.asarray(nib.load(tmp_path / "out" / "PIR_seg.nii.gz").dataobj)
    for found in deployed(bundle, image, monkeypatch, tmp_path):
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 1
