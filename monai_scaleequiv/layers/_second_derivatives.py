"""Second derivatives of convolutions whose backward pass is an operator of its own."""

from collections.abc import Callable
from typing import Any

import torch


def gradients_of_convolution(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, convolve: Callable, gradients: Callable,
    of_input: bool, of_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``gradients(grad, x, weight, of_input, of_weight)``, with gradients of their own where these are to be kept.

    ``convolve(x, weight)`` is the convolution without its bias: linear in both, as its gradients are in all three.
    """
    if not torch.is_grad_enabled():
        return gradients(grad, x, weight, of_input, of_weight)
    return _Gradients.apply(grad, x, weight, convolve, gradients, of_input, of_weight)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *others: Any) -> tuple:
        ctx.save_for_backward(grad, x, weight)
        ctx.convolve, ctx.gradients, ctx.of_input, ctx.of_weight = others
        return ctx.gradients(grad, x, weight, ctx.of_input, ctx.of_weight)

    @staticmethod
    def backward(ctx: Any, grad_x: torch.Tensor, grad_weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, x, weight = ctx.saved_tensors
        both, of_grad, of_x, of_weight = (ctx.convolve, ctx.gradients), torch.zeros_like(grad), None, None
        if ctx.of_input:
            of_grad = of_grad + ctx.convolve(grad_x, weight)
            of_weight = gradients_of_convolution(grad, grad_x, weight, *both, False, True)[1]
        if ctx.of_weight:
            of_grad = of_grad + ctx.convolve(x, grad_weight)
            of_x = gradients_of_convolution(grad, x, grad_weight, *both, True, False)[0]
        return of_grad, of_x, of_weight, *[None] * 4
