"""The rules of the data check: on one file, on a case, and on the data set as a whole."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._datalist import stem_of
from monai_scaleequiv.data._listing import Case, Listing
from monai_scaleequiv.data._read import MOST_LABELS, VolumeFacts
from monai_scaleequiv.data.rules import ERROR, WARNING, Finding

MOST_GAPS = 5  # that are named

Facts = Mapping[tuple[str, bool], VolumeFacts]
Found = Iterator[tuple[str, Finding | None]]


def all_findings(listing: Listing, facts: Facts) -> list[tuple[str, Finding]]:
    """Everything that is wrong, as file and finding, errors first.

    Args:
        listing: the cases.
        facts: by path and whether it is a label map.
    """
    found = [] if listing.cases else [(listing.source, Finding("empty", "at least one case", "none", "complete it"))]
    found += listing.findings
    for file, label in listing.files:
        found += [(file, finding) for finding in _of_file(facts[file, label], label, listing) if finding]
    for part in (_of_cases, _channels, _twice, _same_name, _same_content, _classes):
        found += [(file, finding) for file, finding in part(listing, facts) if finding]
    return sorted(found, key=lambda pair: pair[1].severity != ERROR)


def _of_file(facts: VolumeFacts, label: bool, listing: Listing) -> Iterator[Finding | None]:
    yield from facts.findings
    if not facts.shape:
        return
    shape, channels = _split(facts, listing.spatial_dims)
    yield rules.axes(shape, listing.spatial_dims)
    yield rules.channels(channels, 1) if label and channels is not None else None
    yield rules.finite(facts.nonfinite)
    if rules.affine(facts.affine, inf) is None:  # else it is among the facts' findings
        yield rules.affine(facts.affine)
        yield rules.spacing(rules.spacing_of(facts.affine)[: listing.spatial_dims])
    if label and not facts.nonfinite:
        yield rules.labels([value for value, _ in facts.labels], listing.classes)
    if facts.minimum is not None and facts.minimum == facts.maximum:
        if not label:
            got = f"{facts.minimum:g} in every voxel"
            yield Finding("constant", "an image that varies", got, "leave the case out", WARNING)
        elif facts.minimum == 0:
            hint = "label it or leave the case out"
            yield Finding("empty", "labelled voxels", "none: 0 in every voxel", hint, WARNING)


def _of_cases(listing: Listing, facts: Facts) -> Found:
    for case in listing.cases:
        first, dims = facts[case.images[0], False], listing.spatial_dims
        for key in [(path, False) for path in case.images[1:]] + _label(case):
            other = facts[key]
            shapes = [_split(one, dims)[0] for one in (other, first)]
            if first.shape and other.shape and {len(shape) for shape in shapes} == {dims}:  # else reported already
                # With a bad affine, which is reported as well, the distance of corners has no meaning.
                matrices = [
                    None if rules.affine(f.affine, inf) or rules.place(f.affine) else f.affine for f in (other, first)
                ]
                yield key[0], rules.grid(shapes[0], matrices[0], shapes[1], matrices[1], f"the image {case.images[0]}")


def _channels(listing: Listing, facts: Facts) -> Found:
    """Channels against the list of modalities, else against what most cases have."""
    counts = {}
    for case in listing.cases:
        parts = [_split(facts[path, False], listing.spatial_dims)[1] for path in case.images]
        if None not in parts:
            counts[case.images[0]] = sum(part or 0 for part in parts)
    if counts:
        expected = Counter(counts.values()).most_common(1)[0][0] if listing.channels is None else listing.channels
        yield from ((path, rules.channels(count, expected)) for path, count in counts.items())


def _twice(listing: Listing, facts: Facts) -> Found:
    places = defaultdict(list)
    for case in listing.cases:
        for path, _ in [(path, False) for path in case.images] + _label(case):
            places[path].append(case.place)
    for path, where in places.items():
        if len(where) > 1:
            got = f"{len(where)} times, at {', '.join(where[:3])}{' and more' * (len(where) > 3)}"
            yield path, Finding("twice", "each file once on the list", got, "remove all but one")


def _same_name(listing: Listing, facts: Facts) -> Found:
    by_name = defaultdict(set)
    for case in listing.cases:
        for path in case.images:
            by_name[stem_of(Path(path).name)].add(path)
    for paths in by_name.values():
        first, *others = sorted(paths)
        for path in others:
            got, hint = f"that of {first}, too", "rename one: their results would collide"
            yield path, Finding("name", "a file name of its own", got, hint, WARNING)


def _same_content(listing: Listing, facts: Facts) -> Found:
    """Images are errors, for one of them may come into the validation; label maps may well be equal by chance."""
    seen: dict[tuple[str, bool], str] = {}
    for file, label in listing.files:
        found = facts[file, label]
        if not found.digest or (label and found.minimum == found.maximum):
            continue
        first = seen.setdefault((found.digest, label), file)
        if first != file:
            finding = Finding("copy", "voxels of its own", f"those of {first}", "remove one of the two")
            yield file, replace(finding, severity=WARNING) if label else finding


def _classes(listing: Listing, facts: Facts) -> Found:
    """Classes that no label map has, and gaps, which one-hot coding cannot take."""
    labelled = [facts[case.label, True] for case in listing.cases if case.label is not None]
    found = {round(value) for one in labelled for value, _ in one.labels if rules.is_whole(value) and round(value)}
    if not labelled or any(finding.severity == ERROR for one in labelled for finding in one.findings):
        return
    if not found:
        yield listing.source, Finding("empty", "labelled voxels", "none in any label map", "label the data")
    for value, name in (listing.classes or {}).items():
        if value and found and value not in found:
            got = "none in any label map"
            yield listing.source, Finding("class", f"label {value} ({name})", got, "check the labels", WARNING)
    missing = _gaps(found if listing.classes is None else listing.classes)
    if missing:
        got = f"none for {', '.join(map(str, missing[:MOST_GAPS]))}{' and more' * (len(missing) > MOST_GAPS)}"
        hint = "number them from 0 without gaps"
        yield listing.source, Finding("gap", "labels without gaps", got, hint, WARNING)


def _gaps(known: Collection[int]) -> list[int]:
    """The first whole numbers that are missing below the largest, without counting up to it: it may be 2e9."""
    missing, number, largest = [], 1, max(known, default=0)
    while number < largest and len(missing) <= MOST_GAPS and len(known) < MOST_LABELS:
        missing += [number] if number not in known else []
        number += 1
    return missing


def _label(case: Case) -> list[tuple[str, bool]]:
    return [] if case.label is None else [(case.label, True)]


def _split(facts: VolumeFacts, spatial_dims: int) -> tuple[list[int], int | None]:
    """Spatial shape and number of channels, None where the shape has too few or too many axes for that."""
    shape = list(facts.shape)
    while len(shape) > spatial_dims and shape[-1] == 1:
        shape.pop()
    if len(shape) == spatial_dims + 1:
        return shape[:-1], shape[-1]
    return shape, 1 if len(shape) == spatial_dims else None
