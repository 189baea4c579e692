"""Label maps and maps of numbers written on the grid of the image that they belong to."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import NibabelWriter
from monai.utils import ImageMetaKey, str2bool

from monai_scaleequiv.data._files import has_content, whole_file

MADE_BY = b"monai_scaleequiv: made by weights of sha256 "
COMMENT = 6  # code of a comment among NIfTI's header extensions


def maker_of(header: nib.Nifti1Header) -> str | None:
    """The digest of the weights that made a file, where its header says."""
    notes = [extension.get_content() for extension in header.extensions if _is_note(extension)]
    return notes[0].removeprefix(MADE_BY).decode("ascii", "replace") if notes else None


def _is_note(extension: Any) -> bool:
    return extension.get_code() == COMMENT and extension.get_content().startswith(MADE_BY)


class InputGridWriter(NibabelWriter):
    """Writes a NIfTI file with the input's header but for data type and maker, for MONAI's ``SaveImage(writer=...)``.

    MONAI's own writer makes a new header and loses the codes of qform and sform, the units and the description. The
    file appears complete or not at all.

    Args:
        output_dtype: of the file's values.
        overwrite: whether to replace a file that is there already; an empty one is in any case.
        skip_existing: whether to leave a file that is there as it is, and write nothing.
        made_by: digest of the weights (see ``weights_digest``), kept as a comment among the header's extensions.
        options: see ``NibabelWriter``.

    Raises:
        FileExistsError: when the file is there already, or is the input. ``SaveImage`` keeps only the text of these
            errors (see ``root_cause``).
        OSError: when the file cannot be written.
        ValueError: when the shape is not the input's, the input is not NIfTI, or a whole-number ``output_dtype`` does
            not hold the values as they are.

    Example::

        >>> from monai.transforms import SaveImaged
        >>> save = SaveImaged("pred", output_dir="labels", output_dtype="uint8", resample=False, writer=InputGridWriter)

    and with ``functools.partial(InputGridWriter, overwrite=True)`` to replace what is there.
    """

    def __init__(
        self,
        output_dtype: str | type = np.float32,
        overwrite: bool = False,
        skip_existing: bool = False,
        made_by: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(output_dtype=output_dtype, **options)
        self.overwrite = str2bool(str(overwrite))  # a text from MONAI's command line
        self.skip_existing = str2bool(str(skip_existing))
        self.made_by = made_by
        self.source = ""

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Remembers the input file's path; nothing is resampled."""
        self.source = str((meta_dict or {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Writes to a temporary file beside ``filename`` and moves it into place."""
        target = Path(filename)
        if os.path.realpath(target) == os.path.realpath(self.source):
            raise FileExistsError(f"{target} is the input itself; choose another output_dir.")
        taken = FileExistsError(f"{target} exists already; choose another output_dir, or set overwrite=true.")
        if has_content(target) and not self.overwrite:
            if self.skip_existing:
                return
            raise taken
        volume = self._on_input_grid()
        try:
            with whole_file(target, self.overwrite) as unfinished:
                nib.save(volume, unfinished)
        except FileExistsError:
            raise taken from None
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            hint = "make room" if is_full else "choose another output_dir"
            got = error.strerror or error
            raise OSError(f"{target}: expected a file that can be written, got {got}; {hint}.") from None

    def _on_input_grid(self) -> nib.Nifti1Image:
        image = nib.load(self.source)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"{self.source}: expected a NIfTI file, got {type(image).__name__}; convert it to NIfTI.")
        values, grid = np.asarray(self.data_obj), image.shape[:3]
        with np.errstate(invalid="ignore"):
            cast = values.astype(self.output_dtype, copy=False)
        bad = values[cast != values] if cast.dtype.kind in "iu" and cast is not values else np.empty(0)
        if bad.size:
            expected = f"values that {cast.dtype} holds as they are"
            raise ValueError(f"{self.source}: expected {expected}, got {bad[0]:g}; choose another output_dtype.")
        if len({(*shape, *[1] * 5)[:5] for shape in (cast.shape, grid)}) > 1:  # axes of one slice may be left out
            expected = f"a label map of shape {grid}"
            raise ValueError(f"{self.source}: expected {expected}, got {cast.shape}; invert the prediction first.")
        header = image.header.copy()
        header.set_data_dtype(cast.dtype)
        header.extensions[:] = [extension for extension in header.extensions if not _is_note(extension)]
        if self.made_by:
            header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, MADE_BY + self.made_by.encode()))
        header["cal_min"], header["cal_max"] = 0, 0  # the display range of intensities
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        return kind(cast.reshape(grid), image.affine, header)
