"""Activations that are computed twice instead of being kept: gradient checkpointing."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Base of a network's blocks: with ``use_checkpoint``, training keeps their inputs and outputs alone.

    Around the call and not inside ``forward``, so that a subclass only names the block, and TorchScript sees the block.
    """

    use_checkpoint: bool = False

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.use_checkpoint and self.training:
            return run_checkpointed(self, super().__call__, *inputs)
        return super().__call__(*inputs)


def set_checkpointing(network: nn.Module, use_checkpoint: bool) -> None:
    """Chooses for all blocks of the kind in a network."""
    for module in network.modules():
        if isinstance(module, Checkpointed):
            module.use_checkpoint = use_checkpoint


def run_checkpointed(module: nn.Module, call: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    """Calls ``call``, which runs ``module``; what the backward pass needs but the inputs is computed again in it."""
    if torch.compiler.is_compiling():  # compiled, buffers are written to once by themselves
        return checkpoint(call, *inputs, use_reentrant=False)
    contexts = nullcontext(), _SpareBuffers(module)
    return checkpoint(call, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class _SpareBuffers:
    """Clones in place of the buffers: what is computed a second time leaves running statistics as they are.

    A context that can be entered again, for a graph that is kept can be gone through twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def __enter__(self) -> None:
        self.kept = [(module._buffers, dict(module._buffers)) for module in self.module.modules()]
        for buffers, originals in self.kept:
            buffers.update({k: v if v is None else v.clone() for k, v in originals.items()})

    def __exit__(self, *_error: object) -> None:
        for buffers, originals in self.kept:
            buffers.update(originals)
        self.kept = []
