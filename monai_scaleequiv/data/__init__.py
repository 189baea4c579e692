"""Reading and writing volumes: input lists, checks, voxel sizes, label maps on the input's own grid."""

from monai_scaleequiv.data._audit import check_dataset
from monai_scaleequiv.data._audit_listing import task_datalist
from monai_scaleequiv.data._audit_report import DatasetReport
from monai_scaleequiv.data._check import CheckGridd, CheckLabeld, CheckVolumed
from monai_scaleequiv.data._datalist import nifti_datalist
from monai_scaleequiv.data._guards import CheckFiled, CheckSpacingd
from monai_scaleequiv.data._label_maps import LabelMapInferer
from monai_scaleequiv.data._output_dir import claim_output_dir
from monai_scaleequiv.data._phantom import make_phantom_dataset
from monai_scaleequiv.data._prepare import PrepareBatchSpacing
from monai_scaleequiv.data._scale_map import TakeScaleMapd
from monai_scaleequiv.data._tolerant import TolerantDataset, TolerantEvaluator
from monai_scaleequiv.data._weights import PlainWeightsLoader, read_weights
from monai_scaleequiv.data._windows import MillimetreWindowInferer
from monai_scaleequiv.data._writer import InputGridWriter

__all__ = [
    "CheckFiled",
    "CheckGridd",
    "CheckLabeld",
    "CheckSpacingd",
    "CheckVolumed",
    "DatasetReport",
    "InputGridWriter",
    "LabelMapInferer",
    "MillimetreWindowInferer",
    "PlainWeightsLoader",
    "PrepareBatchSpacing",
    "TakeScaleMapd",
    "TolerantDataset",
    "TolerantEvaluator",
    "check_dataset",
    "claim_output_dir",
    "make_phantom_dataset",
    "nifti_datalist",
    "read_weights",
    "task_datalist",
]
