"""Reading and writing volumes: input lists, checks, label maps on the input's own grid."""

from monai_scaleequiv.data._check import CheckLabeld, CheckVolumed
from monai_scaleequiv.data._datalist import nifti_datalist
from monai_scaleequiv.data._phantom import make_phantom_dataset
from monai_scaleequiv.data._writer import InputGridWriter

__all__ = ["CheckLabeld", "CheckVolumed", "InputGridWriter", "make_phantom_dataset", "nifti_datalist"]
