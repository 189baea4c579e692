"""Where layers leave the way of their own."""

import torch
from torch.autograd import forward_ad


def takes_torchs_own() -> bool:
    """Whether layers run torch's own operators alone, which is slower.

    In tracing and export, as whoever loads the result need not have this package. Under the transforms of
    ``torch.func`` and in forward-mode differentiation too: operators of a package have no rules for the first, and a
    derivative of zero, without a word, in the second (torch 2.13).
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return torch.compiler.is_exporting()
    return _is_transformed() or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def needs_no_operator(*tensors: torch.Tensor) -> bool:
    """Whether what an operator of this package does may be called as a function, as calling the operator takes 0.3 ms.

    Nothing may follow what it does: no gradient, compiler, transform or subclass of a tensor.
    """
    is_plain = all(type(x) is torch.Tensor for x in tensors) and not torch.is_grad_enabled()
    return is_plain and not torch.compiler.is_compiling() and not _is_transformed()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()
