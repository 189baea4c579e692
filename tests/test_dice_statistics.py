"""Statistics, tables and pictures of the Dice benchmark, on made-up runs."""

import itertools
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from benchmarks.dice import datasets, figures, overlays, panels, tables
from benchmarks.dice import statistics as stats
from benchmarks.dice.evaluating import SHORT, measure
from benchmarks.dice.networks import ENTRIES, once
from benchmarks.dice.protocol import protocol
from benchmarks.dice.zooming import resized

SCALES = ("0.5", "0.7", "1", "1.4", "2", "z2")


def fake_run(dataset="hippocampus", network="unet_aug", seed=0, fold=0, gain=0.0, conditions=SCALES, **changes):
    """A run whose cases have difficulties of their own, which all networks share, as in a real data set."""
    rng = np.random.default_rng([seed, fold, len(network), int(1000 * gain)])
    cases = [f"{dataset}_{i:03d}" for i in range(20)][fold::5] if dataset == "brats" else list("abcdefghijklmnop")
    difficulty = np.random.default_rng(7).normal(0, 0.05, 20)[: len(cases)]

    def dice(test):
        level = 0.8 + gain + rng.normal(0, 0.005)
        drop = [0.05 * abs(np.log2(float(c))) if c[0].isdigit() else 0.1 for c in conditions]
        both = {
            c: [[x + rng.normal(0, 0.01), x] for x in level + difficulty - loss]
            for c, loss in zip(conditions, drop, strict=True)
        }
        for rows in both.values():
            rows[0][1] = None
        return both

    tests = {t: {"dice": dice(t), "hd95": {stats.home(conditions): [[1.0, 2.0]] * len(cases)}} for t in ("own", "four")}
    run = {
        "dataset": dataset, "setting": "scale", "volumes": 25, "fold": fold, "seed": seed, "network": network,
        "match": "steps", "steps": 1000, "learning_rate": 0.005, "parameters": 282610, "gmacs": 12.3,
        "seconds_per_step": 0.004, "training_seconds": 4.1, "device": "cpu", "torch": "2.13", "cases": cases,
        "classes": ["first", "second"], "tests": tests,
    }  # fmt: skip
    return run | changes


def write(folder, runs):
    folder.mkdir(exist_ok=True)
    for i, run in enumerate(runs):
        (folder / f"{i}.json").write_text(json.dumps(run))
    return str(folder)


@pytest.fixture
def some_runs():
    """Two networks and three seeds on one data set; what the others lack, they lack."""
    kinds = [("unet_aug", 0.0), ("pyramid_aug", 0.04)]
    runs = [
        fake_run(network=n, gain=g, seed=s, volumes=v) for (n, g), s, v in itertools.product(kinds, range(3), (5, 25))
    ]
    runs += [fake_run(network=n, gain=g, match="time", steps=700 if g else 1400) for n, g in kinds]
    runs += [fake_run("brats", fold=fold, conditions=("1", "2")) for fold in range(3)]
    return [*runs, fake_run("acdc", setting="half", conditions=("own", "1.5625"))]


def test_mean_over_classes_is_that_of_a_loop_and_ignores_null():
    run = fake_run()
    found = stats.values([run], "unet_aug", "own")
    for (i, case), (k, condition) in itertools.product(enumerate(found.cases), enumerate(found.conditions)):
        row = [x for x in run["tests"]["own"]["dice"][condition][run["cases"].index(case)] if x is not None]
        assert found.table[0, i, k] == pytest.approx(sum(row) / len(row), abs=1e-12)
    assert found.conditions == ["0.5", "0.7", "1", "1.4", "2", "z2"]


def test_a_case_of_nulls_alone_counts_nowhere():
    run = fake_run()
    run["tests"]["own"]["dice"]["1"][3] = [None, None]
    found = stats.values([run], "unet_aug", "own").at(["1"])
    assert np.isnan(found.table[0, 3, 0])
    assert stats.estimate(found.table).mean[0] == pytest.approx(np.mean(np.delete(found.table[0, :, 0], 3)))
    assert np.isfinite(np.concatenate(stats.estimate(found.table))).all()


def test_folds_of_a_seed_are_joined_into_one_run_over_all_cases():
    runs = [fake_run("brats", seed=seed, fold=fold) for seed in range(2) for fold in range(5)]
    found = stats.values(runs, "unet_aug", "own")
    assert found.runs == [(0,), (1,)]
    assert found.table.shape == (2, 20, len(SCALES))
    assert np.isfinite(found.table).all()
    assert stats.values([fake_run(fold=f) for f in range(5)], "unet_aug", "own").table.shape == (5, 16, len(SCALES))


