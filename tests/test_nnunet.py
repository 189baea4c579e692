"""nnU-Net: networks as its plans describe them, its look-ups, and its own commands from raw data to label maps."""

import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_scaleequiv import ScalePyramid, SEUNet
from monai_scaleequiv.data import make_phantom_dataset
from monai_scaleequiv.nnunet import TRAINERS
from tests.conftest import ROOT

NAMES = ("SEUNet", "RepUXNet", "ScalePyramid")
FEATURES = [8, 8, 16, 16]
STRIDES = {  # plans of nnU-Net for isotropic voxels, for thick slices and for 2D, and patches that go with them
    "isotropic": ([[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], (16, 24, 16)),
    "thick slices": ([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]], (6, 32, 24)),
    "2d": ([[1, 1], [2, 2], [2, 2], [2, 1]], (32, 20)),
}


def arch_kwargs(plan: str, **change) -> dict:
    """What nnU-Net's planner writes for its own UNet, as it is handed to the class."""
    dims = len(STRIDES[plan][0][0])
    conv, norm = (torch.nn.Conv2d, torch.nn.InstanceNorm2d) if dims == 2 else (torch.nn.Conv3d, torch.nn.InstanceNorm3d)
    return {
        "n_stages": 4, "features_per_stage": FEATURES, "conv_op": conv, "kernel_sizes": [[3] * dims] * 4,
        "strides": STRIDES[plan][0], "n_conv_per_stage": [2] * 4, "n_conv_per_stage_decoder": [2] * 3,
        "conv_bias": True, "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None,
        "dropout_op_kwargs": None, "nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, **change,
    }  # fmt: skip


def planned(name: str, plan: str, deep_supervision: bool, **change) -> torch.nn.Module:
    """The network as nnU-Net builds it."""
    kind = pydoc.locate(f"monai_scaleequiv.nnunet.Planned{name}")
    small = {"kernel_size": 7} if name == "RepUXNet" else {"filters": {"scales": (1.0, 0.8)}}
    options = arch_kwargs(plan, **small | change)
    return kind(input_channels=2, num_classes=3, **options, deep_supervision=deep_supervision)


@pytest.mark.parametrize("plan", STRIDES)
@pytest.mark.parametrize("name", ["SEUNet", "RepUXNet"])
def test_logits_have_the_sizes_of_nnunets_targets(name, plan):
    strides, patch = STRIDES[plan]
    net, x = planned(name, plan, True), torch.rand(2, 2, *patch)
    scales = 1 / np.cumprod(np.array(strides), axis=0)[:-1]  # as nnUNetTrainer has it
    expected = [(2, 3, *(round(n * s) for n, s in zip(patch, scale, strict=True))) for scale in scales]
    for training in (True, False):  # validation asks for all of them too
        assert [tuple(y.shape) for y in net.train(training)(x)] == expected
    sum(y.square().mean() for y in net.train()(x)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", ["SEUNet", "RepUXNet"])
def test_the_switch_turns_deep_supervision_off(name):
    net, x = planned(name, "thick slices", True).eval(), torch.rand(1, 2, 6, 32, 24)
    first = net(x)[0]
    net.decoder.deep_supervision = False
    torch.testing.assert_close(net(x), first)
    # Inference builds the network without, for weights that were trained with it.
    other = planned(name, "thick slices", False).eval()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), first)
    assert other.train()(x).shape == first.shape


def test_weights_of_a_plan_are_those_of_the_network():
    net = planned("SEUNet", "isotropic", False).eval()
    plain = SEUNet(3, 2, 3, (4, 4, 8, 8, 8), (1, 2, 2, 2), norm=("INSTANCE", {"affine": True}), dsdepth=3,
                   filters={"scales": (1.0, 0.8)}).eval()  # fmt: skip
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 2, 16, 24, 16)
    torch.testing.assert_close(plain(x), net(x))


def test_arguments_of_the_networks_can_be_given_and_unknown_ones_are_refused():
    assert planned("SEUNet", "2d", True, projection="max").projection.mode == "max"
    assert planned("RepUXNet", "2d", True, depths=[1, 1, 1]).depths == [1, 1, 1]
    for name in ("SEUNet", "RepUXNet"):
        with pytest.raises(TypeError, match="unexpected keyword argument 'n_heads'"):
            planned(name, "2d", True, n_heads=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SEUNet", "RepUXNet"])
def test_compiled_graphs_follow_the_switch(name):
    net, x = planned(name, "2d", True).eval(), torch.rand(1, 2, 32, 20)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))
        compiled._orig_mod.decoder.deep_supervision = False  # as nnU-Net does it
        torch.testing.assert_close(compiled(x), net(x))


