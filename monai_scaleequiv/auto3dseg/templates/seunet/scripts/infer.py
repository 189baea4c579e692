"""Where Auto3DSeg looks for the class that predicts."""

from monai_scaleequiv.auto3dseg import InferClass

__all__ = ["InferClass"]
