"""What a training and an evaluation take: lists, folds, held-out cases; weights and the record beside them; errors."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, partition_dataset
from monai.networks.nets import SegResNet, UNet
from monai.transforms import Compose, SaveImaged
from torch import nn

from monai_scaleequiv import RepUXNet, ScalePyramid, SEUNet
from monai_scaleequiv.data import (
    InputGridWriter,
    case_sizes,
    check_dataset,
    compare_records,
    definition_of,
    held_out,
    load_datalist,
    load_weights,
    one_line,
    read_record,
    root_cause,
    split_datalist,
    write_record,
)

from .conftest import shared
from .fault_files import change_list, write_labels, write_task, write_volume


def names(data):
    return [Path(np.atleast_1d(item["image"])[0]).name.split(".")[0] for item in data]


def write_raw(folder, cases="abcde", channels=2):
    """An nnU-Net v2 raw folder."""
    for index, name in enumerate(cases):
        for channel in range(channels):
            write_volume(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        write_labels(folder / "labelsTr" / f"{name}.nii.gz", *[0] * index, 1)
    write_volume(folder / "imagesTs" / "t_0000.nii.gz")
    write_volume(folder / "imagesTs" / "t_0001.nii.gz")
    content = {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8-sig")  # with a byte-order mark
    return folder


# Lists.


def test_raw_folder_of_nnunet(tmp_path):
    raw = write_raw(tmp_path / "raw")
    report = check_dataset(raw)
    assert (report.lines, report.cases, report.classes) == ([], 6, {0: "background", 1: "organ"})
    data = load_datalist(raw)
    assert [os.path.relpath(path, raw) for path in data[1]["image"]] == [f"imagesTr/b_000{c}.nii.gz" for c in range(2)]
    assert os.path.relpath(data[1]["label"], raw) == "labelsTr/b.nii.gz"
    assert names(load_datalist(raw, "test")) == ["t_0000"]
    training, validation = split_datalist(raw)
    assert sorted(names(training) + names(validation)) == [f"{name}_0000" for name in "abcde"]
    (raw / "imagesTr" / "c_0001.nii.gz").unlink()
    assert "c_0000.nii.gz: expected 2 files, one per channel, got 1; " in check_dataset(raw).errors[0]
    for spoil, error in (
        (lambda: None, "c_0000.nii.gz: expected 2 files, one per channel, got 1; restore"),
        (lambda: (raw / "labelsTr" / "c.nii.gz").unlink(), "c_0000.nii.gz: expected a label map, got none named c in"),
    ):
        spoil()
        with pytest.raises(ValueError, match=error):
            load_datalist(raw)


def test_split_is_what_the_list_says(tmp_path):
    task = write_task(tmp_path / "task", cases=6)
    drawn = split_datalist(task)
    assert drawn == tuple(partition_dataset(load_datalist(task), ratios=[0.8, 0.2], shuffle=True, seed=0))
    change_list(task, lambda t: [entry.update(fold=index % 3) for index, entry in enumerate(t["training"])])
    training, validation = split_datalist(task, fold=2)
    assert (names(training), names(validation)) == (["case_0", "case_1", "case_3", "case_4"], ["case_2", "case_5"])
    with pytest.raises(ValueError, match=r"^fold: expected one of 0, 1, 2, got 3; choose"):
        split_datalist(task, fold=3)
    change_list(task, lambda t: t.update(validation=[t["training"].pop(), t["training"].pop(0)]))
    training, validation = split_datalist(task, fold=2)
    assert (names(training), names(validation)) == (["case_1", "case_2", "case_3", "case_4"], ["case_5", "case_0"])
    assert names(load_datalist(task, "validation")) == ["case_5", "case_0"]


def test_too_few_cases_and_cases_without_label_map(tmp_path):
    for cases in range(3):
        task = write_task(tmp_path / str(cases), cases=cases)
        with pytest.raises(ValueError, match=r"dataset.json: expected labelled cases to train on and to validate on"):
            split_datalist(task)
    task = change_list(write_task(tmp_path / "task"), lambda t: t["training"][1].pop("label"))
    with pytest.raises(ValueError, match=r"case_1.nii.gz: expected a label map, got none at training\[1\]"):
        split_datalist(task)
    with pytest.raises(ValueError, match="expected cases under 'test', got none; name another list"):
        load_datalist(task, "test")


def test_hippocampus_is_split_as_it_was():
    source = shared("data", "Task04_Hippocampus")
    data = load_datalist(source)
    drawn = partition_dataset(data, ratios=[0.8, 0.2], shuffle=True, seed=0)
    assert split_datalist(source) == (drawn[0], drawn[1])
    assert [len(part) for part in drawn] == [166, 42]


def test_evaluation_measures_what_the_training_did_not_see(tmp_path):
    task, weights = write_task(tmp_path / "task", cases=6), tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    with pytest.warns(
        UserWarning, match="measures 1 of 6 labelled cases; without a record of the training of .*model.pt"
    ):
        assert held_out(task, weights) == split_datalist(task)[1]
    write_record(weights.with_suffix(".json"), {"training_cases": case_sizes(load_datalist(task)[:2])})
    moved = tmp_path / "moved"
    shutil.copytree(task, moved)
    write_volume(moved / "imagesTr" / "case_1.nii.gz", shape=(7, 5, 4))  # of the same name and another size
    with pytest.warns(UserWarning, match=r"measures 5 of 6 labelled cases; the training of .*model.pt saw the others"):
        assert names(held_out(moved, weights)) == [f"case_{case}" for case in range(1, 6)]
    fresh = write_raw(tmp_path / "fresh")
    assert len(held_out(fresh, weights)) == 5  # all, without a warning
    write_record(weights.with_suffix(".json"), {"training_cases": case_sizes(load_datalist(task))})
    with pytest.raises(ValueError, match="expected cases that the training did not see, got none"):
        held_out(task, weights)


# The record.


def test_definition_of_networks():
    unet = UNet(2, 1, 3, channels=(4, 8), strides=(2,), act="RELU")
    found = definition_of(nn.DataParallel(unet))
    assert found["_target_"] == "UNet"
    assert (found["in_channels"], found["channels"], found["strides"], found["act"]) == (1, [4, 8], [2], "RELU")
    assert json.loads(json.dumps(found)) == found
    seunet = definition_of(SEUNet(2, 1, 2, (4, 8), (2,), filters={"scales": (1.0, 0.9), "max_order": 1}))
    assert seunet["filters"]["scales"] == [1.0, 0.9]
    compare_records({"network_def": seunet}, {"network_def": json.loads(json.dumps(seunet))}, "model.pt")
    checkpointed = SEUNet(2, 1, 2, (4, 8), (2,), filters={"scales": (1.0, 0.9), "max_order": 1}, use_checkpoint=True)
    assert definition_of(checkpointed) == seunet  # the same answers, at another cost


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: ScalePyramid(net, (1, 2), spatial_dims=2)])
def test_definition_of_a_network_that_does_not_keep_its_output_channels(wrap):
    net = wrap(SegResNet(2, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)))
    assert "'out_channels'" not in str(definition_of(net))
    made = ConfigParser({"net": json.loads(json.dumps(definition_of(net, 3)))}).get_parsed_content("net")
    made.load_state_dict(net.state_dict())
    assert definition_of(UNet(2, 1, 2, channels=(4, 8), strides=(2,)), 3)["out_channels"] == 2  # its own


def test_records_are_compared_where_both_have_a_value(tmp_path):
    recorded = {
        "spacing": (1, 1, 1),
        "num_classes": 3,
        "training_cases": {"a": 1},
        "network_def": {"filters": {"sigma": 1.0}},
    }
    assert read_record(tmp_path / "model.pt") is None
    write_record(tmp_path / "model.json", recorded)
    found = read_record(tmp_path / "checkpoint_epoch=3.pt")
    assert found == json.loads(json.dumps(recorded))
    same = {"spacing": [1.0, 1, 1], "other": 3, "training_cases": {}, "network_def": {"filters": {"max_order": 2}}}
    compare_records(found, same, "model.pt")
    for other, error in (
        ({"num_classes": 4}, "model.pt: expected num_classes=3 as in its training, got 4; "),
        ({"spacing": [1, 1, 2]}, r"model.pt: expected spacing=\[1, 1, 1\] as in its training, got \[1, 1, 2\]; "),
        (
            {"network_def": {"filters": {"sigma": 0.9}}},
            "expected network_def#filters#sigma=1.0 as in its training, got 0.9",
        ),
    ):
        with pytest.raises(ValueError, match=error):
            compare_records(found, other, "model.pt")
    for content in ("[1]", "{", "\xff"):
        (tmp_path / "model.json").write_text(content, encoding="latin1")
        with pytest.raises(ValueError, match=r"model.json: expected the record of a training as JSON"):
            read_record(tmp_path / "model.pt")


# Weights.


def wrapped(state, prefix, *keys):
    found = {prefix + name: value for name, value in state.items()}
    for key in reversed(keys):
        found = {key: found, "epoch": 3}
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.", "module.model.", "student.encoder."])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("network",), ("model",), ("net",), ("network", "state_dict")])
def test_weights_under_keys_and_prefixes(tmp_path, prefix, keys):
    source, target = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)) for _ in range(2))
    torch.save(wrapped(source.state_dict(), prefix, *keys), tmp_path / "model.pt")
    assert load_weights(nn.DataParallel(target), tmp_path / "model.pt", map_location="cpu") == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weights_beside_others(tmp_path):
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    state = wrapped(other.state_dict(), "net.") | {"loss.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    load_weights(layer, tmp_path / "model.pt")
    assert torch.equal(layer.weight, other.weight)
    torch.save(state | wrapped(other.state_dict(), "teacher."), tmp_path / "model.pt")  # which of the two?
    with pytest.raises(
        ValueError, match=r"got others \(2 missing: weight, bias; 5 unknown: net.weight, net.bias ...\)"
    ):
        load_weights(layer, tmp_path / "model.pt")


def test_weights_of_another_network(tmp_path):
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 1))
    torch.save(net.state_dict(), tmp_path / "model.pt")
    head = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 5, 1))
    before = [p.clone() for p in head.parameters()]
    with pytest.raises(
        ValueError, match=r"2 of another shape: 2.weight of \(3, 4, 1, 1, 1\) instead of \(5, 4, 1, 1, 1\)"
    ):
        load_weights(head, tmp_path / "model.pt")
    assert all(torch.equal(p, q) for p, q in zip(before, head.parameters(), strict=True))  # all or nothing
    assert load_weights(head, tmp_path / "model.pt", new_head=True) == ["2.weight", "2.bias"]
    assert torch.equal(head[0].weight, net[0].weight)
    assert torch.equal(head[2].weight, before[4])
    for other in (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 1)), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"model.pt: expected weights of this .*, got others") as raised:
            load_weights(other, tmp_path / "model.pt", new_head=True)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 400


def test_weights_under_the_head_of_a_unet(tmp_path):
    """Its last block is transposed convolution and residual unit, both between classes."""
    unet = partial(UNet, 2, 1, channels=(4, 8), strides=(2,), num_res_units=1)
    of_three = unet(out_channels=3)
    torch.save(of_three.state_dict(), tmp_path / "model.pt")
    torch.save(ScalePyramid(of_three, spatial_dims=2).state_dict(), tmp_path / "pyramid.pt")
    net = ScalePyramid(unet(out_channels=5), spatial_dims=2)
    kept = load_weights(net, tmp_path / "pyramid.pt", new_head=True)
    assert {name.rsplit(".", 1)[0] for name in kept} == {"network.model.2.0.conv", "network.model.2.1.conv.unit0.conv"}
    for options in ({"channels": (2, 8)}, {"channels": (4, 5)}, {"strides": (3,), "up_kernel_size": 5}):
        with pytest.raises(ValueError, match=r"of another shape: model"):
            load_weights(unet(out_channels=3, **options), tmp_path / "model.pt", new_head=True)
    other = UNet(2, 2, 5, channels=(4, 8), strides=(2,), num_res_units=1)
    with pytest.raises(ValueError, match=r"2 of another shape: model.0.conv.unit0.conv.weight"):
        load_weights(other, tmp_path / "model.pt", new_head=True)


def test_a_hidden_layer_with_as_many_channels_as_classes_is_no_head(tmp_path):
    repuxnet = partial(RepUXNet, 2, 1, depths=(1,), feature_size=(4,), kernel_size=3)
    torch.save(repuxnet(out_channels=3, hidden_size=8).state_dict(), tmp_path / "model.pt")
    assert load_weights(repuxnet(out_channels=5, hidden_size=8), tmp_path / "model.pt", new_head=True)
    with pytest.raises(ValueError, match=r"of another shape: stages"):
        load_weights(repuxnet(out_channels=5, hidden_size=5), tmp_path / "model.pt", new_head=True)


# Errors.


def test_a_full_disk_is_known_by_its_number(tmp_path):
    image = write_volume(tmp_path / "a.nii.gz")
    pred = MetaTensor(torch.zeros(1, 6, 5, 4), meta={"filename_or_obj": str(image)})
    save = Compose(SaveImaged("pred", output_dir=tmp_path / "out", print_log=False, writer=InputGridWriter))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nib, "save", fail)
        with pytest.raises(RuntimeError) as raised:
            save({"pred": pred})
    cause = root_cause(raised.value)
    assert (type(cause), cause.errno) == (OSError, errno.ENOSPC)
    full = "a_trans.nii.gz: expected a file that can be written, got No space left on device; make room."
    assert one_line(raised.value).endswith(full)
    save({"pred": pred})
    with pytest.raises(RuntimeError) as raised:
        save({"pred": pred})
    assert isinstance(root_cause(raised.value), FileExistsError)


class Failing:
    def __init__(self, error):
        self.error = error

    def __call__(self, item):
        raise self.error


BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that workers are out of shared memory."
MEMORY = "num_workers: expected room in the shared memory (/dev/shm) for"
ERRORS = [
    (ValueError("a.nii: expected 1, got 2; choose."), "a.nii: expected 1, got 2; choose."),
    (KeyError("image"), "KeyError: 'image'"),
    (RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)"), MEMORY),
    (RuntimeError(BUS), MEMORY),
]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_loader_in_one_line(workers):
    for error, text in ERRORS:
        with pytest.raises((ValueError, KeyError, RuntimeError)) as raised:
            list(DataLoader(Dataset([1], Failing(error)), num_workers=workers))
        assert one_line(raised.value).startswith(text)
        assert "\n" not in one_line(raised.value)
