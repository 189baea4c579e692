"""The rules of the data check: on one file, on a case, and on the data set as a whole."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._datalist import stem_of
from monai_scaleequiv.data._facts import MOST_LABELS, VolumeFacts
from monai_scaleequiv.data._listing import Case, Listing
from monai_scaleequiv.data.rules import ERROR, WARNING, Finding

MOST_GAPS = 5  # that are named

Facts = Mapping[tuple[str, bool], VolumeFacts]
Found = Iterator[tuple[str, Finding | None]]


def all_findings(listing: Listing, facts: Facts) -> list[tuple[str, Finding]]:
    """Everything that is wrong, as file and finding, errors first; ``facts`` by path and whether it is a label map."""
    found: list[tuple[str, Finding | None]] = list(listing.findings)
    if not listing.cases:
        found.append((listing.source, Finding("empty", "at least one case", "none", "complete the list")))
    for rule in (_files, _grids, _channels, _twice, _same_name, _same_content, _classes):
        found += rule(listing, facts)
    return sorted(((f, finding) for f, finding in found if finding), key=lambda pair: pair[1].severity != ERROR)


def _files(listing: Listing, facts: Facts) -> Found:
    for file, label in listing.files:
        for finding in _of_file(facts[file, label], label, listing):
            yield file, finding


def _of_file(facts: VolumeFacts, label: bool, listing: Listing) -> Iterator[Finding | None]:
    yield from facts.findings
    if not facts.shape:
        return
    shape, channels = _split(facts, listing.spatial_dims)
    yield rules.axes(shape, listing.spatial_dims)
    yield rules.channels(channels, 1) if label and channels else None
    yield rules.finite(facts.nonfinite)
    if rules.affine(facts.affine, inf) is None:  # else it is among the facts' findings
        yield rules.affine(facts.affine)
        yield rules.spacing(rules.spacing_of(facts.affine)[: listing.spatial_dims])
    if label and not facts.nonfinite:
        yield rules.labels([value for value, _ in facts.labels], listing.classes)
    if facts.minimum is not None and facts.minimum == facts.maximum and not (label and facts.minimum):
        kind, expected = ("empty", "labelled voxels") if label else ("constant", "an image that varies")
        yield Finding(kind, expected, f"{facts.minimum:g} in every voxel", "leave the case out", WARNING)


def _grids(listing: Listing, facts: Facts) -> Found:
    dims = listing.spatial_dims
    for case in listing.cases:
        for key in _keys(case)[1:]:
            pair = facts[key], facts[case.images[0], False]
            shape, first = (_split(one, dims)[0] for one in pair)
            if len(shape) == len(first) == dims:  # else reported already, as is a bad affine
                matrices = [None if rules.affine(f.affine, inf) or rules.place(f.affine) else f.affine for f in pair]
                yield key[0], rules.grid(shape, matrices[0], first, matrices[1], f"the image {case.images[0]}")


def _channels(listing: Listing, facts: Facts) -> Found:
    """Channels against the list of modalities, else against what most cases have."""
    counts = {}
    for case in listing.cases:
        parts = [_split(facts[path, False], listing.spatial_dims)[1] for path in case.images]
        if all(parts):
            counts[case.images[0]] = sum(parts)
    most = Counter(counts.values()).most_common(1)
    for path, count in counts.items():
        yield path, rules.channels(count, listing.channels or most[0][0])


def _twice(listing: Listing, facts: Facts) -> Found:
    places = defaultdict(list)
    for case in listing.cases:
        for path, _ in _keys(case):
            places[path].append(case.place)
    for path, where in places.items():
        got = f"{len(where)} times, at {', '.join(where[:3])}{' and more' * (len(where) > 3)}"
        wrong = Finding("twice", "each file once on the list", got, "remove all but one")
        yield path, wrong if len(where) > 1 else None


def _same_name(listing: Listing, facts: Facts) -> Found:
    by_name = defaultdict(set)
    for path, label in listing.files:
        by_name[stem_of(Path(path).name), label].add(path)
    for first, *others in (sorted(paths) for (_, label), paths in by_name.items() if not label):
        for path in others:
            got, hint = f"that of {first}, too", "rename one: their results would collide"
            yield path, Finding("name", "a file name of its own", got, hint, WARNING)


def _same_content(listing: Listing, facts: Facts) -> Found:
    """Images are errors, for one of them may come into the validation; label maps may well be equal by chance."""
    seen: dict[tuple[str, bool], str] = {}
    for file, label in listing.files:
        found = facts[file, label]
        if found.digest and not (label and found.minimum == found.maximum):
            first = seen.setdefault((found.digest, label), file)
            wrong = Finding("copy", "voxels of its own", f"those of {first}", "remove one of the two")
            yield file, None if first == file else replace(wrong, severity=WARNING if label else ERROR)


def _classes(listing: Listing, facts: Facts) -> Found:
    """Classes that no label map has, and gaps, which one-hot coding cannot take."""
    labelled = [facts[case.label, True] for case in listing.cases if case.label is not None]
    found = {round(value) for one in labelled for value, _ in one.labels if rules.is_whole(value) and round(value)}
    if not labelled or any(finding.severity == ERROR for one in labelled for finding in one.findings):
        return
    if not found:
        yield listing.source, Finding("empty", "labelled voxels", "none in any label map", "label the data")
    for value, name in (listing.classes or {}).items() if found else ():
        wrong = Finding("class", f"label {value} ({name})", "none in any label map", "check the labels", WARNING)
        yield listing.source, wrong if value and value not in found else None
    known, number = listing.classes or found, 1
    missing: list[int] = []
    # Without counting up to the largest: it may be 2e9.
    while number < max(known, default=0) and len(missing) <= MOST_GAPS and len(known) < MOST_LABELS:
        missing += [number] if number not in known else []
        number += 1
    if missing:
        got = f"none for {', '.join(map(str, missing[:MOST_GAPS]))}{' and more' * (len(missing) > MOST_GAPS)}"
        yield listing.source, Finding("gap", "labels without gaps", got, "number them from 0 without gaps", WARNING)


def _keys(case: Case) -> list[tuple[str, bool]]:
    return [(path, False) for path in case.images] + ([] if case.label is None else [(case.label, True)])


def _split(facts: VolumeFacts, spatial_dims: int) -> tuple[list[int], int]:
    """Spatial shape and number of channels, 0 where the shape has too few or too many axes for that."""
    shape = list(facts.shape)
    while len(shape) > spatial_dims and shape[-1] == 1:
        shape.pop()
    if len(shape) == spatial_dims + 1:
        return shape[:-1], shape[-1]
    return shape, int(len(shape) == spatial_dims)
