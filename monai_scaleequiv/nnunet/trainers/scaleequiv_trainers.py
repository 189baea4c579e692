"""nnU-Net's trainer with other networks: the plan, its network's class exchanged.

nnU-Net imports this file by its bare name, and forgets it again: it holds the trainers alone.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


class nnUNetTrainerSEUNet(nnUNetTrainer):
    """Trains :py:class:`monai_scaleequiv.nnunet.PlannedSEUNet`."""

    network_class_name = "monai_scaleequiv.nnunet.PlannedSEUNet"

    @classmethod
    def build_network_architecture(
        cls, plans_manager: Any, configuration_manager: Any, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:  # fmt: skip
        """The plan's network, of the class that the trainer names."""
        return get_network_from_plans(
            cls.network_class_name,
            {
                **configuration_manager.network_arch_init_kwargs,
                "network_class_name": configuration_manager.network_arch_class_name,
            },
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )


class nnUNetTrainerRepUXNet(nnUNetTrainerSEUNet):
    """Trains :py:class:`monai_scaleequiv.nnunet.PlannedRepUXNet`."""

    network_class_name = "monai_scaleequiv.nnunet.PlannedRepUXNet"


class nnUNetTrainerScalePyramid(nnUNetTrainerSEUNet, nnUNetTrainerNoDeepSupervision):
    """Trains a :py:class:`monai_scaleequiv.nnunet.PlannedPyramid` around the plan's own network."""

    network_class_name = "monai_scaleequiv.nnunet.PlannedPyramid"