def test_folds_that_test_the_same_case_and_runs_that_are_there_twice_are_refused():
    runs = [fake_run("brats", fold=0), fake_run("brats", fold=1)]
    runs[1]["cases"] = runs[0]["cases"]
    with pytest.raises(ValueError, match="expected a case in one fold of seed 0"):
        stats.values(runs, "unet_aug", "own")
    with pytest.raises(ValueError, match="expected one run of each seed and fold, got several, of learning rates"):
        stats.values([fake_run(), fake_run(learning_rate=0.01)], "unet_aug", "own")


def test_the_longest_of_several_trainings_counts():
    runs = [fake_run(steps=2000, gain=0.1), fake_run(steps=1000)]
    np.testing.assert_array_equal(
        stats.values(runs, "unet_aug", "own").table, stats.values(runs[:1], "unet_aug", "own").table
    )


def slow_resamples(table, resamples, seed):
    """The counts that were drawn, spelt out as lists of runs and cases."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(n, np.full(n, 1 / n), resamples) for n in table.shape[:2]]
    for runs, cases in zip(*counts, strict=True):
        chosen = table[np.repeat(np.arange(len(runs)), runs)][:, np.repeat(np.arange(len(cases)), cases)]
        yield [np.nanmean(chosen[..., k]) for k in range(table.shape[2])]


def test_resamples_are_those_of_a_loop():
    table = np.random.default_rng(0).normal(size=(3, 8, 2))
    table[1, 2, 0] = table[0, :3, 1] = np.nan
    np.testing.assert_allclose(stats.resampled(table, 50, 3), list(slow_resamples(table, 50, 3)), atol=1e-12)


def test_interval_of_one_run_is_that_of_a_mean():
    table = np.random.default_rng(0).normal(0.8, 0.1, (1, 200, 1))
    found = stats.estimate(table)
    half = 1.96 * table.std() / 200**0.5
    np.testing.assert_allclose([found.low[0], found.high[0]], [table.mean() - half, table.mean() + half], atol=0.003)


def test_interval_is_wider_where_seeds_differ():
    rng = np.random.default_rng(0)
    same = rng.normal(0.8, 0.02, (4, 40, 1))
    width = [np.ptp([e.low[0], e.high[0]]) for e in map(stats.estimate, (same, same + rng.normal(0, 0.05, (4, 1, 1))))]
    assert width[1] > 2 * width[0]


def planted(effect, draws=60):
    """How often the interval holds the effect, and how often zero, over many experiments of 6 seeds and 30 volumes."""
    held = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 0.02, (6, 1, 1)) + rng.normal(0, 0.05, (1, 30, 1)) + rng.normal(0, 0.05, (6, 30, 1))
        found = stats.estimate(effect + noise, resamples=500)
        held.append([found.low[0] <= x <= found.high[0] for x in (effect, 0)])
    return np.mean(held, axis=0)


def test_intervals_hold_the_planted_effect_and_zero_only_where_there_is_none():
    covers, _ = planted(0.0)
    assert covers > 0.85
    covers, zero = planted(0.08)
    assert covers > 0.85
    assert zero < 0.05


def test_difference_is_paired_over_common_runs_and_cases():
    ours = stats.values([fake_run(network="net", gain=0.04, seed=s) for s in range(3)], "net", "own")
    theirs = stats.values([fake_run(seed=s) for s in (1, 2, 3)], "unet_aug", "own")
    theirs = theirs.part(theirs.runs, theirs.cases[::-1][2:], ["1", "2"])
    found = stats.difference(ours, theirs)
    assert (found.runs, found.cases, found.conditions) == (2, 14, ["1", "2"])
    pairs = [
        ours.table[ours.runs.index(run), ours.cases.index(case), ours.conditions.index("2")]
        - theirs.table[theirs.runs.index(run), theirs.cases.index(case), 1]
        for run, case in itertools.product([(1, 0), (2, 0)], theirs.cases)
    ]
    assert found.estimate.mean[1] == pytest.approx(np.mean(pairs), abs=1e-12)
    by_case = np.reshape(pairs, (2, -1)).mean(0)
    assert found.p[1] == pytest.approx(wilcoxon(by_case).pvalue)
    assert found.estimate.mean[-1] == pytest.approx(found.estimate.mean[:2].mean())
    assert (found.estimate.low > 0).all()
    assert (found.p < 0.001).all()
    # Pairing takes the volumes' own difficulty out of the interval.
    alone = stats.estimate(ours.table)
    assert (
        np.ptp([found.estimate.low, found.estimate.high], axis=0).max() < np.ptp([alone.low, alone.high], axis=0).min()
    )


def test_no_difference_to_itself_and_none_without_common_runs():
    one = stats.values([fake_run(seed=0)], "unet_aug", "own")
    found = stats.difference(one, one)
    assert (found.p == 1).all()
    assert (np.concatenate(found.estimate) == 0).all()
    assert stats.difference(one, stats.values([fake_run(seed=1)], "unet_aug", "own")) is None
    assert np.isnan(stats.p_value(np.array([np.nan])))


def test_groups_hold_what_may_be_compared():
    both = itertools.product((500, 1000), {"steps": 1, "time": 10}.items())
    runs = [fake_run(steps=n, match=match, training_seconds=n * each) for n, (match, each) in both]
    runs.append(fake_run(network="costly", steps=500, training_seconds=5100.0))  # as long as one of those of equal time
    runs.append(fake_run(network="other", steps=500, training_seconds=5300.0))
    assert [(g.match, g.steps, len(r)) for g, r in stats.grouped(runs).items()] == [
        ("steps", 500, 3), ("steps", 1000, 1), ("time", None, 3),
    ]  # fmt: skip


def test_several_times_are_groups_of_their_own(tmp_path, capsys):
    matches = {"time": 1000, "time4000": 4000, "time14000": 14000}
    runs = [fake_run(steps=n, match=m, training_seconds=float(n)) for m, n in matches.items()]
    assert list(stats.grouped(runs[::-1]).values()) == [[run] for run in runs]  # the shortest first
    assert [(g.match, g.steps, r) for g, r in stats.grouped(runs).items()] == [
        (m, None, [r]) for m, r in zip(matches, runs, strict=True)
    ]
    tables.main(write(tmp_path, runs))
    titles = [line.split("volumes, ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("### ")]
    of_plain = [f"the time of {n} steps of the plain network" for n in (4000, 14000)]
    assert titles == ["the same time", *of_plain]


def test_tables_of_runs_of_which_some_are_missing(tmp_path, capsys, some_runs):
    some_runs[0]["tests"]["four"]["dice"].pop("2")
    tables.main(write(tmp_path, some_runs), "pyramid_aug/own", "unet_aug/own")
    text = capsys.readouterr().out
    assert text.count("### ") == 5
    assert "### hippocampus, scale, 25 volumes, 1000 steps" in text
    assert "pyramid_aug/own less unet_aug/own, 3 runs, 16 volumes" in text
    assert "pyramid_aug/own less unet_aug/own: no run of both." in text
    assert re.search(r"\| 1 \| \+0\.0[34]", text)
    assert "better" in text
    assert "worse" not in text
    for block in text.strip().split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_usual_pairs_and_drawn_rows_are_of_runs_that_there_are(tmp_path, capsys):
    protocol_runs = [run for group in protocol({}) for run in group]
    planned = {(run.dataset, run.network) for run in protocol_runs}
    for dataset, pairs in tables.PAIRS.items():
        for network, test in (name.split("/") for pair in pairs for name in pair):
            assert (dataset, network) in planned
            assert test in ENTRIES[network].tests
            assert dataset == "hippocampus" or test in SHORT
    for network, test in panels.ROWS:
        assert test in {*ENTRIES[network].tests, "oracle"}
    tables.main(write(tmp_path, [fake_run("acdc", conditions=("own",))]))
    assert "pyramid_mm_aug/own less unet_resampled_aug/own: no run of both." in capsys.readouterr().out


def test_times_are_those_of_a_machine_that_does_nothing_else(tmp_path, capsys):
    gpu = {"device": "NVIDIA"}
    folder = write(tmp_path, [fake_run(**gpu), fake_run(network="net", **gpu), fake_run(network="third")])
    assert {run["network"]: run["training_seconds"] for run in stats.load(folder)}["third"] == 4.1  # CPUs alone
    (tmp_path / "costs_hippocampus_cuda.json").write_text('{"unet_aug": {"seconds_per_step": 0.002, "gmacs": 0.5}}')
    found = {run["network"]: run["training_seconds"] for run in stats.load(folder)}
    assert found["unet_aug"] == 2
    assert np.isnan(found["net"])
    assert np.isnan(found["third"])  # trained on a CPU, whose seconds would stand beside a GPU's
    more = {"seconds_per_estimator_step": 0.001, "estimator_steps": 300}
    costs = {"unet_aug": {"seconds_per_step": 0.002, "gmacs": 0.5}, "third": {"seconds_per_step": 0.002} | more}
    (tmp_path / "costs_hippocampus_cuda.json").write_text(json.dumps(costs))
    found = {run["network"]: run["training_seconds"] for run in stats.load(folder)}
    assert found["third"] == pytest.approx(1.7)  # 300 of the 1,000 steps are the estimator's alone
    (tmp_path / "costs_hippocampus_cuda.json").write_text(json.dumps(costs).replace("300", "800"))
    found = {run["network"]: run["training_seconds"] for run in stats.load(folder)}
    assert found["third"] == pytest.approx(1.5)  # no more than half
    tables.main(folder, "unet_aug/own", "net/own")
    lines = {line.split(" | ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["| unet_aug/own"].endswith("| 0.5 | 2 | 2 | 1 |")
    assert lines["| net/own"].endswith("| 12.3 | - | - | 1 |")


def test_average_is_over_the_scales_where_there_are_any():
    ours, theirs = (stats.values([fake_run(network=n, gain=g)], n, "own") for n, g in (("net", 0.04), ("unet_aug", 0)))
    found = stats.difference(ours, theirs)
    assert found.estimate.mean[-1] == pytest.approx(found.estimate.mean[:-2].mean())
    line = tables.line([fake_run()], ("unet_aug", "own"), SCALES)
    assert float(line[len(SCALES) + 1]) == pytest.approx(np.mean([float(x) for x in line[1 : len(SCALES)]]), abs=1e-3)
    assert stats.in_average(["own", "1.5625"]) == [True, True]


def test_verdict_only_where_the_interval_excludes_zero():
    bounds = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (float("nan"), float("nan"))]
    assert [tables.verdict(*b) for b in bounds] == ["better", "worse", "", ""]


def test_average_is_left_out_where_a_condition_is():
    runs = [fake_run(), fake_run(network="unet", conditions=("1",))]
    line = tables.line(runs, ("unet", "own"), SCALES)
    assert line[1] == line[len(SCALES) + 1] == line[len(SCALES) + 3] == "-"
    assert "to" in line[len(SCALES) + 2]


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of few pixels and resamples."""
    monkeypatch.setattr(figures, "DPI", 20)
    monkeypatch.setattr(panels, "estimate", partial(stats.estimate, resamples=20))


