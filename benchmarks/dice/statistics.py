"""What finished trainings say: values of every volume, intervals, paired differences.

A training counts as one draw of chance, and so does a test volume: intervals come from drawing both anew, independently
of each other (the pigeonhole bootstrap of Owen, 2007). scipy's ``bootstrap`` draws along one axis only.
Of few trainings that differ much it makes intervals too narrow, and of one it cannot know how trainings differ.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

RESAMPLES = 2000
CONFIDENCE = 0.95
NAMED = ("own", "same", "1.5625", "z2", "z3")  # conditions that are no scale, in the order of tables and pictures
SAME_TIME = 0.05  # by what share the seconds of trainings may differ that count as equally long
HOME = ("1", "own")  # what resembles the training most
JOINED = ("brats",)  # each fold tests the cases that it left out: the folds of a seed are one run over all cases

VALIDATION = "validation"  # the setting by which choices are made, whose cases are not those of the test


class Group(NamedTuple):
    """What the networks that are compared have in common."""

    dataset: str
    setting: str
    volumes: int
    match: str
    steps: int | None  # None where networks train for the same time


class Values(NamedTuple):
    """Of one network and way of testing: ``table`` is [run, case, condition], NaN where nothing was measured."""

    table: np.ndarray
    runs: list[tuple[int, ...]]
    cases: list[str]
    conditions: list[str]

    def part(self, runs: Sequence, cases: Sequence[str], conditions: Sequence[str]) -> "Values":
        """These runs, cases and conditions, in this order."""
        wanted = (list(runs), list(cases), list(conditions))
        places = [[have.index(x) for x in want] for have, want in zip(self[1:], wanted, strict=True)]
        return Values(self.table[np.ix_(*places)], *wanted)

    def at(self, conditions: Sequence[str]) -> "Values":
        return self.part(self.runs, self.cases, conditions)


class Estimate(NamedTuple):
    """Means and their intervals, each [condition + 1]: the last is the average over the conditions, or over some."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """Ours less the baseline's, over the runs and cases that both have; ``p`` is [condition + 1] too."""

    estimate: Estimate
    p: np.ndarray
    conditions: list[str]
    runs: int
    cases: int


