"""Ignite handlers and metrics that MONAI does not have."""

from monai_scaleequiv.handlers._checkpoints import ResumableCheckpointSaver, claim_checkpoint_dir
from monai_scaleequiv.handlers._data_check import DataCheckHandler
from monai_scaleequiv.handlers._equivariance import EquivarianceHandler
from monai_scaleequiv.handlers._hausdorff import SpacingHausdorffDistanceMetric
from monai_scaleequiv.handlers._progress import EngineProgressBar

__all__ = [
    "DataCheckHandler",
    "EngineProgressBar",
    "EquivarianceHandler",
    "ResumableCheckpointSaver",
    "SpacingHausdorffDistanceMetric",
    "claim_checkpoint_dir",
]
