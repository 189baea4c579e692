"""Which runs there are, in order of priority."""

from benchmarks.dice.runs import variants
from benchmarks.dice.training import Run

RATES = (2e-3, 1e-2)  # beside the usual one
DESIGNS = (
    "canon_unet", "canon_pyramid", "pyramid_attentive", "pyramid_wide", "pyramid_deep", "pyramid_four", "pyramid_attentive_five",
    "pyramid_fine_steps", "canon_unet_wide", "canon_pyramid_narrow", "pyramid",
)  # fmt: skip


def selection() -> list[Run]:
    """Choices, on validation volumes: designs first, then learning rates."""
    hippocampus = Run("hippocampus", "unet_aug", 25, setting="validation")
    brats = Run("brats", "unet_aug", 20, setting="validation")
    acdc = Run("acdc", "unet_aug", 28, setting="validation")
    main = ("unet_aug", "pyramid_aug", "seunet_aug")
    return [
        *variants(hippocampus, network=main),
        *variants(hippocampus, network=DESIGNS[:4]),
        *variants(brats, network=main),
        *variants(acdc, network=("pyramid_mm_aug", "seunet_mm_aug", "unet_resampled_aug", "unet_aug")),
        *variants(hippocampus, network=DESIGNS[4:]),
        *variants(hippocampus, learning_rate=RATES, network=main),
        *variants(brats, learning_rate=RATES, network=main),
        *variants(brats, network=("canon_unet", "pyramid_attentive", "pyramid_wide")),
        *variants(hippocampus, network=("seunet_octaves_aug", "seunet_fine_aug")),
        *variants(acdc, learning_rate=RATES, network=("unet_aug", "unet_resampled_aug", "pyramid_mm_aug")),
    ]