@pytest.mark.usefixtures("coarse")
def test_pictures_of_runs_of_which_some_are_missing(tmp_path, some_runs):
    figures.main(write(tmp_path / "runs", some_runs), str(tmp_path))
    names = {"dice.png", "dice_acdc.png", "dice_brats.png", "dice_hippocampus.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("changes", [{"match": "time4000"}, {"conditions": ("z3",)}])
def test_picture_of_one_run_alone(tmp_path, changes):
    figures.figure([fake_run(**changes)], "hippocampus", tmp_path / "one.png")
    assert (tmp_path / "one.png").exists()


@pytest.mark.usefixtures("coarse")
def test_trainings_of_the_same_time_are_open_points():
    matches = {"steps": 500, "time": 1000, "time4000": 4000}
    runs = [fake_run(steps=n, match=m, training_seconds=float(n)) for m, n in matches.items()]
    axes = figures.plt.figure().add_subplot()
    panels.against_time(axes, runs, averaged=False)
    drawn = {(tuple(line.get_xdata()), line.get_markerfacecolor() == "white") for line in axes.lines}
    assert drawn == {((500.0,), False), ((1000.0, 4000.0), True)}
    figures.plt.close("all")


@pytest.mark.usefixtures("coarse")
def test_summary_of_nothing_that_is_drawn(tmp_path):
    figures.summary([fake_run(network="another"), fake_run("brats")], tmp_path / "all.png")  # one network alone
    assert not (tmp_path / "all.png").exists()
    figures.main(write(tmp_path / "runs", [fake_run(setting="validation")]), str(tmp_path))
    assert not list(tmp_path.glob("*.png"))


def test_only_panels_that_there_is_something_to_draw_in(some_runs):
    names = [{name for row in figures.mosaic(runs) for name in row} for runs in (some_runs[:12], some_runs)]
    assert names[0] == {"home", "mean", "scale", "others"}
    assert names[1] - names[0] == {"time home", "time mean"}
    assert figures.mosaic([fake_run(conditions=("1", "2"))]) == [["scale"] * 4]
    assert figures.mosaic([fake_run(conditions=("own",))]) == [["others"] * 4]
    own = [fake_run(conditions=("own",), match=match) for match in ("steps", "time")]
    assert figures.mosaic(own) == [["others"] * 4, ["same time"] * 4]
    several = [fake_run(volumes=n, match=match) for n in (10, 25) for match in ("steps", "time")]
    assert {"home", "long home", "long mean"} <= {name for row in figures.mosaic(several) for name in row}
    assert list(panels.by_volumes(several, "time")) == [10, 25]


def test_the_summary_shows_the_same_steps_and_the_longest_same_time(some_runs, monkeypatch):
    steps, volumes, time = "25 labelled, same steps", "mean over the scales, same steps", "25 labelled, same time"
    assert list(figures.summary_panels(some_runs, "hippocampus")) == [steps, volumes, time]
    assert figures.summary_panels(some_runs, "brats") == figures.summary_panels(some_runs, "acdc") == {}
    pair = [fake_run(network=n, gain=g) for n, g in (("unet_aug", 0), ("pyramid_aug", 0.04))]
    assert list(figures.summary_panels(pair, "hippocampus")) == [steps]
    alone = {**pair[0], "match": "time", "training_seconds": 99.0}
    assert list(figures.summary_panels([*pair, alone], "hippocampus")) == [steps]
    longer = [{**run, "match": "time4000", "steps": 9} for run in pair]
    drawn: list = []
    monkeypatch.setattr(figures, "against_scale", lambda _, runs, share: drawn.append(runs))
    figures.summary_panels([*some_runs, *longer], "hippocampus")[time](None)
    matches = {run["match"] for run in drawn[0]}
    assert "time4000" in matches
    assert "time" not in matches
    mm = [fake_run("acdc", n, setting="half", conditions=("own", "1.5625")) for n in (panels.MEASURE, "unet_aug")]
    assert list(figures.summary_panels(mm[:1], "acdc")) == []  # one that is drawn
    assert list(figures.summary_panels(mm, "acdc")) == [steps]  # nothing was trained for the pyramid's time
    assert list(figures.summary_panels([*mm, {**mm[1], "match": "time"}], "acdc")) == [steps, time]


def test_a_network_of_some_folds_is_not_drawn_beside_one_of_all():
    runs = [fake_run("brats", fold=fold, network=n) for n in ("unet_aug", "seunet_aug") for fold in range(5)]
    assert panels.by_volumes(runs)[25] == runs
    assert panels.by_volumes(runs[:7])[25] == runs[:5]
    assert not figures.summary_panels(runs[:7], "brats")
    assert len(figures.summary_panels(runs, "brats")) == 1
    aside = [{**run, "network": figures.ASIDE[0]} if run["network"] == "seunet_aug" else run for run in runs]
    assert not figures.summary_panels(aside, "brats")
    assert panels.by_volumes(runs[4:6]) == {}
    assert panels.of_all_cases([]) == []


def test_beside_the_pyramid_in_mm_stands_what_was_trained_as_long():
    short, long = fake_run(), fake_run(match="time", steps=5000)
    measure, *others = (
        fake_run(network=name) for name in ("pyramid_mm_aug", "seunet_one_scale_mm_aug", "unet_resampled_aug")
    )
    assert panels.as_long([short, long, measure, *others]) == [long, measure]


def test_the_usual_number_of_volumes_where_several_have_as_many_runs():
    assert panels.main_volumes({10: [1], 25: [1], 126: [1]}) == 25
    assert panels.main_volumes({10: [1, 2], 25: [1]}) == 10
    assert panels.main_volumes({37: [1], 40: [1]}) == 37


def test_of_two_ways_to_test_the_better_is_drawn():
    run = fake_run(network="pyramid_aug")
    assert list(panels.drawn_rows([run])) == [("pyramid_aug", "four")]
    del run["tests"]["four"]
    assert list(panels.drawn_rows([run])) == [("pyramid_aug", "own")]


def test_a_network_without_one_of_the_scales_has_no_average():
    runs = [fake_run(), fake_run(network="unet", conditions=("1", "2"))]
    assert panels.estimate_at(runs, ("unet", "own"), averaged=True) is None
    assert panels.estimate_at(runs, ("unet", "own"), averaged=False)
    found = stats.values(runs, "unet_aug", "own").at(["0.5", "0.7", "1", "1.4", "2"])
    assert panels.estimate_at(runs, ("unet_aug", "own"), averaged=True)[0] == pytest.approx(np.nanmean(found.table))


def test_labels_that_would_touch_are_left_out():
    assert panels.apart({0.0: "a", 1.0: "c", 0.05: "b", 0.5: "d"}, 0.1) == {0.0: "a", 0.05: "", 0.5: "d", 1.0: "c"}
    assert panels.apart({}, 0.1) == {}


@pytest.fixture
def cases(tmp_path):
    """Three volumes, a bright bar of two labels along the second axis, and weights of both networks as they begin."""
    arrays = {}
    for i in range(3):
        label = np.zeros((12, 20, 12), np.uint8)
        label[4:8, 4:10, 4:8], label[4:8, 10:16, 4 : 7 + i % 2] = 1, 2
        noise = np.random.default_rng(i).integers(1, 60, label.shape)
        arrays |= {f"v{i}/image": (noise + 150 * (label > 0)).astype(np.uint8)[None], f"v{i}/label": label}
        arrays[f"v{i}/spacing"] = np.ones(3)
    np.savez(tmp_path / "hippocampus.npz", **arrays)
    for network in overlays.NETWORKS:
        name = overlays.WEIGHTS.format(network).replace("*", "0.01")
        torch.save(ENTRIES[network].build(3, 1, 3).state_dict(), tmp_path / name)
    return tmp_path


def test_overlays_of_prepared_cases_and_kept_weights(cases, monkeypatch):
    monkeypatch.setattr(overlays, "DPI", 20)
    overlays.main(str(cases), str(cases), str(cases / "overlays.png"))
    assert (cases / "overlays.png").stat().st_size > 1000
    with pytest.raises(FileNotFoundError, match="expected one file hippocampus_unet_aug"):
        overlays.trained(cases / "elsewhere", "unet_aug")


def test_overlays_have_the_dice_of_the_evaluation(cases):
    volumes = datasets.load("hippocampus", cases)
    net = overlays.trained(cases, "unet_aug")
    size = volumes[0].label.shape
    images = [volume.normalised()[None] for volume in volumes]
    found = measure(net, replace(ENTRIES["unet_aug"], tests={"own": once}), volumes, ("0.5", "1"), torch.device("cpu"))
    for image, volume, expected in zip(images, volumes, found["own"]["dice"]["0.5"], strict=True):
        seen = resized(image, [n // 2 for n in size])
        dice = overlays.mean_dice(overlays.segmented(net, seen, volume.label, size), volume.label)
        assert dice == pytest.approx(np.mean(expected), abs=1e-4)
    shown = overlays.shown({"UNet": net}, images[0], volumes[0].label, ("0.5", "1"))
    assert shown["0.5"].image.shape == (10, 6)
    assert shown["1"].dice["UNet"] == pytest.approx(np.mean(found["own"]["dice"]["1"][0]), abs=1e-4)
    assert 4 <= overlays.best_slice(volumes[0].label) < 8


def test_typical_case_is_the_one_in_the_middle(monkeypatch):
    truths = [np.array([1, 1, 1, 1]).reshape(1, 1, 4)] * 3
    images = [torch.full((1, 1, 1, 1, 4), float(i)) for i in (0, 3, 4)]
    answers = {i: (np.arange(4) < i).reshape(1, 1, 4) * 1 for i in (0, 3, 4)}
    monkeypatch.setattr(overlays, "segmented", lambda net, seen, truth, size: answers[int(seen.max())])
    assert overlays.typical_case(None, images, truths, ("1",)) == 1


def test_dice_of_label_maps():
    truth = np.array([0, 1, 1, 2])
    assert overlays.mean_dice(truth, truth) == 1
    assert overlays.mean_dice(0 * truth, truth) == 0
    assert np.isnan(overlays.mean_dice(0 * truth, 0 * truth))
    assert overlays.mean_dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0])) == 0.5
