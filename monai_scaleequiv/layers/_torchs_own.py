"""Where layers leave the way of their own."""

import torch
from torch.autograd import forward_ad


def takes_torchs_own() -> bool:
    """Whether layers run torch's own operators alone, which is slower.

    In tracing and export, as whoever loads the result need not have this package. Under the transforms of
    ``torch.func`` and in forward-mode differentiation too: there operators of a package have no gradient, and a
    derivative of zero without a word (torch 2.13).
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return torch.compiler.is_exporting()
    return torch.jit.is_tracing()
