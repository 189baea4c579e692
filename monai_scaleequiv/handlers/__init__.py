"""Ignite handlers that MONAI does not have."""

from monai_scaleequiv.handlers._epoch_seed import EpochSeedHandler
from monai_scaleequiv.handlers._equivariance import EquivarianceHandler
from monai_scaleequiv.handlers._output import LateSummaryWriter, OutputDirHandler, TrainingRecordHandler
from monai_scaleequiv.handlers._overlay import draw_overlay, legend_lines
from monai_scaleequiv.handlers._process_group import leave_process_group
from monai_scaleequiv.handlers._report import MetricsReportSaver
from monai_scaleequiv.handlers._resume import ResumeCheckpointLoader, WorkflowState
from monai_scaleequiv.handlers._saver import ResumableCheckpointSaver
from monai_scaleequiv.handlers._stop import NonFiniteLossHandler, StopSignalHandler
from monai_scaleequiv.handlers._sweep import ScaleSweep
from monai_scaleequiv.handlers._training_pictures import TrainingCurve, ValidationOverlay
from monai_scaleequiv.handlers._weights import RequireWeightsHandler, WeightsCheckpointLoader

__all__ = [
    "EpochSeedHandler",
    "EquivarianceHandler",
    "LateSummaryWriter",
    "MetricsReportSaver",
    "NonFiniteLossHandler",
    "OutputDirHandler",
    "RequireWeightsHandler",
    "ResumableCheckpointSaver",
    "ResumeCheckpointLoader",
    "ScaleSweep",
    "StopSignalHandler",
    "TrainingCurve",
    "TrainingRecordHandler",
    "ValidationOverlay",
    "WeightsCheckpointLoader",
    "WorkflowState",
    "draw_overlay",
    "leave_process_group",
    "legend_lines",
]
