"""What the benchmarks compare with, and that they run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import brats_folds, compare, gpu, gpu_checks, scaling, speed, table
from benchmarks.measuring import Results, Side, difference, gradients
from benchmarks.published_path import PublishedPath
from monai_scaleequiv.data import brats_label_values, check_dataset, split_datalist
from monai_scaleequiv.published import build_seunet
from tests.conftest import ROOT
from tests.task_phantoms import make_brats

PUBLISHED = {
    "in_channels": 2, "out_channels": 1, "channels": [2, 4, 4], "strides": [2, 2], "kernel_size": 5,
    "effective_size": 3, "basis_type": "multi", "scales": [1.0, 0.9, 0.81], "num_res_units": 2, "act": "silu",
}  # fmt: skip


@pytest.mark.parametrize(("scale_size", "reduction"), [(1, "avg"), (2, "max"), (3, "avg")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_published_path_computes_what_the_published_network_computes(scale_size, reduction, dtype, tolerance):
    net = build_seunet({**PUBLISHED, "scale_size": scale_size, "reduction": reduction}).to(dtype)
    slow = PublishedPath(net)
    assert slow.network.state_dict().keys() == net.state_dict().keys()
    x = torch.randn(2, 2, 21, 13, 13, dtype=dtype)
    (y, grad), (expected, expected_grad) = gradients(Side(slow, x)), gradients(Side(net, x))
    assert difference(y, expected) < tolerance
    assert difference(grad, expected_grad) < 10 * tolerance
    net.eval()
    slow.eval()
    assert difference(slow(x), net(x)) < tolerance


def test_published_path_is_not_that_of_other_modules():
    net = build_seunet({**PUBLISHED, "dropout": 0.1})
    with pytest.raises(TypeError, match="got ScaleDropout"):
        PublishedPath(net)(torch.randn(1, 2, 13, 13, 13))


@pytest.mark.slow
def test_small_run_of_the_gpu_script_on_the_cpu(tmp_path):
    gpu.main(str(tmp_path), data=str(tmp_path / "none"), smoke=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row for row in rows if "error" in row] == []
    checks = [row for row in rows if "/ check" in row["name"]]
    assert len(checks) >= 60
    assert all(row["passed"] for row in checks)
    skipped = {row["skipped"] for row in rows if "skipped" in row}
    assert skipped == {"CUDA graphs need a GPU", f"needs the data set at {tmp_path / 'none'}"}
    same = [row for row in rows if "outputs" in row and "build_seunet" in row["name"] and "unit" in row]
    assert same
    assert all(row["outputs"] < 1e-5 and row["gradients"] < 1e-4 for row in same)


def test_failures_of_a_gpu_run_are_rows_and_the_exit_status(tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu.gpu_checks, "modules", lambda small: [("net", failing, (1, 1, 5, 5, 5))])
    with pytest.raises(SystemExit, match="3 rows failed"):
        gpu.main(str(tmp_path), parts="check,graphs", smoke=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["error"] for row in rows[:3]] == ["RuntimeError: no kernel image"] * 3
    assert len(rows) > 3
    gpu.main(str(tmp_path), parts="graphs", limit=-1, smoke=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["skipped"] for row in rows[3:]} == {"the time limit was reached"}


def test_no_check_passes_with_another_result(monkeypatch):
    monkeypatch.setattr(gpu_checks, "difference", lambda a, b: 0.2)
    assert not gpu_checks.checked(lambda: torch.nn.Conv3d(1, 1, 1), (1, 1, 2, 2, 2), "bfloat16", "cpu")["passed"]


@pytest.mark.slow
def test_rows_of_the_speed_script_in_processes_of_their_own(tmp_path):
    rows = ["build_seunet / scale_size 1 / 13^3 / forward", "SEUNet published / scale_size 1 / 13^3 / memory of a step"]
    speed.main(str(tmp_path), rows=",".join(rows), smoke=True)
    stored = (tmp_path / "speed.json").read_text()
    forward, memory = json.loads(stored)["rows"]
    assert [forward["name"], memory["name"]] == rows
    assert forward["outputs"] < 1e-5
    assert forward["gradients"] < 1e-4
    assert forward["gain"] == pytest.approx(forward["baseline"] / forward["ours"], rel=1e-3)
    assert forward.keys() >= {"threads", "torch", "load", "command"}
    assert memory["unit"] == "MiB"
    speed.main(str(tmp_path), rows=rows, smoke=True)
    assert (tmp_path / "speed.json").read_text() == stored


def test_rows_of_two_machines_are_not_mixed(tmp_path):
    Results(tmp_path / "gpu.json", card="one").add({"name": "a", "ours": 1.0})
    assert "a" in Results(tmp_path / "gpu.json", card="one")
    with pytest.raises(SystemExit, match=r"got those of \{'card': 'one'\}"):
        Results(tmp_path / "gpu.json", card="two")


def test_exponents_are_slopes_of_the_logarithms():
    rows = [{"sweep": "edge", "edge": n, "forward": n**3, "step": 2 * n**6, "memory": 5.0} for n in (8, 16, 64)]
    for name in ("scales", "channels", "scale_size"):
        rows += [{"sweep": name, name: n, "forward": n, "step": n**2, "memory": n**0.5} for n in (1, 2, 5)]
    found = scaling.exponents(rows)
    assert found["edge"] == pytest.approx({"forward": 1, "step": 2, "memory": 0}, abs=1e-3)
    assert found["channels"] == pytest.approx({"forward": 1, "step": 2, "memory": 0.5}, abs=1e-3)


def write_rows(folder, seconds, baseline=1.0, name="a / step"):
    folder.mkdir(exist_ok=True)
    rows = [{"name": name, "unit": "s", "ours": seconds, "baseline": baseline}, {"name": "skipped", "skipped": "why"}]
    (folder / "speed.json").write_text(json.dumps({"rows": rows}))
    return str(folder)


def test_compare_finds_a_regression(tmp_path, capsys):
    old, new = write_rows(tmp_path / "old", 0.5), write_rows(tmp_path / "new", 0.6)
    with pytest.raises(SystemExit) as stop:
        compare.main(old, new)
    assert stop.value.code == 1
    assert "1.20  0.5 -> 0.6 s  a / step  REGRESSION" in capsys.readouterr().out


def test_compare_passes_without_a_regression(tmp_path, capsys):
    old, new = write_rows(tmp_path / "old", 0.5), write_rows(tmp_path / "new", 0.6, baseline=1.3)
    compare.main(old, new, relative=True)  # the machine was slower, our share is not
    compare.main(old, new, tolerance=0.25)
    compare.main(f"{old}/speed.json", f"{old}/speed.json")
    assert "REGRESSION" not in capsys.readouterr().out


def test_compare_needs_rows_in_common(tmp_path):
    old, new = write_rows(tmp_path / "old", 0.5), write_rows(tmp_path / "new", 0.5, name="b / step")
    with pytest.raises(SystemExit, match="none in common"):
        compare.main(old, new)


def test_commands_of_the_benchmarks():
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks", "compare", "no_such.json", "none.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 1
    assert "no_such.json" in shown.stderr


def test_table_of_results(tmp_path, capsys):
    table.main(f"{write_rows(tmp_path / 'results', 0.5)}/speed.json")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| a / step | 1000 ms | 500 ms | - | - |",
        "| skipped | - | why | - | - |",
    ]


def test_folds_of_brats_hold_out_every_case_once(tmp_path):
    """The list that the bundle reads splits as the script says; the first fold is the bundle's own split."""
    data = make_brats(tmp_path / "data", tmp_path / "source")
    brats_folds.listed(str(data), tmp_path / "cases")
    parts = brats_folds.parts_of(str(data))
    found = [split_datalist(tmp_path / "cases", fold=fold) for fold in range(brats_folds.FOLDS)]

    def names(cases):
        return sorted(Path(case["label"]).parent.name for case in cases)

    training, held_out = split_datalist(data)
    every = names(training + held_out)
    assert [names(part) for _, part in found] == parts
    assert parts[0] == names(held_out)
    assert sorted(name for part in parts for name in part) == every
    assert all(names(one + other) == every for one, other in found)
    check_dataset(tmp_path / "cases", num_classes=[0, *brats_label_values(tmp_path / "cases")]).raise_errors()
