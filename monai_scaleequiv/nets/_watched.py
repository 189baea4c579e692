"""Whether anybody would notice that modules are not called as they stand."""

from torch import nn
from torch.nn.modules import module as torch_module


def is_watched(*modules: nn.Module) -> bool:
    """Whether one of the modules has hooks or a ``forward`` of its own, or hooks are set for all modules."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)