def load(folder: str | Path) -> list[dict]:
    """All runs of a folder, with the seconds that they take on one machine that does nothing else, where measured.

    A trial of a learning rate on the validation volumes is a network of its own.
    """
    files = sorted(Path(folder).glob("*.json"))
    costs = {path.stem: json.loads(path.read_text()) for path in files if path.stem.startswith("costs_")}
    runs = [json.loads(path.read_text()) for path in files if path.stem not in costs]
    for run in runs:
        # Of a GPU, wherever the training ran: seconds of two machines, or of runs beside others, are no comparison.
        alone = costs.get(f"costs_{run['dataset']}_cuda")
        if alone is not None or run["device"] != "cpu":
            found = (alone or {}).get(run["network"], {})
            each = run["seconds_per_step"] = found.get("seconds_per_step", math.nan)
            last = min(found.get("estimator_steps", 0), run["steps"] // 2)  # of another kind, measured by itself
            run["training_seconds"] = (run["steps"] - last) * each + last * found.get("seconds_per_estimator_step", 0.0)
            run["gmacs"] = found.get("gmacs", run["gmacs"])
        if run["setting"] == VALIDATION:
            run["network"] += f" at {run['learning_rate']:g}"
    return runs


def grouped(runs: Iterable[dict]) -> dict[Group, list[dict]]:
    """Runs that may be compared: of the same steps, or trained for the same time."""
    found = defaultdict(list)
    for run in runs:
        steps = run["steps"] if run["match"] == "steps" else None
        found[Group(run["dataset"], run["setting"], run["volumes"], run["match"], steps)].append(run)
    for group in [group for group in found if group.steps is None]:
        seconds = {run["training_seconds"] for run in found[group]}
        alike = [own for other, own in found.items() if other[:3] == group[:3] and other.steps is not None]
        for run in chain.from_iterable(alike):
            if any(abs(run["training_seconds"] / one - 1) < SAME_TIME for one in seconds):
                found[group].append(run)  # the one whose time the others were given
    return {group: found[group] for group in sorted(found, key=in_time)}


def in_time(group: Group) -> tuple:
    """By what is compared, the same steps before the same time, the shorter first."""
    return (*group[:3], group.match != "steps", group.steps or int(group.match.removeprefix("time") or 0))


def rows_of(runs: Iterable[dict]) -> list[tuple[str, str]]:
    """All (network, test) that were measured."""
    return sorted({(run["network"], test) for run in runs for test in run["tests"]})


def is_scale(condition: str) -> bool:
    return condition not in NAMED


def in_order(conditions: Iterable[str]) -> list[str]:
    """Scales by their size, then the others."""
    return sorted(set(conditions), key=lambda c: (0, float(c)) if is_scale(c) else (1, NAMED.index(c)))


def conditions_of(runs: Iterable[dict]) -> list[str]:
    """All that any of these networks was tested under."""
    return in_order(c for run in runs for test in run["tests"].values() for c in test["dice"])


def home(conditions: Sequence[str]) -> str:
    return next((c for c in HOME if c in conditions), conditions[0])


def longest(runs: Iterable[dict]) -> list[dict]:
    """The longest training of each fold and seed, where several were matched in time."""
    found = {}
    for run in sorted(runs, key=lambda run: run["steps"]):
        found[run["seed"], run["fold"]] = run
    return list(found.values())


def run_key(run: dict) -> tuple[int, ...]:
    joined = run["dataset"] in JOINED and run["setting"] != VALIDATION
    return (run["seed"],) if joined else (run["seed"], run["fold"])


def values(runs: Iterable[dict], network: str, test: str, measure: str = "dice") -> Values | None:
    """The mean over the classes, for every run, case and condition of one group; None where there is none."""
    runs = [run for run in runs if run["network"] == network and run["tests"].get(test, {}).get(measure)]
    if len({(run["seed"], run["fold"], run["steps"]) for run in runs}) < len(runs):
        rates = sorted({run["learning_rate"] for run in runs})
        raise ValueError(f"{network}: expected one run of each seed and fold, got several, of learning rates {rates}")
    runs = longest(runs)
    if not runs:
        return None
    keys = sorted({run_key(run) for run in runs})
    cases = sorted({case for run in runs for case in run["cases"]})
    conditions = in_order(c for run in runs for c in run["tests"][test][measure])
    table = np.full((len(keys), len(cases), len(conditions)), np.nan)
    place = {case: i for i, case in enumerate(cases)}
    for run in runs:
        rows = [place[case] for case in run["cases"]]
        for condition, measured in run["tests"][test][measure].items():
            cell = keys.index(run_key(run)), rows, conditions.index(condition)
            if np.isfinite(table[cell]).any():
                raise ValueError(f"{network}: expected a case in one fold of seed {run['seed']}, got it in several")
            table[cell] = seen_mean(np.array(measured, dtype=float), axis=1)  # null becomes NaN
    return Values(table, keys, cases, conditions)


def seen_mean(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Without NaN; NaN where there is nothing else, without ``nanmean``'s warning."""
    with np.errstate(invalid="ignore"):
        return np.nansum(x, axis=axis) / (~np.isnan(x)).sum(axis=axis)


def with_average(x: np.ndarray, counted: Sequence[bool] | None = None) -> np.ndarray:
    """Each condition, or each that is ``counted``, counts the same in the average, however many cases it has."""
    return np.concatenate([x, (x if counted is None else x[..., counted]).mean(-1, keepdims=True)], -1)


def in_average(conditions: Sequence[str]) -> list[bool]:
    """The scales, where there are any: thick slices are no sizes."""
    scales = [is_scale(c) for c in conditions]
    return scales if any(scales) else [True] * len(scales)


def resampled(table: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means [resample, condition] of drawn runs of drawn cases, of ``table`` [run, case, condition]."""
    rng = np.random.default_rng(seed)
    # How often each was drawn: the mean is then a product of matrices.
    runs, cases = (rng.multinomial(n, np.full(n, 1 / n), resamples).astype(float) for n in table.shape[:2])
    total = np.einsum("br,rbk->bk", runs, cases @ np.nan_to_num(table))
    with np.errstate(invalid="ignore"):
        return total / np.einsum("br,rbk->bk", runs, cases @ (~np.isnan(table)).astype(float))


def estimate(
    table: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, counted: Sequence[bool] | None = None
) -> Estimate:
    """Means over runs and cases of ``table`` [run, case, condition], with their intervals."""
    drawn = with_average(resampled(table, resamples, seed), counted)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Estimate(with_average(seen_mean(table, axis=(0, 1)), counted), low, high)


def difference(ours: Values, baseline: Values) -> Difference | None:
    """None where the two have no run, case or condition in common."""
    common = [[x for x in mine if x in set(theirs)] for mine, theirs in zip(ours[1:], baseline[1:], strict=True)]
    if not all(common):
        return None
    table = ours.part(*common).table - baseline.part(*common).table
    counted = in_average(common[2])
    by_case = with_average(seen_mean(table, axis=0), counted)  # [case, condition + 1]
    p = np.array([p_value(column) for column in by_case.T])
    return Difference(estimate(table, counted=counted), p, common[2], len(common[0]), len(common[1]))


def p_value(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test over the cases."""
    seen = differences[~np.isnan(differences)].round(12)  # what differs in rounding alone is a tie
    if not seen.size:
        return float("nan")
    return float(wilcoxon(seen).pvalue) if seen.any() else 1.0
