"""Entries in MONAI's layer factories, so that layers can be built by name: ``Conv["SCALE_GROUP", 3](8, 16)``."""

import inspect
from collections.abc import Callable
from functools import partial

from monai.networks.layers.factories import Act, Conv, Dropout, LayerFactory, Norm, Pool
from torch import nn

from monai_scaleequiv.layers._conv import ScaleGroupConv, ScaleLiftingConv
from monai_scaleequiv.layers._dropout import ScaleDropout
from monai_scaleequiv.layers._per_scale import PerScale, ScalePointwiseConv


def _per_scale_builder(layer_type: type[nn.Module]) -> Callable[..., PerScale]:
    def build(*args, **kwargs) -> PerScale:
        return PerScale(layer_type(*args, **kwargs))

    # MONAI looks for `num_features` and the like in the signature.
    build.__signature__ = inspect.signature(layer_type)
    return build


def _add(factory: LayerFactory, name: str, make: Callable, description: str) -> None:
    if name not in factory.names:
        factory.add_factory_callable(name, make, description)


def register_layers() -> None:
    """Adds this package's layers to MONAI's factories; names that are already there stay as they are.

    Example::

        >>> register_layers()
        >>> Conv["SCALE_GROUP", 3](8, 4)(torch.rand(2, 4, 8, 9, 9, 9)).shape
        torch.Size([2, 4, 4, 9, 9, 9])
    """
    for name, conv in (
        ("SCALE_LIFTING", ScaleLiftingConv),
        ("SCALE_GROUP", ScaleGroupConv),
        ("SCALE_POINTWISE", ScalePointwiseConv),
    ):
        _add(Conv, name, lambda dim, conv=conv: partial(conv, dim), f"{conv.__name__} for features with a scale axis.")
    for factory, names in ((Norm, ("BATCH", "INSTANCE", "GROUP")), (Pool, ("MAX", "AVG"))):
        for name in names:
            make = partial(_for_dimension, factory, name)
            _add(factory, f"SCALE_{name}", make, f"{name} at every scale of features with a scale axis.")
    _add(Dropout, "SCALE_DROPOUT", lambda dim=None: ScaleDropout, "Drops channels at all scales at once.")
    _add(Act, "SILU", lambda: nn.SiLU, "x * sigmoid(x)")


def _for_dimension(factory: LayerFactory, name: str, dim: int) -> Callable[..., PerScale]:
    return _per_scale_builder(factory[name, dim])