def test_pyramid_is_built_around_the_plans_network():
    pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install '.[nnunet]'")
    with pytest.raises(ValueError, match="nnUNetTrainerNoDeepSupervision"):
        planned("Pyramid", "isotropic", True)
    for plan, (_, patch) in STRIDES.items():
        kind = pydoc.locate("monai_scaleequiv.nnunet.PlannedPyramid")
        net = kind(input_channels=2, num_classes=3, **arch_kwargs(plan), deep_supervision=False)
        assert isinstance(net, ScalePyramid)
        assert net(torch.rand(2, 2, *patch)).shape == (2, 3, *patch)
        net.decoder.deep_supervision = False


def test_nnunet_finds_the_trainers_and_misses_others(monkeypatch):
    pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install '.[nnunet]'")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    for name in NAMES:
        assert issubclass(recursive_find_trainer_class_by_name(f"nnUNetTrainer{name}"), nnUNetTrainer)
    with pytest.raises(RuntimeError, match="nnUNet_extTrainer"):
        recursive_find_trainer_class_by_name("nnUNetTrainerUNet")


# nnU-Net's own commands, as the README has them. A training has 250 iterations an epoch, so these are shorter.

SHORT = """
import torch
from monai_scaleequiv.nnunet.trainers import scaleequiv_trainers as ours
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, {iterations}, 1

class ShortUNet(Short, nnUNetTrainer): ...
class ShortSEUNet(Short, ours.nnUNetTrainerSEUNet): ...
class ShortRepUXNet(Short, ours.nnUNetTrainerRepUXNet): ...
class ShortScalePyramid(Short, ours.nnUNetTrainerScalePyramid): ...
"""


def readme_line(start: str) -> str:
    """The command of the README that starts so."""
    (line,) = re.findall(rf"^({re.escape(start)}.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    return line


class Workplace:
    """A folder with nnU-Net's three, and its commands run in it."""

    def __init__(self, folder: Path, iterations: int = 2) -> None:
        self.folder = folder
        (folder / "short").mkdir(parents=True)
        (folder / "short" / "short_trainers.py").write_text(SHORT.format(iterations=iterations), encoding="utf-8")
        paths = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
        workers = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        self.env = {**os.environ, **paths, **workers, "PYTHONPATH": str(ROOT), "SHORT": str(folder / "short")}
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.env['PATH']}"

    def run(self, *commands: str) -> str:
        script = "\n".join(["set -e", readme_line("export nnUNet_extTrainer"), "nnUNet_extTrainer+=:$SHORT", *commands])
        done = subprocess.run(["bash", "-c", script], env=self.env, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Five phantoms, planned and preprocessed by nnU-Net, a sixth to segment."""
    pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install '.[nnunet]'")
    place = Workplace(tmp_path_factory.mktemp("nnunet"))
    task = make_phantom_dataset(place.folder / "Task004_Phantom", cases=6, size=(16, 24, 16)).parent
    (task / "imagesTs").mkdir()
    (task / "imagesTr" / "phantom_005.nii.gz").rename(task / "imagesTs" / "phantom_005.nii.gz")
    (task / "labelsTr" / "phantom_005.nii.gz").rename(task / "truth.nii.gz")
    description = task / "dataset.json"
    description.write_text(description.read_text(encoding="utf-8").replace('"numTraining": 6', '"numTraining": 5'))
    place.run(f"nnUNetv2_convert_MSD_dataset -i {task} -np 1", "nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -np 1")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "plans", "head"),  # a parameter that tells whose network it is
    [
        ("UNet", "nnUNetPlans", "decoder.seg_layers.0.weight"),
        ("SEUNet", "nnUNetPlans", "ups.1.head.layer.weight"),
        ("RepUXNet", "nnUNetPlans", "coarse_heads.0.conv.conv.weight"),
        ("ScalePyramid", "nnUNetPlans", "network.decoder.seg_layers.0.weight"),
        ("UNet", "SEUNetPlans", "ups.1.head.layer.weight"),
    ],
)
def test_train_and_predict(workplace, trainer, plans, head):
    chosen = f"-tr Short{trainer} -p {plans}"
    if plans != "nnUNetPlans":
        workplace.run(f"cd $nnUNet_preprocessed/Dataset004_Phantom && {readme_line('sed')}")
    workplace.run(f"nnUNetv2_train 4 3d_fullres 0 {chosen} -device cpu")
    out = workplace.folder / f"labels_{trainer}_{plans}"
    images = workplace.folder / "raw" / "Dataset004_Phantom" / "imagesTs"
    workplace.run(f"nnUNetv2_predict -d 4 -c 3d_fullres -f 0 -i {images} -o {out} {chosen} -device cpu -npp 1 -nps 1")
    found, truth = nib.load(out / "phantom_005.nii.gz"), nib.load(workplace.folder / "Task004_Phantom" / "truth.nii.gz")
    assert found.shape == truth.shape
    np.testing.assert_allclose(found.affine, truth.affine)
    assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}
    (fold,) = (workplace.folder / "results" / "Dataset004_Phantom").glob(f"Short{trainer}__{plans}__*/fold_0")
    assert head in list(torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"])
