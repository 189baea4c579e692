"""Reading a NIfTI file once, from its first byte to its last, with its checksum, header and length verified."""

import copy
import gzip
import io
import math
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data import rules
from monai_scaleequiv.data.rules import Finding

MAX_VOXELS = 2**31  # 8 GiB as float32; a CT of 1200 x 1200 x 900 voxels has 60 % of it
PIECE = 1 << 22  # bytes
KINDS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the length of the header
MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0")}  # some leave the line ends out
MOST_LABELS = 1000  # that are counted
COPY = "copy or download it again"


@dataclass
class VolumeFacts:
    """What one reading of a file finds out: of the header, and for the data check of the voxels, too."""

    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    affine: list[list[float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    nonfinite: int = 0
    minimum: float | None = None  # of the finite voxels
    maximum: float | None = None
    labels: list[list[float]] = field(default_factory=list)  # value and number of voxels
    digest: str = ""  # the same for files with the same content


class VolumeError(ValueError):
    """A file that cannot be read, and why; a data loader makes it anew in its own process, from the text alone."""

    def __init__(self, finding: Any, path: PathLike = "") -> None:
        super().__init__(f"{os.fspath(path)}: {finding}" if path else str(finding))
        self.finding = finding


class CheckedNibabelReader(NibabelReader):
    """MONAI's ``NibabelReader``, which verifies what it reads, for ``LoadImaged(reader=...)``.

    A ``.gz`` file is read to its end, so that its checksum counts; the file has as many voxels as its header promises
    (zeros after them are padding), real numbers, an invertible affine that pixdim agrees with, and mm.

    Args:
        max_voxels: how many voxels a file may have; a few packed megabytes can hold a volume that fills the memory.
        options: see ``NibabelReader``.

    Raises:
        ValueError: in one line with the file.

    Example::

        >>> from monai.transforms import LoadImage
        >>> LoadImage(CheckedNibabelReader())("no.nii.gz")
        Traceback (most recent call last):
        monai_scaleequiv.data._read.VolumeError: no.nii.gz: expected a file, got none; restore it.
    """

    def __init__(self, max_voxels: int = MAX_VOXELS, **options: Any) -> None:
        super().__init__(**options)
        self.max_voxels = max_voxels

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Takes note of the paths alone: where this raises, ``LoadImage`` turns to readers that verify nothing."""
        self.filenames = ensure_tuple(data)
        return self.filenames

    def get_data(self, img: Sequence[PathLike]) -> tuple[np.ndarray, dict]:
        """Reads a file, or several whose volumes become the channels of one."""
        images: list[nib.Nifti1Image] = []
        for path in img:
            image, facts = read_volume(path, self.max_voxels)
            first = images[0] if images else image
            apart = rules.grid(image.shape[:3], image.affine, first.shape[:3], first.affine, os.fspath(img[0]))
            rules.raise_first(os.fspath(path), *facts.findings, apart)
            images.append(correct_nifti_header_if_necessary(image))
        # Threads share a reader, and MONAI's own looks at the names that were read last.
        reader = copy.copy(self)
        reader.filenames = tuple(img)
        return NibabelReader.get_data(reader, images)


def read_volume(path: PathLike, max_voxels: int = MAX_VOXELS) -> tuple[nib.Nifti1Image, VolumeFacts]:
    """Reads a NIfTI file to its end.

    Args:
        path: the file.
        max_voxels: how many voxels it may have; the header is read first.

    Returns:
        image whose voxels are in memory, as stored; facts of its header, with findings.

    Raises:
        ValueError: in one line, when the file cannot be read, is damaged or not as long as its header says.

    Example::

        >>> read_volume("no.nii.gz")
        Traceback (most recent call last):
        monai_scaleequiv.data._read.VolumeError: no.nii.gz: expected a file, got none; restore it.
    """
    try:
        with _open(path) as file:
            return _read(file, max_voxels)
    except VolumeError as error:
        finding = error.finding
    except EOFError:
        finding = Finding("file", "a whole gzip stream", "one that is cut off", COPY)
    except (gzip.BadGzipFile, zlib.error) as error:
        finding = Finding("file", "a sound gzip stream", f"a damaged one ({error})", COPY)
    except FileNotFoundError:
        got = f"a link to {Path(path).readlink()}, which is none" if os.path.islink(path) else "none"  # noqa: PTH114
        finding = Finding("missing", "a file", got, "restore it")
    except OSError as error:
        finding = Finding("unreadable", "a file that can be read", error.strerror or str(error), "allow or repair it")
    raise VolumeError(finding, path)


def read_facts(path: PathLike, label: bool = False) -> VolumeFacts:
    """Everything about a file, be it damaged or not."""
    try:
        image, facts = read_volume(path)
    except VolumeError as error:
        return VolumeFacts(findings=[error.finding])
    if rules.dtype(image.get_data_dtype()) is None:
        _add_voxels(facts, image, label)
    return facts


def _open(path: PathLike) -> BinaryIO:
    """Opens a file, unpacking ``.gz``; a named pipe, which may never have anything to read, is not opened."""
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a name that no file can have
        raise FileNotFoundError from None
    if not stat.S_ISREG(mode):
        got = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise VolumeError(Finding("unreadable", "a file", got, "give the file itself"))
    unpack = os.fspath(path).lower().endswith(".gz")
    return cast(BinaryIO, gzip.open(path) if unpack else Path(path).open("rb"))


def _read(file: BinaryIO, max_voxels: int) -> tuple[nib.Nifti1Image, VolumeFacts]:
    start = file.read(4)
    size = next((s for s in KINDS for order in ("little", "big") if s == int.from_bytes(start, order)), 0)
    content = start + file.read(size - 4) if size else b""
    magic = content[344:348] if size == 348 else content[4:12]
    if not size or len(content) < size or magic not in MAGIC[size]:
        # nibabel and ITK take a file without the mark for Analyze, and drop its affine.
        got = f"a file that begins with {start!r}, with the mark {magic!r}"
        raise VolumeError(Finding("file", "a NIfTI header", got, "copy it again or convert it to NIfTI"))
    header = KINDS[size].header_class(content, check=False)
    facts = _facts_of(header)
    wrong = _storage(header, size) or rules.voxels(facts.shape, max_voxels)
    if wrong:
        raise VolumeError(wrong)
    length = math.prod(facts.shape) * header.get_data_dtype().itemsize
    # In pieces, for what a header promises may be more than there is memory.
    stream, left = io.BytesIO(content), header.get_data_offset() + length - size
    stream.seek(size)
    while left > 0 and (piece := file.read(min(PIECE, left))):
        left -= stream.write(piece)
    if left > 0:
        raise VolumeError(Finding("file", f"{length} bytes of voxels", str(max(length - left, 0)), COPY))
    while rest := file.read(PIECE):
        if rest.count(0) < len(rest):  # zeros are padding; anything else is what the header leaves out
            raise VolumeError(Finding("file", f"{length} bytes of voxels", "more of them", COPY))
    stream.seek(0)
    return KINDS[size].from_stream(stream), facts


def _facts_of(header: nib.Nifti1Header) -> VolumeFacts:
    if header["pixdim"][0] == 0:  # the norm has 1 or -1 there, and readers take this for 1
        header["pixdim"][0] = 1
    try:
        header.get_slope_inter()
        shape, matrix = [int(n) for n in header.get_data_shape()], np.asarray(header.get_best_affine(), np.float64)
        facts = VolumeFacts(shape, str(header.get_data_dtype()), matrix.tolist(), rules.header(header))
        got = "" if min(shape, default=0) > 0 else f"shape {tuple(shape)}"
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        got = f"one where {' '.join(str(error).split())}"
    if got:
        raise VolumeError(Finding("file", "a sound NIfTI header", got, rules.HEADER_HINT))
    return facts


def _storage(header: nib.Nifti1Header, size: int) -> Finding | None:
    """Fields that contradict the data type and the header's own length, or have no meaning at all."""
    # nibabel's own check passes an offset of 0, and reports every offset that is no multiple of 16.
    bits, first = 8 * header.get_data_dtype().itemsize, size + 4  # bytes that announce extensions
    fields = [(f"bitpix {bits}", int(header["bitpix"]), range(bits, bits + 1))]
    fields += [(f"voxels from byte {first} on", header.get_data_offset(), range(first, 2**62))]
    fields += [(f"{name} from 0 to 5", int(header[name]), range(6)) for name in ("sform_code", "qform_code")]
    hint = "copy it again or correct its header"
    return next((Finding("file", expected, str(got), hint) for expected, got, good in fields if got not in good), None)


def _add_voxels(facts: VolumeFacts, image: nib.Nifti1Image, label: bool) -> None:
    """Adds what the voxels show; their values are counted for label maps."""
    stored: Any = image.dataobj
    voxels, slope, inter = np.ravel(stored.get_unscaled(), order="F"), float(stored.slope), float(stored.inter)
    digest = blake2b(f"{facts.shape}{facts.dtype}{slope}{inter}".encode(), digest_size=16)
    digest.update(voxels.data)
    facts.digest = digest.hexdigest()
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        facts.nonfinite, voxels = int(np.count_nonzero(~finite)), voxels if finite.all() else voxels[finite]
    if not voxels.size:
        return
    facts.minimum, facts.maximum = sorted(float(end) * slope + inter for end in (voxels.min(), voxels.max()))
    if max(abs(facts.minimum), abs(facts.maximum)) > float(np.finfo(np.float32).max):  # loading makes infinity of it
        got, hint = f"{facts.minimum:.4g} to {facts.maximum:.4g}", "correct scl_slope and scl_inter in its header"
        facts.findings.append(Finding("range", "values within float32", got, hint))
    if label:
        facts.labels = _counts(voxels, slope, inter)


def _counts(voxels: np.ndarray, slope: float, inter: float) -> list[list[float]]:
    """Values, as loading has them, and counts: 10 times a slope of 0.1, itself rounded, is 1 as float32."""
    # Label maps have long runs of one value: sorting the runs takes far less time than sorting the voxels.
    starts = np.flatnonzero(np.concatenate([[True], voxels[1:] != voxels[:-1]]))
    values, run = np.unique(voxels[starts], return_inverse=True)
    numbers = np.bincount(run, weights=np.diff(starts, append=voxels.size))[:MOST_LABELS]
    with np.errstate(over="ignore"):  # which is a finding of its own
        loaded = (values[:MOST_LABELS].astype(np.float64) * slope + inter).astype(np.float32).astype(np.float64)
    merged, where = np.unique(loaded, return_inverse=True)
    return [list(pair) for pair in zip(merged.tolist(), np.bincount(where, weights=numbers).tolist(), strict=True)]
