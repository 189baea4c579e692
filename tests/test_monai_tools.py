"""MONAI's own tools on every bundle: federated learning, `monai.bundle`, MONAI Label, MONAI Deploy."""

import shutil

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType
from monai.fl.utils.exchange_object import ExchangeObject

from monai_scaleequiv.data import make_phantom_dataset
from tests.bundle_runs import CPU, FOLDERS, SIZE, config_files, files, load, network, tiny

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
        "earlier_1",
        "model.json",
        "model.pt",
        "model_final.pt",
    }


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
