"""Label maps and maps of numbers written on the grid of the image that they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter
from monai.utils import ImageMetaKey

__all__ = ["InputGridWriter"]


class InputGridWriter(NibabelWriter):
    """Writes a NIfTI file whose header is the input's but for the data type, for MONAI's ``SaveImage(writer=...)``.

    MONAI's own writer makes a new header and loses the codes of qform and sform, the units and the description. Here
    viewers and other tools see the label map, or with ``output_dtype="float32"`` a map of numbers, in exactly the
    input's space. The file appears complete or not at all.

    Raises:
        ValueError: when the label map's shape is not the input's (the prediction was not inverted), or the input is
            not NIfTI.

    Example::

        >>> from monai.transforms import SaveImaged
        >>> save = SaveImaged("pred", output_dir="labels", output_dtype="uint8", resample=False, writer=InputGridWriter)
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options) -> None:
        """Remembers the input file's path; nothing is resampled."""
        self.source = str((meta_dict or {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))

    def write(self, filename: os.PathLike | str, verbose: bool = False, **obj_kwargs) -> None:
        """Writes to a temporary file beside ``filename`` and moves it into place."""
        image = nib.load(self.source)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"{self.source}: expected a NIfTI file, got {type(image).__name__}; convert it to NIfTI.")
        labels = np.asarray(self.data_obj).astype(self.output_dtype)
        grid = image.shape[:3]
        if _without_end_ones(labels.shape) != _without_end_ones(grid):
            raise ValueError(
                f"{self.source}: expected a label map of shape {grid}, got {labels.shape}; invert the prediction first."
            )
        kind = nib.Nifti2Image if isinstance(image.header, nib.Nifti2Header) else nib.Nifti1Image
        header = image.header.copy()
        header.set_data_dtype(labels.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 0  # the display range of intensities
        target = Path(filename)
        temporary = target.with_name(f".{os.getpid()}-{target.name}")
        try:
            nib.save(kind(labels.reshape(grid), image.affine, header), temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _without_end_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
