"""The rules of the data check on a data set as a whole: what is there twice, and what is not there at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from monai_scaleequiv.data._audit_listing import Listing, files_of
from monai_scaleequiv.data._datalist import stem_of
from monai_scaleequiv.data._faults import ERROR, WARNING, Fault
from monai_scaleequiv.data._volume_file import VolumeFacts

__all__ = ["set_faults"]

MOST_GAPS = 5  # that are named
MOST_LABELS = 1000  # above which nobody has numbered them by hand

Facts = Mapping[tuple[str, bool], VolumeFacts]
Finding = tuple[str, Fault]


def set_faults(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Copies, equal names, and labels that are missing, as file and fault.

    Example::

        >>> list(set_faults(Listing("data"), {}))
        []
    """
    yield from _twice(listing)
    yield from _same_name(listing)
    yield from _same_content(listing, facts)
    yield from _classes(listing, facts)


def _twice(listing: Listing) -> Iterator[Finding]:
    places = defaultdict(list)
    for case in listing.cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            places[path].append(case.place)
    for path, where in places.items():
        if len(where) > 1:
            got = f"{len(where)} times, at {', '.join(where[:3])}{' and more' * (len(where) > 3)}"
            yield path, Fault("twice", "each file once on the list", got, "remove all but one")


def _same_name(listing: Listing) -> Iterator[Finding]:
    by_name = defaultdict(set)
    for case in listing.cases:
        for path in case.images:
            by_name[stem_of(Path(path).name)].add(path)
    for paths in by_name.values():
        first, *others = sorted(paths)
        for path in others:
            got = f"that of {first}, too"
            yield path, Fault("name", "a file name of its own", got, "rename one: their results would collide", WARNING)


def _same_content(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Images are errors, for one of them may come into the validation; label maps may well be equal by chance."""
    seen: dict[tuple[str, bool], str] = {}
    for file, label in files_of(listing):
        found = facts[file, label]
        if not found.digest or (label and found.minimum == found.maximum):
            continue
        first = seen.setdefault((found.digest, label), file)
        if first != file:
            fault = Fault("copy", "voxels of its own", f"those of {first}", "remove one of the two")
            yield file, replace(fault, severity=WARNING) if label else fault


def _classes(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Classes that no label map has, and gaps, which one-hot coding cannot take."""
    labelled = [facts[case.label, True] for case in listing.cases if case.label is not None]
    found = {value for one in labelled for value, _ in one.labels if value}
    if not labelled or any(fault.severity == ERROR for one in labelled for fault in one.faults):
        return
    if not found:
        yield listing.source, Fault("empty", "labelled voxels", "none in any label map", "label the data")
    known = found if listing.classes is None else listing.classes
    for value, name in (listing.classes or {}).items():
        if value and found and value not in found:
            fault = Fault("class", f"label {value} ({name})", "none in any label map", "check the labels", WARNING)
            yield listing.source, fault
    missing = _gaps(known)
    if missing:
        got = f"none for {', '.join(map(str, missing[:MOST_GAPS]))}{' and more' * (len(missing) > MOST_GAPS)}"
        fault = Fault("gap", "labels without gaps", got, "number them from 0 without gaps", WARNING)
        yield listing.source, fault


def _gaps(known: Collection[float]) -> list[int]:
    """The first whole numbers that are missing below the largest, without counting up to it: it may be 2e9."""
    missing, number, largest = [], 1, max(known, default=0)
    while number < largest and len(missing) <= MOST_GAPS and len(known) < MOST_LABELS:
        missing += [number] if number not in known else []
        number += 1
    return missing
