"""Entries in MONAI's layer factories: ``Conv["SCALE_GROUP", 3](8, 16)``."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from monai.networks.layers.factories import Act, Conv, Dropout, LayerFactory, Norm, Pool
from torch import nn

from monai_scaleequiv.layers._conv import ScaleGroupConv, ScaleLiftingConv
from monai_scaleequiv.layers._dropout import ScaleDropout
from monai_scaleequiv.layers._instance_norm import SplitInstanceNorm2d, SplitInstanceNorm3d
from monai_scaleequiv.layers._per_scale import PerScale, ScalePointwiseConv

_CONVS = {"SCALE_LIFTING": ScaleLiftingConv, "SCALE_GROUP": ScaleGroupConv, "SCALE_POINTWISE": ScalePointwiseConv}


def register_layers() -> None:
    """Adds this package's layers to MONAI's factories; names that are already there stay as they are."""
    for name, conv in _CONVS.items():
        _add(Conv, name, lambda dim, conv=conv: partial(conv, dim))
    for factory, names in ((Norm, ("BATCH", "INSTANCE", "GROUP")), (Pool, ("MAX", "AVG"))):
        for name in names:
            _add(factory, f"SCALE_{name}", partial(_per_scale_builder, factory, name))
    _add(Norm, "SPLIT_INSTANCE", lambda dim: {2: SplitInstanceNorm2d, 3: SplitInstanceNorm3d}[dim])
    _add(Dropout, "SCALE_DROPOUT", lambda dim=None: ScaleDropout)
    _add(Act, "SILU", lambda: nn.SiLU)


def _add(factory: LayerFactory, name: str, make: Callable[..., Any]) -> None:
    if name not in factory.names:
        factory.add_factory_callable(name, make, f"{name} of monai_scaleequiv")


def _per_scale_builder(factory: LayerFactory, name: str, dim: int) -> Callable[..., PerScale]:
    layer_type = factory[name, dim]

    def build(*args: Any, **kwargs: Any) -> PerScale:
        return PerScale(layer_type(*args, **kwargs))

    # MONAI looks for `num_features` and the like in the signature.
    vars(build)["__signature__"] = inspect.signature(layer_type)
    return build
