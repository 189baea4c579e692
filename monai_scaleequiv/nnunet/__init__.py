"""nnU-Net v2: its trainers for these networks, and the networks as entries of its plans files.

nnU-Net looks the folder ``TRAINERS`` through where the environment variable ``nnUNet_extTrainer`` names it. Nothing
here needs nnU-Net before it asks for a network or a trainer.
"""

from pathlib import Path

from monai_scaleequiv.nnunet._planned import PlannedPyramid, PlannedRepUXNet, PlannedSEUNet

TRAINERS = Path(__file__).parent / "trainers"

__all__ = ["TRAINERS", "PlannedPyramid", "PlannedRepUXNet", "PlannedSEUNet"]
