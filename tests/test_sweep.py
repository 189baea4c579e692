"""Dice against the size of the anatomy: what is measured, what is written, and how the commands are called."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import bootstrap

from monai_scaleequiv.cli import main
from monai_scaleequiv.data import case_sizes, load_weights, write_record
from monai_scaleequiv.handlers._sweep_report import FILES, _draw, _save_plot, mean_and_interval
from monai_scaleequiv.inferers import RescaledInferer
from tests.bundle_runs import error_of, files, metrics, per_case, rows, run, write_probe

CONFIGS = ("train", "evaluate", "sweep")
METRICS = ("val_mean_dice", "val_hd95")
SEEN = [f"phantom_{i:03d}.nii.gz" for i in range(3)]  # two of the five are left to measure


@pytest.fixture(scope="module")
def options(phantoms, tmp_path_factory):
    """A network that tells classes by brightness, and data of which it has seen three."""
    probe = write_probe(tmp_path_factory.mktemp("probe") / "probe.pt")
    seen = case_sizes([{"image": str(phantoms / "imagesTr" / name)} for name in SEEN])
    write_record(Path(probe["ckpt_path"]).with_suffix(".json"), {"training_cases": seen})
    return {**probe, "dataset_dir": str(phantoms)}


@pytest.fixture(scope="module")
def swept(bundle, options, tmp_path_factory):
    output = tmp_path_factory.mktemp("swept") / "out"
    run(bundle, *CONFIGS, output_dir=output, scales=[1.5, 0.6, 1], thickness=[2], **options)
    return output


def _table(output):
    """Values of all metrics and classes by condition, factor and name of the case."""
    header, *lines = rows(output / "sweep.csv")
    assert header == ["condition", "factor", "case", *(f"{metric}_{i}" for metric in METRICS for i in (1, 2))]
    return {(line[0], float(line[1]), Path(line[2]).name): [float(x) for x in line[3:]] for line in lines}


def _arguments(options, output, *more):
    given = {"input": options["dataset_dir"], "output": output, "ckpt_path": options["ckpt_path"]}
    definition = json.dumps(options["network_def"])
    return ["sweep", *(f"--{k}={v}" for k, v in given.items()), f"--network_def={definition}", *more]


def test_table_has_every_condition_and_every_held_out_case(swept, phantoms):
    assert {path.name for path in swept.iterdir()} == set(FILES)
    pairs = [(kind, scale) for kind in ("scale", "oracle") for scale in (0.6, 1.0, 1.5)]
    pairs += [("thickness", 2.0), ("thickness oracle", 2.0)]
    cases = {path.name for path in (phantoms / "imagesTr").iterdir()} - set(SEEN)
    assert len(cases) == 2
    assert list(_table(swept)) == [(*pair, case) for pair in pairs for case in sorted(cases)]
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_scale_1_is_the_evaluation_and_its_oracle(bundle, swept, options, tmp_path):
    run(bundle, "train", "evaluate", output_dir=tmp_path, **options)
    table, means = _table(swept), metrics(tmp_path)
    dice, distance = (dict(per_case(tmp_path, metric)) for metric in METRICS)
    for case in dice:
        expected = [*dice[case][:2], *distance[case][:2]]
        assert table["scale", 1.0, case] == table["oracle", 1.0, case] == expected
    points = json.loads((swept / "sweep.json").read_text(encoding="utf-8"))["conditions"]
    (point,) = [point for point in points if (point["condition"], point["factor"]) == ("scale", 1.0)]
    assert {metric: point[metric]["mean"]["mean"] for metric in METRICS} == pytest.approx(means, abs=1e-5)


def _slow_resampled(volume, size, order):
    """Each voxel by itself: where its centre lies in the volume."""
    steps = [n / m for n, m in zip(volume.shape, size, strict=True)]
    centres = [(np.arange(m) + 0.5) * step - 0.5 for m, step in zip(size, steps, strict=True)]
    if order == 3:
        volume = gaussian_filter(volume, [0.5 * np.sqrt(max(step**2 - 1, 0)) for step in steps])
    grid = np.meshgrid(*centres, indexing="ij")
    return map_coordinates(volume, grid, order=order, mode="reflect" if order == 3 else "nearest")


def test_figures_agree_with_a_slow_computation(swept, options, phantoms):
    """From the files on, without MONAI: normalise, rescale, the network, back, the likeliest class, Dice."""
    layer = ConfigParser({"net": options["network_def"]}).get_parsed_content("net")
    load_weights(layer, options["ckpt_path"])
    factors = {("scale", 0.6): (0.6,) * 3, ("scale", 1.5): (1.5,) * 3, ("thickness", 2.0): (1, 1, 0.5)}
    table = _table(swept)
    for (condition, factor, case), found in table.items():
        image, label = (nib.load(phantoms / f"{kind}Tr" / case).get_fdata() for kind in ("images", "labels"))
        image = (image - image.mean()) / image.std()
        oracle = condition.endswith("oracle")
        base = condition.replace("thickness oracle", "thickness").replace("oracle", "scale")
        if factor == 1:
            continue
        size = [round(n * f) for n, f in zip(image.shape, factors[base, factor], strict=True)]
        seen = _slow_resampled(image, size, 3)
        seen = _slow_resampled(seen, image.shape, 3) if oracle else seen
        with torch.no_grad():
            logits = layer(torch.from_numpy(seen).float()[None, None])[0].numpy()
        prediction = np.stack([_slow_resampled(x, image.shape, 1) for x in logits]).argmax(0)
        dice = [
            2 * ((prediction == c) & (label == c)).sum() / ((prediction == c).sum() + (label == c).sum())
            for c in (1, 2)
        ]
        np.testing.assert_allclose(found[:2], dice, atol=2e-4, err_msg=f"{condition} {factor}")
    assert len({tuple(values[:2]) for values in table.values()}) > 10  # the sizes do differ


def test_command_gives_the_same_for_a_bundle_without_a_sweep(bundle, swept, options, tmp_path, capsys):
    mine = Path(shutil.copytree(bundle, tmp_path / "mine"))
    (mine / "configs" / "sweep.json").unlink()
    more = ("--scales=[0.6,1,1.5]", "--thickness=2", f"--bundle={mine}", "--device=cpu")
    assert main(_arguments(options, tmp_path / "out", *more)) == 0
    assert (tmp_path / "out" / "sweep.csv").read_bytes() == (swept / "sweep.csv").read_bytes()
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    means = {(line[0], line[1]): line[2] for line in lines if line and line[0] in ("scale", "oracle")}
    assert set(means) == {(kind, scale) for kind in ("scale", "oracle") for scale in ("0.6", "1", "1.5")}
    assert all(str(tmp_path / "out" / name) in shown for name in FILES)
    assert [line[-2:] for line in lines if line[:1] == ["val_mean_dice"]] == [["body", "core"]]


def test_bundle_that_the_sweep_does_not_fit(options, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    ids = {"bundle_root": "", "dataset_dir": "", "output_dir": ""}
    for name in ("train", "evaluate"):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(ids))
    assert main(_arguments(options, tmp_path / "out", f"--bundle={tmp_path}")) == 1
    error = f"error: {tmp_path}: train.json, evaluate.json, sweep.json do not fit together (query key: validate); give"
    assert capsys.readouterr().err.startswith(error)


def test_earlier_results_are_kept(bundle, options, tmp_path):
    given = {**options, "output_dir": tmp_path, "scales": [1]}
    for name in FILES:
        (tmp_path / name).write_bytes(b"mine")
        message = error_of(run, bundle, *CONFIGS, **given, kind=FileExistsError)
        assert message.startswith(f"output_dir: {tmp_path / name} exists already; choose another folder, or set")
        assert files(tmp_path) == {tmp_path / name: b"mine"}
        (tmp_path / name).unlink()
    (tmp_path / FILES[0]).write_bytes(b"mine")
    run(bundle, *CONFIGS, **given, overwrite=True)
    assert len(rows(tmp_path / FILES[0])) == 5


def test_names_of_the_classes(bundle, swept, options, tmp_path):
    """Those of the data set; given ones, as regions have, in their place; numbers where there are too few."""
    run(bundle, *CONFIGS, output_dir=tmp_path, scales=[1], **{"sweep#names": ["region"]}, **options)
    for folder, expected in ((swept, ["body", "core"]), (tmp_path, ["region", "class 2"])):
        summary = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        assert summary["classes"] == dict(zip("12", expected, strict=True))
        axes = Figure().subplots()
        _draw(axes, summary, "scale", "oracle")
        assert axes.get_legend_handles_labels()[1][:3] == [*expected, "mean"]


def test_legend_fits_into_the_plot(swept, tmp_path, monkeypatch):
    """However long the names are."""
    summary, drawn = json.loads((swept / "sweep.json").read_text(encoding="utf-8")), []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    for names in (("a", "b"), ("enhancing tumour", "necrotic core and oedema around it")):
        summary["classes"] = dict(zip("12", names, strict=True))
        _save_plot(
            {**summary, "conditions": [c for c in summary["conditions"] if "thick" not in c["condition"]]}, tmp_path
        )
        (legend,) = drawn[-1].legends
        assert legend.get_window_extent().width <= drawn[-1].bbox.width
        assert [text.get_text() for text in legend.get_texts()][:2] == list(names)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--scales=[1,0]", "scales: expected finite numbers above 0, got [1, 0]; give some such as [1, 2]."),
        ("--scales=-1", "scales: expected finite numbers above 0, got [-1]; give some such as [1, 2]."),
        ("--scales=[NaN]", "scales: expected finite numbers above 0, got [nan]; give some such as [1, 2]."),
        ("--scales=[Infinity]", "scales: expected finite numbers above 0, got [inf]; give some such as [1, 2]."),
        ('--scales=["1"]', "scales: expected finite numbers above 0, got ['1']; give some such as [1, 2]."),
        ("--scales=[]", "scales: expected at least one number, got none; give sizes such as [0.5, 1, 2]."),
        ("--scales=large", "--scales: expected a list such as [0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2], got 'large'"),
        ("--thickness=[0]", "thickness: expected finite numbers above 0, got [0]; give some such as [1, 2]."),
    ],
)
def test_bad_factors_take_one_line(options, tmp_path, capsys, option, error):
    assert main(_arguments(options, tmp_path / "out", option)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_voxel_size_stays_and_any_axes_do():
    """To a network that reads the voxel size the anatomy is larger."""
    seen = []

    def inferer(inputs, network):
        seen.append(inputs)
        return network(inputs)

    image = MetaTensor(torch.rand(2, 3, 6, 8, 9), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    answer = RescaledInferer(inferer, scale=2, thickness=3)(image, lambda x: x[:, :2])
    assert answer.shape == (2, 2, 6, 8, 9)
    assert seen[0].shape == (2, 3, 12, 16, 6)
    assert seen[0].pixdim.tolist() == [1, 2, 3]
    assert RescaledInferer(inferer, scale=0.5)(torch.rand(1, 1, 6, 8), lambda x: x).shape == (1, 1, 6, 8)
    assert seen[1].shape == (1, 1, 3, 4)
    smooth = torch.linspace(0, 3, 24).cos().expand(1, 1, 24, 24)
    torch.testing.assert_close(
        RescaledInferer(inferer, 0.5, oracle=True)(smooth, lambda x: x), smooth, atol=0.03, rtol=0
    )
    with pytest.raises(ValueError, match="expected a tensor from it, got tuple"):
        RescaledInferer(lambda inputs, network: (inputs,), 2)(image, None)
    with pytest.raises(ValueError, match="scale: expected a finite number above 0, got nan"):
        RescaledInferer(inferer, float("nan"))


def test_means_leave_out_what_is_not_there_and_intervals_are_scipys():
    values = np.random.default_rng(1).random((30, 2))
    found = mean_and_interval(values)
    assert found["2"]["mean"] == pytest.approx(values[:, 1].mean())
    assert found["mean"]["mean"] == pytest.approx(values.mean())
    expected = bootstrap((values[:, 0],), np.mean, method="percentile", rng=0).confidence_interval
    assert [found["1"]["low"], found["1"]["high"]] == pytest.approx(list(expected), abs=0.01)
    found = mean_and_interval([[0.5, np.nan], [np.inf, np.nan], [0.7, np.nan]])
    assert (found["1"]["mean"], found["1"]["cases"]) == (pytest.approx(0.6), 2)
    assert found["2"] == {"mean": None, "low": None, "high": None, "cases": 0}
    assert found["mean"]["cases"] == 2


def test_columns_of_the_table_are_read_back(swept):
    """As a spreadsheet or pandas does: by name."""
    with (swept / "sweep.csv").open(newline="", encoding="utf-8") as file:
        dice = [float(row["val_mean_dice_1"]) for row in csv.DictReader(file) if row["condition"] == "scale"]
    assert len(dice) == 6
    assert all(0 <= value <= 1 for value in dice)
