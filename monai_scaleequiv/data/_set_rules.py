"""The rules of the data check: on one file, on a case, and on the data set as a whole."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from math import inf
from pathlib import Path

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._case import Listing
from monai_scaleequiv.data._datalist import stem_of
from monai_scaleequiv.data._read import MOST_LABELS, VolumeFacts
from monai_scaleequiv.data.rules import ERROR, WARNING, Finding

MOST_GAPS = 5  # that are named

Facts = dict[tuple[str, bool], VolumeFacts]  # by path and whether it is a label map
Found = Iterator[tuple[str, Finding | None]]


def all_findings(listing: Listing, facts: Facts) -> list[tuple[str, Finding]]:
    """Everything that is wrong, as file and finding, errors first."""
    found: list[tuple[str, Finding | None]] = list(listing.findings)
    if not listing.cases:
        found.append((listing.source, Finding("empty", "at least one case", "none", "complete the list")))
    for rule in (_files, _grids, _channels, _twice, _copies, _classes):
        found += rule(listing, facts)
    return sorted(((f, finding) for f, finding in found if finding), key=lambda pair: pair[1].severity != ERROR)


def _files(listing: Listing, facts: Facts) -> Found:
    for (file, label), found in facts.items():
        yield from ((file, finding) for finding in found.findings)
        if found.shape:
            yield from ((file, finding) for finding in _of_voxels(found, label, listing))


def _of_voxels(facts: VolumeFacts, label: bool, listing: Listing) -> Iterator[Finding | None]:
    shape, channels = _split(facts, listing)
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
    for case in listing.cases:
        for key in case.files[1:]:
            pair = facts[key], facts[case.images[0], False]
            shape, first = (_split(one, listing)[0] for one in pair)
            if len(shape) == len(first) == listing.spatial_dims:  # else reported already, as is a bad affine
                matrices = [None if rules.affine(f.affine, inf) or rules.place(f.affine) else f.affine for f in pair]
                yield key[0], rules.grid(shape, matrices[0], first, matrices[1], f"the image {case.images[0]}")


def _channels(listing: Listing, facts: Facts) -> Found:
    """Channels against the list of modalities, else against what most cases have."""
    parts = {case.images[0]: [_split(facts[path, False], listing)[1] for path in case.images] for case in listing.cases}
    counts = {path: sum(numbers) for path, numbers in parts.items() if all(numbers)}
    most = Counter(counts.values()).most_common(1)
    yield from ((path, rules.channels(count, listing.channels or most[0][0])) for path, count in counts.items())


def _twice(listing: Listing, facts: Facts) -> Found:
    """Files that are listed twice, and images whose results would have the same name."""
    places, names = defaultdict(list), defaultdict(list)
    for case in listing.cases:
        for path, _ in case.files:
            places[path].append(case.place)
    for path, where in places.items():
        if len(where) > 1:
            got = f"{len(where)} times, at {', '.join(where[:3])}{' and more' * (len(where) > 3)}"
            yield path, Finding("twice", "each file once on the list", got, "remove all but one")
    for path in sorted(path for path, label in facts if not label):
        names[stem_of(Path(path).name)].append(path)
    hint = "rename one: their results would collide"
    for first, *others in names.values():
        for path in others:
            yield path, Finding("name", "a file name of its own", f"that of {first}, too", hint, WARNING)


def _copies(listing: Listing, facts: Facts) -> Found:
    """Images are errors, for one of them may come into the validation; label maps may well be equal by chance."""
    seen: dict[tuple[str, bool], str] = {}
    for (file, label), found in facts.items():
        first = seen.setdefault((found.digest, label), file)
        if found.digest and first != file and not (label and found.minimum == found.maximum):
            severity = WARNING if label else ERROR
            yield file, Finding("copy", "voxels of its own", f"those of {first}", "remove one of the two", severity)


def _classes(listing: Listing, facts: Facts) -> Found:
    """Classes that no label map has, and gaps, which one-hot coding cannot take."""
    labelled = [found for (_, label), found in facts.items() if label]
    if not labelled or any(finding.severity == ERROR for found in labelled for finding in found.findings):
        return
    there = {round(value) for found in labelled for value, _ in found.labels if rules.is_whole(value)} - {0}
    if not there:
        yield listing.source, Finding("empty", "labelled voxels", "none in any label map", "label the data")
        return
    for value, name in (listing.classes or {}).items():
        if value and value not in there:
            got, hint = "none in any label map", "check the labels"
            yield listing.source, Finding("class", f"label {value} ({name})", got, hint, WARNING)
    known = set(listing.classes or there)
    if listing.coded:
        return
    # Up to the largest, it may be 2e9, but no more than there are labels, and some gaps among them.
    missing = [number for number in range(1, min(max(known), len(known) + MOST_GAPS) + 1) if number not in known]
    if missing and len(known) < MOST_LABELS:
        got = f"none for {', '.join(map(str, missing[:MOST_GAPS]))}{' and more' * (len(missing) > MOST_GAPS)}"
        yield listing.source, Finding("gap", "labels without gaps", got, "number them from 0 without gaps", WARNING)


def _split(facts: VolumeFacts, listing: Listing) -> tuple[list[int], int]:
    """Spatial shape and number of channels, 0 where the shape has too few or too many axes for that."""
    shape, dims = list(facts.shape), listing.spatial_dims
    while len(shape) > dims and shape[-1] == 1:
        shape.pop()
    return (shape[:-1], shape[-1]) if len(shape) == dims + 1 else (shape, int(len(shape) == dims))
