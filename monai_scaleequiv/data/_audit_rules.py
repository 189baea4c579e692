"""The rules of the data check: on one file, on a case, and on the data set as a whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from monai_scaleequiv.data._audit_listing import Case, Listing
from monai_scaleequiv.data._datalist import stem_of
from monai_scaleequiv.data._faults import (
    WARNING,
    Fault,
    affine_fault,
    axes_fault,
    channels_fault,
    finite_fault,
    grid_fault,
    label_fault,
    pixdim_fault,
    spacing_fault,
    spacing_of,
)
from monai_scaleequiv.data._volume_file import VolumeFacts

__all__ = ["all_faults", "files_of"]

Facts = Mapping[tuple[str, bool], VolumeFacts]
Finding = tuple[str, Fault]


def files_of(listing: Listing) -> list[tuple[str, bool]]:
    """Each file once, with whether it is a label map.

    Example::

        >>> files_of(Listing("data", [Case(("a.nii",), "b.nii", "data[0]")]))
        [('a.nii', False), ('b.nii', True)]
    """
    files = [(path, False) for case in listing.cases for path in case.images]
    files += [(case.label, True) for case in listing.cases if case.label is not None]
    return list(dict.fromkeys(files))


def all_faults(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Everything that is wrong, as file and fault.

    Args:
        listing: the cases.
        facts: by path and whether it is a label map.

    Example::

        >>> list(all_faults(Listing("data"), {}))
        [('data', Fault(kind='empty', expected='at least one case', got='none', remedy='complete the list', ...
    """
    if not listing.cases:
        yield listing.source, Fault("empty", "at least one case", "none", "complete the list")
    yield from listing.faults
    for file, label in files_of(listing):
        for fault in _of_file(facts[file, label], label, listing):
            yield file, fault
    for case in listing.cases:
        yield from _of_case(case, facts, listing.spatial_dims)
    yield from _channels(listing, facts)
    yield from _twice(listing)
    yield from _same_name(listing)
    yield from _same_content(listing, facts)
    yield from _classes(listing, facts)


def _of_file(facts: VolumeFacts, label: bool, listing: Listing) -> Iterator[Fault]:
    yield from facts.faults
    if not facts.shape:
        return
    shape, channels = _split(facts, listing.spatial_dims)
    dims = listing.spatial_dims
    found = [
        axes_fault(shape, dims),
        channels_fault(channels, 1) if label and channels is not None else None,
        finite_fault(facts.nonfinite),
        affine_fault(facts.affine),
    ]
    if found[-1] is None or found[-1].kind == "shear":
        found.append(spacing_fault(spacing_of(facts.affine)[:dims]))
        found.append(pixdim_fault(facts.pixdim, facts.affine, facts.has_qform))
    if facts.unit not in ("mm", "unknown"):
        found.append(Fault("unit", "mm as unit of length", facts.unit, "convert the header to mm", WARNING))
    if label and not facts.nonfinite:
        classes = None if listing.classes is None else list(listing.classes)
        found.append(label_fault([value for value, _ in facts.labels], classes))
    if facts.minimum is not None and facts.minimum == facts.maximum:
        found.append(_constant(facts, label))
    yield from (fault for fault in found if fault is not None)


def _constant(facts: VolumeFacts, label: bool) -> Fault | None:
    if not label:
        got = f"{facts.minimum:g} in every voxel"
        return Fault("constant", "an image that varies", got, "leave the case out", WARNING)
    if facts.minimum == 0:
        return Fault("empty", "labelled voxels", "none: 0 in every voxel", "label it or leave the case out", WARNING)
    return None


def _of_case(case: Case, facts: Facts, spatial_dims: int) -> Iterator[Finding]:
    first = facts[case.images[0], False]
    others = [(path, False) for path in case.images[1:]] + ([] if case.label is None else [(case.label, True)])
    for key in others:
        other = facts[key]
        shapes = [_split(f, spatial_dims)[0] for f in (other, first)]
        if not first.shape or not other.shape or {len(shape) for shape in shapes} != {spatial_dims}:
            continue  # reported already
        # With a bad affine, which is reported as well, the distance of corners has no meaning.
        affines = [None if affine_fault(f.affine, float("inf")) else f.affine for f in (other, first)]
        fault = grid_fault(shapes[0], affines[0], shapes[1], affines[1], "image", case.images[0])
        if fault is not None:
            yield key[0], fault


def _channels(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Channels against the list of modalities, else against what most cases have."""
    counts = {}
    for case in listing.cases:
        parts = [_split(facts[path, False], listing.spatial_dims)[1] for path in case.images]
        if None not in parts:
            counts[case.images[0]] = sum(parts)
    if not counts:
        return
    expected = Counter(counts.values()).most_common(1)[0][0] if listing.channels is None else listing.channels
    for path, count in counts.items():
        fault = channels_fault(count, expected)
        if fault is not None:
            yield path, fault


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
            yield file, Fault(**{**vars(fault), "severity": WARNING}) if label else fault


def _classes(listing: Listing, facts: Facts) -> Iterator[Finding]:
    """Classes that no label map has, and gaps, which one-hot coding cannot take."""
    labelled = [facts[case.label, True] for case in listing.cases if case.label is not None]
    found = {value for one in labelled for value, _ in one.labels if value}
    if not labelled or any(one.faults for one in labelled):
        return
    if not found:
        yield listing.source, Fault("empty", "labelled voxels", "none in any label map", "label the data")
    known = found if listing.classes is None else listing.classes
    for value, name in (listing.classes or {}).items():
        if value and found and value not in found:
            fault = Fault("class", f"label {value} ({name})", "none in any label map", "check the labels", WARNING)
            yield listing.source, fault
    missing = sorted(set(range(1, 1 + int(max(known, default=0)))) - set(known)) if len(known) < 1000 else []
    if missing:
        got = f"none for {', '.join(map(str, missing[:5]))}{' and more' * (len(missing) > 5)}"
        fault = Fault("gap", "labels without gaps", got, "number them from 0 without gaps", WARNING)
        yield listing.source, fault


def _split(facts: VolumeFacts, spatial_dims: int) -> tuple[list[int], int | None]:
    """Spatial shape and number of channels, None where the shape has too few or too many axes for that."""
    shape = list(facts.shape)
    while len(shape) > spatial_dims and shape[-1] == 1:
        shape.pop()
    if len(shape) == spatial_dims:
        return shape, 1
    if len(shape) == spatial_dims + 1:
        return shape[:-1], shape[-1]
    return shape, None
