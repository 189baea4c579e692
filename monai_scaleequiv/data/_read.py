"""Reading a NIfTI file once, from its first byte to its last, with its checksum, header and length verified."""

import contextlib
import gzip
import math
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple
from nibabel.spatialimages import HeaderDataError

from monai_scaleequiv.data import rules
from monai_scaleequiv.data.rules import Finding

MAX_VOXELS = 2**31  # 8 GiB as float32; a CT of 1200 x 1200 x 900 voxels has 60 % of it
MOST_LABELS = 1000  # that are counted
PIECE = 1 << 22  # bytes
KINDS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the length of the header
FIRST_VOXEL = {348: 352, 540: 544}  # after the header and the four bytes that announce extensions
MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n", b"n+2\0\0\0\0\0")}  # some leave the line ends out
COPY = "copy or download it again"


class VolumeError(ValueError):
    """A file that cannot be read; ``finding`` says why."""

    finding: Finding


@dataclass
class VolumeFacts:
    """What one reading of a file finds out; everything can be stored as JSON.

    Args:
        shape: as in the header.
        dtype: how voxels are stored.
        affine: from voxels to mm.
        findings: what is wrong with the file itself.
        nonfinite: number of NaN and infinite voxels.
        minimum: of the finite voxels, None without any.
        maximum: likewise.
        labels: value and number of voxels, for label maps.
        digest: of header fields and voxels, the same for files with the same content.
    """

    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    affine: list[list[float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    nonfinite: int = 0
    minimum: float | None = None
    maximum: float | None = None
    labels: list[list[float]] = field(default_factory=list)
    digest: str = ""


class CheckedNibabelReader(NibabelReader):
    """MONAI's ``NibabelReader``, which verifies what it reads, for ``LoadImaged(reader=...)``.

    A ``.gz`` file is read to its end, so that its checksum counts; the file has as many voxels as its header promises
    (zeros after them are padding), real numbers, an invertible affine that pixdim agrees with, and mm.

    Args:
        max_voxels: how many voxels a file may have; a few packed megabytes can hold a volume that fills the memory.
        options: see ``NibabelReader``.

    Raises:
        ValueError: by ``get_data``, in one line with the file. ``read`` takes note of the names alone, for ``LoadImage``
            turns to readers that verify nothing where it raises.

    Example::

        >>> from monai.transforms import LoadImage
        >>> LoadImage(CheckedNibabelReader())("no.nii.gz")
        Traceback (most recent call last):
        monai_scaleequiv.data._read.VolumeError: no.nii.gz: expected a file, got none; restore it.
    """

    def __init__(self, max_voxels: int = MAX_VOXELS, **options: Any) -> None:
        super().__init__(**options)
        if not max_voxels >= 1:
            raise ValueError(f"max_voxels: expected at least 1, got {max_voxels}; give a larger number.")
        self.max_voxels = max_voxels

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """Takes note of a path, or of several whose volumes become the channels of one."""
        self.filenames = ensure_tuple(data)
        return self.filenames

    def get_data(self, img: Sequence[str | os.PathLike]) -> tuple[np.ndarray, dict]:
        """Reads what ``read`` has taken note of.

        Args:
            img: the paths.
        """
        images: list[nib.Nifti1Image] = []
        for path in img:
            image, facts = read_volume(path, self.max_voxels)
            found = list(facts.findings)
            if images:
                grids = image.shape[:3], image.affine, images[0].shape[:3], images[0].affine
                found += [rules.grid(*grids, os.fspath(img[0]))]
            rules.raise_first(os.fspath(path), found)
            images.append(correct_nifti_header_if_necessary(image))
        return super().get_data(images)


def read_volume(path: str | os.PathLike, max_voxels: int = MAX_VOXELS) -> tuple[nib.Nifti1Image, VolumeFacts]:
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
    with _named(path), _open(path) as file:
        kind, content = _read_header(path, file)
        header = kind.header_class(content, check=False)
        if header["pixdim"][0] == 0:  # the norm has 1 or -1 there, and readers take this for 1
            header["pixdim"][0] = 1
        facts = _facts_of(path, header)
        _raise(path, _storage(header) or rules.voxels(facts.shape, max_voxels))
        offset, size = header.get_data_offset(), math.prod(facts.shape) * header.get_data_dtype().itemsize
        content += file.read(offset - len(content) + size)
        if len(content) < offset + size:
            _raise(path, Finding("file", f"{size} bytes of voxels", str(max(len(content) - offset, 0)), COPY))
        while rest := file.read(PIECE):
            if rest.count(0) < len(rest):  # zeros are padding; anything else is what the header leaves out
                _raise(path, Finding("file", f"{size} bytes of voxels", "more of them", COPY))
        image = kind.from_bytes(content)
    image.set_filename(os.fspath(path))
    return image, facts


def read_facts(path: str | os.PathLike, label: bool = False) -> VolumeFacts:
    """Everything about a file, be it damaged or not.

    Args:
        path: a NIfTI file.
        label: whether to count the values.

    Example::

        >>> str(read_facts("no.nii.gz").findings[0])
        'expected a file, got none; restore it.'
    """
    try:
        image, facts = read_volume(path)
    except VolumeError as error:
        return VolumeFacts(findings=[error.finding])
    if rules.dtype(image.get_data_dtype()) is None:
        _add_voxels(facts, image, label)
    return facts


def _read_header(path: str | os.PathLike, file: IO[bytes]) -> tuple[type[nib.Nifti1Image], bytes]:
    start = file.read(4)
    size = next((s for s in KINDS for order in ("little", "big") if s == int.from_bytes(start, order)), 0)
    content = start + file.read(size - 4) if size else b""
    hint = "copy it again or convert it to NIfTI"
    if not size or len(content) < size:
        _raise(path, Finding("file", "a NIfTI header", f"a file that begins with {start!r}", hint))
    magic = content[344:348] if size == 348 else content[4:12]
    if magic not in MAGIC[size]:  # nibabel and ITK take such a file for Analyze, and drop its affine
        _raise(path, Finding("file", f"the NIfTI mark {MAGIC[size][0]!r}", repr(magic), hint))
    return KINDS[size], content


def _facts_of(path: str | os.PathLike, header: nib.Nifti1Header) -> VolumeFacts:
    try:
        shape = [int(n) for n in header.get_data_shape()]
        header.get_slope_inter()
        matrix = np.asarray(header.get_best_affine(), dtype=np.float64).tolist()
        facts = VolumeFacts(shape, str(header.get_data_dtype()), matrix, rules.header(header))
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        got = f"one where {' '.join(str(error).split())}"
        _raise(path, Finding("file", "a sound NIfTI header", got, "correct its header"))
    if min(shape, default=0) < 1:
        _raise(path, Finding("file", "a sound NIfTI header", f"shape {tuple(shape)}", "correct its header"))
    return facts


def _storage(header: nib.Nifti1Header) -> Finding | None:
    """Fields that contradict the data type and the header's own length, or have no meaning at all."""
    # nibabel's own check passes an offset of 0, and reports every offset that is no multiple of 16.
    dtype, bits, offset = header.get_data_dtype(), int(header["bitpix"]), int(header.get_data_offset())
    first, hint = FIRST_VOXEL[int(header["sizeof_hdr"])], "copy it again or correct its header"
    if bits != 8 * dtype.itemsize:
        return Finding("file", f"bitpix {8 * dtype.itemsize} for {dtype}", str(bits), hint)
    if offset < first:
        return Finding("file", f"voxels from byte {first} on", f"an offset of {offset}", hint)
    for name in ("sform_code", "qform_code"):
        if not 0 <= int(header[name]) <= 5:
            return Finding("file", f"{name} from 0 to 5", str(int(header[name])), hint)
    return None


def _add_voxels(facts: VolumeFacts, image: nib.Nifti1Image, label: bool) -> None:
    voxels = np.ravel(image.dataobj.get_unscaled(), order="F")
    slope, inter = (float(number) for number in (image.dataobj.slope, image.dataobj.inter))
    digest = blake2b(f"{facts.shape}{facts.dtype}{slope}{inter}".encode(), digest_size=16)
    digest.update(voxels)
    facts.digest = digest.hexdigest()
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        facts.nonfinite = voxels.size - int(np.count_nonzero(finite))
        voxels = voxels[finite] if facts.nonfinite else voxels
    if not voxels.size:
        return
    facts.minimum, facts.maximum = sorted(float(v) * slope + inter for v in (voxels.min(), voxels.max()))
    too_large = rules.float_range(facts.minimum, facts.maximum)
    facts.findings += [too_large] if too_large else []
    if label:
        facts.labels = _count(voxels, slope, inter)


def _count(voxels: np.ndarray, slope: float, inter: float) -> list[list[float]]:
    """Values, as loading has them, and counts: 10 times a slope of 0.1, itself rounded, is 1 as float32."""
    # Label maps have long runs of one value: sorting the runs takes far less time than sorting the voxels.
    starts = np.flatnonzero(np.concatenate([[True], voxels[1:] != voxels[:-1]]))
    lengths = np.diff(starts, append=voxels.size)
    values, run = np.unique(voxels[starts], return_inverse=True)
    counts: dict[float, int] = {}
    with np.errstate(over="ignore"):  # which is a finding of its own
        for value, count in zip(values[:MOST_LABELS].tolist(), np.bincount(run, lengths).tolist(), strict=False):
            loaded = float(np.float32(value * slope + inter))
            counts[loaded] = counts.get(loaded, 0) + int(count)
    return [[value, counts[value]] for value in sorted(counts)]


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a name is that of a NIfTI file; like readers do, it takes capitals for small letters."""
    return os.fspath(path).lower().endswith((".nii", ".nii.gz"))


def _open(path: str | os.PathLike) -> IO[bytes]:
    """Opens a file, unpacking ``.gz``; a named pipe, which may never have anything to read, is not opened."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"expected a path, got {type(path).__name__}; check it after it is loaded.")
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a name that no file can have
        raise FileNotFoundError from None
    if not stat.S_ISREG(mode):
        got = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        _raise(path, Finding("unreadable", "a file", got, "give the file itself"))
    if not is_nifti(path):
        _raise(path, Finding("file", "a .nii or .nii.gz file", "another name", "convert it to NIfTI"))
    return gzip.open(path) if os.fspath(path).lower().endswith(".gz") else open(path, "rb")  # noqa: PTH123


def _raise(path: str | os.PathLike, finding: Finding | None) -> None:
    if finding is not None:
        error = VolumeError(f"{os.fspath(path)}: {finding}")
        error.finding = finding
        raise error from None


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Turns what the decompressor and the system raise, which often leave out the file, into one line with it."""
    try:
        yield
    except EOFError:
        _raise(path, Finding("file", "a whole gzip stream", "one that is cut off", COPY))
    except (gzip.BadGzipFile, zlib.error) as error:
        _raise(path, Finding("file", "a sound gzip stream", f"a damaged one ({error})", COPY))
    except FileNotFoundError:
        target = f"a link to {Path(path).readlink()}, which is none" if Path(path).is_symlink() else "none"
        _raise(path, Finding("missing", "a file", target, "restore it"))
    except OSError as error:
        got = error.strerror or str(error)
        _raise(path, Finding("unreadable", "a file that can be read", got, "allow or repair it"))
