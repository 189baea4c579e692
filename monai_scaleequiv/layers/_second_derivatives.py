"""Second derivatives of layers that have a backward pass of their own."""

from collections.abc import Callable, Sequence

import torch


def gradients_with_graph(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor | None], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of ``function(*inputs)`` by torch's own formulas, which have gradients; None for input that needs none.

    It runs the function once more, on views: hooks on the inputs themselves would run here too.
    """
    views = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in views if x is not None and x.requires_grad]
    with torch.autocast("cpu" if grad.is_meta else grad.device.type, enabled=False):
        found = iter(torch.autograd.grad(function(*views), wanted, grad, create_graph=True) if wanted else ())
    return [next(found) if x is not None and x.requires_grad else None for x in views]
