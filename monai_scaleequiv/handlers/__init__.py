"""Ignite handlers and metrics that MONAI does not have."""

from monai_scaleequiv.handlers._checkpoint_files import claim_checkpoint_dir
from monai_scaleequiv.handlers._checkpoints import ResumableCheckpointSaver, ResumeHandler
from monai_scaleequiv.handlers._data_check import DataCheckHandler
from monai_scaleequiv.handlers._dice import AbsentClassDiceMetric
from monai_scaleequiv.handlers._epoch_seed import EpochSeedHandler, WorkflowState
from monai_scaleequiv.handlers._equivariance import EquivarianceHandler
from monai_scaleequiv.handlers._hausdorff import SpacingHausdorffDistanceMetric
from monai_scaleequiv.handlers._process_group import leave_process_group
from monai_scaleequiv.handlers._progress import EngineProgressBar
from monai_scaleequiv.handlers._stop import NonFiniteLossHandler, StopSignalHandler

__all__ = [
    "AbsentClassDiceMetric",
    "DataCheckHandler",
    "EngineProgressBar",
    "EpochSeedHandler",
    "EquivarianceHandler",
    "NonFiniteLossHandler",
    "ResumableCheckpointSaver",
    "ResumeHandler",
    "SpacingHausdorffDistanceMetric",
    "StopSignalHandler",
    "WorkflowState",
    "claim_checkpoint_dir",
    "leave_process_group",
]
