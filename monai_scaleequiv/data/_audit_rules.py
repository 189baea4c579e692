"""The rules of the data check: on one file and on a case; those on the whole set are called from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from monai_scaleequiv.data._audit_listing import Case, Listing, files_of
from monai_scaleequiv.data._audit_set import set_faults
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
from monai_scaleequiv.data._header_faults import place_fault, unit_fault, voxels_fault
from monai_scaleequiv.data._volume_file import VolumeFacts

__all__ = ["all_faults"]

Facts = Mapping[tuple[str, bool], VolumeFacts]
Finding = tuple[str, Fault]


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
    yield from set_faults(listing, facts)


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
        _warning(voxels_fault(facts.shape)),
        unit_fault(facts.unit),
        affine_fault(facts.affine),
    ]
    if found[-1] is None or found[-1].kind == "shear":
        found.append(spacing_fault(spacing_of(facts.affine)[:dims]))
        found.append(pixdim_fault(facts.pixdim, facts.affine, facts.has_qform))
        found.append(place_fault(facts.affine))
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
        affines = [None if _odd(f.affine) else f.affine for f in (other, first)]
        fault = grid_fault(shapes[0], affines[0], shapes[1], affines[1], "image", case.images[0])
        if fault is not None:
            yield key[0], fault


def _odd(affine: list[list[float]]) -> bool:
    return (affine_fault(affine, float("inf")) or place_fault(affine)) is not None


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


def _warning(fault: Fault | None) -> Fault | None:
    return None if fault is None else replace(fault, severity=WARNING)


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
