"""Auto3DSeg: values from the statistics of the data, probabilities, and MONAI's own runner from data to ensemble."""

import json
import os
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.apps.auto3dseg import AutoRunner, BundleAlgo, import_bundle_algo_history
from monai.auto3dseg import datafold_read
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscrete, Compose, LoadImaged, NormalizeIntensityd
from monai.utils import AlgoKeys

from monai_scaleequiv.auto3dseg import SEUNetAlgo, run_training
from monai_scaleequiv.data import make_phantom_dataset
from tests.bundle_runs import SIZE, config, load, run, scalars, write_probe
from tests.conftest import BUNDLES, ROOT

SEUNET = {"_target_": "monai_scaleequiv.auto3dseg.SEUNetAlgo"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Auto3DSeg's input: four cases in two folds and two to test on, whose labels stay beside."""
    root = tmp_path_factory.mktemp("auto3dseg")
    cases = json.loads(make_phantom_dataset(root, cases=6, size=SIZE).read_text())["training"]
    training = [{**case, "fold": index % 2} for index, case in enumerate(cases[:4])]
    testing = [{"image": case["image"]} for case in cases[4:]]
    (root / "list.json").write_text(json.dumps({"training": training, "testing": testing}))
    return {"modality": "mri", "datalist": str(root / "list.json"), "dataroot": str(root), "num_fold": 1}


def statistics(spacing=(1.0, 1.0, 1.0), size_mm=SIZE, labels=(0, 1, 2), channels=1):
    """Of what ``DataAnalyzer`` reports, the parts that are used."""
    images = {"spacing": {"median": spacing}, "sizemm": {"median": size_mm}, "channels": {"max": channels}}
    intensity = {"percentile_00_5": -40.0, "percentile_99_5": 160.0}
    rest = {"image_foreground_stats": {"intensity": intensity}, "label_stats": {"labels": list(labels)}}
    return {"stats_summary": {"n_cases": 4, "image_stats": images, **rest}}


def generate(folder, data, fold=0, **of_data):
    """What ``BundleGen`` does, from statistics; the folder of the algorithm."""
    for name, content in (("stats", statistics(**of_data)), ("input", data)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    algo = SEUNetAlgo()
    algo.name = "seunet"
    algo.set_data_stats(str(folder / "stats.json"))
    algo.set_data_source(str(folder / "input.json"))
    algo.export_to_disk(str(folder), f"seunet_{fold}", fold=fold)
    return Path(algo.output_path), algo


def parsed(bundle, name):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / f"{name}.json")
    return parser


def test_values_follow_from_the_data(data, tmp_path):
    bundle, _ = generate(tmp_path, data, fold=1, channels=2)
    train, inference = (parsed(bundle, name) for name in ("train", "inference"))
    training, validation = train.get_parsed_content("split")
    assert [case["fold"] for case in training + validation] == [0, 0, 1, 1]
    assert all(Path(case["label"]).is_file() for case in training)
    assert train.get_parsed_content("epochs") == 1000
    assert train["train#random_transforms#2"]["_target_"] == "RandSpatialCropd"
    for parser in (train, inference):
        assert parser["normalization"] == config(BUNDLES / "seunet_hippocampus_segmentation", "train")["normalization"]
        assert parser["roi_size"] == list(SIZE)
        net = parser.get_parsed_content("network_def")
        assert (net.in_channels, net.out_channels, net.filters.spacing) == (2, 3, (1.0, 1.0, 1.0))


def test_thick_slices_of_a_large_ct(data, tmp_path):
    data = {**data, "modality": "CT"}
    bundle, _ = generate(tmp_path, data, spacing=(0.8, 0.8, 4.0), size_mm=(320.0, 320.0, 160.0), labels=(0, 1))
    train, inference = (parsed(bundle, name) for name in ("train", "inference"))
    patch = train["patch_size"]
    assert np.prod(patch) <= 96**3
    assert patch[2] == 40
    assert min(patch[:2]) >= 144
    net = inference.get_parsed_content("network_def")
    assert net.filters.spacing == (1.0, 1.0, 5.0)
    for parser, steps in ((train, "to_working_grid"), (inference, "preprocessing#transforms")):
        normalize = parser.get_parsed_content(f"{steps}#{len(parser[steps]) - 1}")
        image = torch.tensor([-1000.0, -40.0, 60.0, 160.0, 3000.0])
        assert normalize({"image": image, "label": image})["image"].tolist() == [-2.5, -2.5, 0, 2.5, 2.5]
    # Each class alike, although the organ has a ten-thousandth of the volume.
    train.update({"patch_size": [8, 8, 8]})
    pad, crop = (train.get_parsed_content(f"train#random_transforms#{index}") for index in (0, 1))
    label = torch.zeros(1, 40, 40, 40)
    label[:, 20:22, 20:22, 20:22] = 1
    crops = [crop(pad({"image": label, "label": label}))[0]["label"].max() for _ in range(20)]
    assert 4 < sum(crops) < 20


def test_another_bundle_does_not_take_the_record_of_a_ct(data, tmp_path):
    bundle, _ = generate(tmp_path, {**data, "modality": "CT"})
    other = parsed(BUNDLES / "seunet_hippocampus_segmentation", "inference")
    other["normalization"] = parsed(bundle, "train")["normalization"]
    with pytest.raises(ValueError, match="normalization::nonzero"):
        other.get_parsed_content("preprocessing")


@pytest.mark.parametrize(
    ("change", "of_data", "error"),
    [
        ({"sigmoid": True}, {}, "expected classes that exclude each other, got regions"),
        ({"class_names": [{"name": "all", "index": [1, 2]}]}, {}, "expected classes that exclude each other"),
        ({}, {"labels": [0, 1, 3]}, r"expected labels 0, 1, ... without gaps, got \[0, 1, 3\]"),
        ({}, {"fold": 2}, "list.json: expected cases in fold 2 and outside it, got 0 and 4; give"),
    ],
)
def test_tasks_that_it_cannot_do(data, tmp_path, change, of_data, error):
    with pytest.raises(ValueError, match=error):
        generate(tmp_path, {**data, **change}, **of_data)


def test_values_are_kept_for_another_generation(data, tmp_path):
    """As a search of hyperparameters makes it: other values, and no look at the statistics."""
    bundle, algo = generate(tmp_path, data, fold=1)
    algo.export_to_disk(str(tmp_path), "again", fill_with_datastats=False, learning_rate=0.01)
    first, second = (config(folder, "train") for folder in (bundle, tmp_path / "again"))
    assert (first.pop("learning_rate"), second.pop("learning_rate")) == (0.004, 0.01)
    assert first == second


def test_probabilities_lie_on_the_grid_of_the_image(data, tmp_path):
    """Their argmax is the label map that ``inference.json`` writes; an image of another orientation and voxel size."""
    bundle, algo = generate(tmp_path, data)
    (bundle / "models").mkdir()
    probe = write_probe(bundle / "models" / "model.pt")
    definition = {"network_def": probe["network_def"]}
    image = nib.load(Path(data["dataroot"]) / "imagesTr" / "phantom_005.nii.gz")
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIR"))
    turned = image.as_reoriented(turn)
    thick = nib.Nifti1Image(np.asarray(turned.dataobj)[:, ::2], turned.affine @ np.diag([1, 2, 1, 1]))
    nib.save(thick, tmp_path / "thick.nii.gz")
    run(bundle, "inference", dataset_dir=tmp_path / "thick.nii.gz", output_dir=tmp_path / "out", **definition)
    expected = nib.load(tmp_path / "out" / "thick_seg.nii.gz")
    path, other = str(tmp_path / "thick.nii.gz"), str(Path(data["dataroot"]) / "imagesTr" / "phantom_004.nii.gz")
    given = {**definition, "image_save_func": {"_target_": "SaveImage"}, "rank": 0}
    *answers, straight = algo.predict([path, {"image": path}, other], given)
    assert straight.shape[1:] == image.shape != thick.shape
    for found in answers:
        torch.testing.assert_close(found.sum(0).as_tensor(), torch.ones(thick.shape))
        np.testing.assert_array_equal(found.argmax(0).numpy(), np.asarray(expected.dataobj))
        np.testing.assert_allclose(found.affine.numpy(), thick.affine, atol=1e-5)
    assert len(np.unique(expected.dataobj)) == 3


def test_untrained_algorithm_has_no_score_and_predicts_nothing(data, tmp_path):
    _, algo = generate(tmp_path, data)
    with pytest.raises(FileNotFoundError):
        algo.get_score()
    with pytest.raises(FileNotFoundError, match=r"model\.pt does not exist"):
        algo.predict([{"image": str(Path(data["dataroot"]) / "imagesTr" / "phantom_005.nii.gz")}])


class SmallSegResNet(BundleAlgo):
    """MONAI's ``SegResNet`` as an algorithm, in place of MONAI's own template, which has to be downloaded."""

    def read(self, keys="image"):
        load_image = LoadImaged(keys, ensure_channel_first=True, image_only=True, allow_missing_keys=True)
        return Compose([load_image, NormalizeIntensityd("image", channel_wise=True)])

    def network(self):
        return SegResNet(3, 4, in_channels=1, out_channels=3, norm="INSTANCE", blocks_down=(1, 1), blocks_up=(1,))

    def train(self, train_params=None, device_setting=None):
        source = ConfigParser.load_config_file(self.data_list_file)
        parts = datafold_read(source["datalist"], source["dataroot"], fold=0)
        training, validation = ([self.read(("image", "label"))(case) for case in part] for part in parts)
        net, loss = self.network(), DiceCELoss(to_onehot_y=True, softmax=True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
        for step in range(16):
            case = training[step % len(training)]
            optimizer.zero_grad()
            loss(net(case["image"][None]), case["label"][None]).backward()
            optimizer.step()
        metric, onehot = DiceMetric(include_background=False), AsDiscrete(argmax=True, to_onehot=3)
        with torch.no_grad():
            for case in validation:
                metric([onehot(net.eval()(case["image"][None])[0])], [AsDiscrete(to_onehot=3)(case["label"])])
        self.best_metric = metric.aggregate().item()
        torch.save(net.state_dict(), Path(self.output_path) / "model.pt")

    def get_score(self):
        return self.best_metric

    @torch.no_grad()
    def predict(self, predict_files, predict_params=None):
        net = self.network().eval()
        net.load_state_dict(load(Path(self.output_path) / "model.pt"))
        images = [self.read()(file)["image"] for file in predict_files]
        return [net(image[None])[0].softmax(0) for image in images]


def test_training_goes_on_where_it_was_killed_and_leaves_its_score(data, tmp_path):
    bundle, algo = generate(tmp_path, data)
    files = ",".join(str(file) for file in sorted((bundle / "configs").iterdir()))
    small = {"network_def#channels": [4, 8], "network_def#strides": [2], "num_epochs_per_validation": 1}
    run_training(files, num_epochs=1, **small)
    first = algo.get_score()
    (bundle / "models" / "progress.json").unlink()  # which is written last
    run_training(files, num_epochs=2, **small)
    assert sorted(scalars(bundle / "tensorboard", "val_mean_dice")) == [1, 2]
    assert 0 < first <= algo.get_score() == max(scalars(bundle / "tensorboard", "val_mean_dice").values())
    # The network is the one that was trained, whatever the configs say.
    (found,) = algo.predict([str(Path(data["dataroot"]) / "imagesTr" / "phantom_005.nii.gz")])
    assert found.shape == (3, *SIZE)


@pytest.mark.slow
def test_analyse_generate_train_and_ensemble(data, tmp_path, monkeypatch):
    """MONAI's ``AutoRunner`` with this algorithm and one of MONAI's networks."""
    pytest.importorskip("yaml", reason="Auto3DSeg needs PyYAML (pip install '.[tools]')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    templates = tmp_path / "templates"
    (templates / "segresnet" / "scripts").mkdir(parents=True)
    (templates / "segresnet" / "scripts" / "infer.py").touch()
    other = {"_target_": f"{__name__}.SmallSegResNet", "template_path": str(templates)}
    runner = AutoRunner(str(tmp_path / "work"), {**data, "algos": {"seunet": SEUNET, "segresnet": other}})
    small = {"network_def#channels": "[4,8]", "network_def#strides": "[2]", "learning_rate": 0.02}
    runner.set_training_params({"num_epochs": 24, "num_epochs_per_validation": 8, "num_images_per_batch": 1, **small})
    runner.set_device_info(cmd_prefix=sys.executable)
    runner.set_ensemble_method("AlgoEnsembleBestN", n_best=2)
    runner.run()
    history = import_bundle_algo_history(str(tmp_path / "work"))
    assert [(algo[AlgoKeys.ID], algo[AlgoKeys.SCORE] > 0.25) for algo in history] == [
        ("segresnet_0", True),
        ("seunet_0", True),
    ]
    for case in json.loads(Path(data["datalist"]).read_text())["testing"]:
        name = Path(case["image"]).name
        file = tmp_path / "work" / "ensemble_output" / "imagesTr" / name.replace(".nii", "_ensemble.nii")
        written, truth = nib.load(file), nib.load(Path(data["dataroot"]) / "labelsTr" / name)
        np.testing.assert_allclose(written.affine, truth.affine)
        image = {"image": str(Path(data["dataroot"]) / case["image"])}
        both = [algo[AlgoKeys.ALGO].predict([image])[0].as_tensor() for algo in history]
        labels = np.asarray(written.dataobj)
        np.testing.assert_array_equal(labels, torch.stack(both).mean(0).argmax(0).numpy())
        assert not torch.equal(both[0].argmax(0), both[1].argmax(0))
        body = [volume > 0 for volume in (labels, np.asarray(truth.dataobj))]
        assert 2 * (body[0] & body[1]).sum() / (body[0].sum() + body[1].sum()) > 0.6


@pytest.mark.slow
def test_training_on_two_devices(data, tmp_path, monkeypatch):
    """As Auto3DSeg starts it for several GPUs; without any, on two processes of the CPU."""
    if not shutil.which("torchrun"):
        pytest.skip("needs torchrun on the path")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PET_STANDALONE", "1")  # any free port
    bundle, algo = generate(tmp_path, data)
    small = {"network_def#channels": "[4,8]", "network_def#strides": "[2]", "num_images_per_batch": 1}
    algo.train({"num_epochs": 2, "num_epochs_per_validation": 1, **small}, {"CUDA_VISIBLE_DEVICES": "0,1"})
    record = json.loads((bundle / "models" / "model.json").read_text())
    assert len(record["training_cases"]) == 2
    assert algo.get_score() > 0
