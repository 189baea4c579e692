"""Lists, checks, reading and writing of volumes; weights and the record of a training."""

from monai_scaleequiv.data import rules
from monai_scaleequiv.data._cache_dataset import JoinedCacheDataset, files_hashing
from monai_scaleequiv.data._check_dataset import DatasetReport, check_dataset
from monai_scaleequiv.data._datalist import nifti_datalist
from monai_scaleequiv.data._errors import one_line, root_cause
from monai_scaleequiv.data._files import check_output_dir, whole_file
from monai_scaleequiv.data._listing import brats_label_values
from monai_scaleequiv.data._phantom import make_phantom_dataset
from monai_scaleequiv.data._read import CheckedNibabelReader, VolumeFacts, read_volume
from monai_scaleequiv.data._record import (
    case_sizes,
    compare_records,
    definition_of,
    read_record,
    record_differences,
    write_record,
)
from monai_scaleequiv.data._split import class_names, held_out, load_datalist, split_datalist
from monai_scaleequiv.data._weights import file_finding, load_weights, read_weights, weights_digest
from monai_scaleequiv.data._workers import loader_workers
from monai_scaleequiv.data._writer import InputGridWriter
from monai_scaleequiv.data.rules import Finding

__all__ = [
    "CheckedNibabelReader",
    "DatasetReport",
    "Finding",
    "InputGridWriter",
    "JoinedCacheDataset",
    "VolumeFacts",
    "brats_label_values",
    "case_sizes",
    "check_dataset",
    "check_output_dir",
    "class_names",
    "compare_records",
    "definition_of",
    "file_finding",
    "files_hashing",
    "held_out",
    "load_datalist",
    "load_weights",
    "loader_workers",
    "make_phantom_dataset",
    "nifti_datalist",
    "one_line",
    "read_record",
    "read_volume",
    "read_weights",
    "record_differences",
    "root_cause",
    "rules",
    "split_datalist",
    "weights_digest",
    "whole_file",
    "write_record",
]
