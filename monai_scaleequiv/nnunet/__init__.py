"""nnU-Net v2: its trainers for these networks, and the networks as entries of its plans files.

nnU-Net looks through the folder ``TRAINERS`` where the environment variable ``nnUNet_extTrainer`` names it. Nothing
here needs nnU-Net before it asks for a network or a trainer.
"""

from monai_scaleequiv.nnunet._planned import TRAINERS, PlannedPyramid, PlannedRepUXNet, PlannedSEUNet

__all__ = ["TRAINERS", "PlannedPyramid", "PlannedRepUXNet", "PlannedSEUNet"]
