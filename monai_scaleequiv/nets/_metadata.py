"""Metadata of images past a network."""

from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor


def with_metadata(forward: Callable[..., torch.Tensor], x: MetaTensor, *args: Any) -> MetaTensor:
    """The network's answer with the image's metadata, handed on at once rather than from each layer to the next."""
    y = MetaTensor(forward(x.as_tensor(), *args))
    y.copy_meta_from(x)
    return y
