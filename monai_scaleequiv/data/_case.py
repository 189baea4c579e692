"""One case of a data set, and the list of all."""

from dataclasses import dataclass, field
from typing import Any

from monai_scaleequiv.data.rules import Finding


@dataclass(frozen=True)
class Case:
    """One or several images, each with some of the channels, their label map, and the place on the list."""

    images: tuple[str, ...]
    label: str | None
    place: str
    part: str = "training"
    fold: Any = None

    @property
    def files(self) -> list[tuple[str, bool]]:
        """Its files, the first image first, with whether each is the label map."""
        return [(path, False) for path in self.images] + ([] if self.label is None else [(self.label, True)])


@dataclass
class Listing:
    """The cases of a data set, what it says about them, and what is wrong with the list itself."""

    source: str
    cases: list[Case] = field(default_factory=list)
    classes: dict[int, str] | None = None
    channels: int | None = None
    channel_names: tuple[str, ...] = ()
    spatial_dims: int = 3
    coded: bool = False  # whether labels are a code, whose gaps are meant
    findings: list[tuple[str, Finding]] = field(default_factory=list)

    @property
    def files(self) -> list[tuple[str, bool]]:
        """Each file once, images first, with whether it is a label map."""
        return sorted(dict.fromkeys(file for case in self.cases for file in case.files), key=lambda file: file[1])

    def report_missing_labels(self, hint: str = "add it to the list") -> None:
        """Adds a finding for each case that has to have a label map and has none."""
        for case in self.cases:
            if case.label is None and case.part != "test":
                finding = Finding("unpaired", "a label map", f"none at {case.place}", hint)
                self.findings.append((case.images[0], finding))
