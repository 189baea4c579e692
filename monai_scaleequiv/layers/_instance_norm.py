"""Instance norm whose sums over large volumes fill a GPU."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import split_args
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from monai_scaleequiv.layers._second_derivatives import gradients_with_graph
from monai_scaleequiv.layers._torchs_own import takes_torchs_own

# Torch's own kernels give each channel of each image one block of threads, in both directions and in the pass that
# writes the result too. A volume is therefore passed to them as this many times more channels, whose sums are joined.
_MOST_PARTS = 64
_LEAST_VOXELS = 2**17  # below, launching the few more kernels takes longer than what they save
_ENOUGH_BLOCKS = 1024


def instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """``F.instance_norm`` of images (B, C, ...), whose result is no view: what overwrites one makes three copies.

    Example::

        >>> x = torch.rand(2, 3, 8, 8, 8)
        >>> torch.allclose(instance_norm(x), torch.nn.functional.instance_norm(x), atol=1e-5)
        True
    """
    if has_torch_function_unary(x):  # a MetaTensor, which then wraps the result, and not each step on the way
        return handle_torch_function(instance_norm, (x,), x, weight, bias, eps)
    weight, bias = (None if p is None else p.repeat(x.shape[0]) for p in (weight, bias))
    as_channels = x.contiguous().reshape(1, -1, *x.shape[2:])
    return torch.ops.aten._unsafe_view(F.batch_norm(as_channels, None, None, weight, bias, True, 0.0, eps), x.shape)


def split_instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """``F.instance_norm`` of images (B, C, ...) by partial sums.

    Example::

        >>> x = torch.rand(2, 3, 8, 8, 8)
        >>> torch.allclose(split_instance_norm(x), torch.nn.functional.instance_norm(x), atol=1e-5)
        True
    """
    if has_torch_function_unary(x):  # a MetaTensor, which then wraps the result, and not each step on the way
        return handle_torch_function(split_instance_norm, (x,), x, weight, bias, eps)
    return _SplitInstanceNorm.apply(x.contiguous(), weight, bias, eps)


class _SplitInstanceNorm(torch.autograd.Function):
    """Batch norm's own kernels on (1, B * C * parts, voxels / parts) do the passes over the voxels."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        batch, size = x.shape[0], x.shape[2:].numel()
        parts = _parts(size)
        as_channels = x.reshape(1, -1, size // parts)
        means, variances = (v.reshape(-1, parts) for v in torch.batch_norm_update_stats(as_channels, None, None, 0.0))
        between, mean = torch.var_mean(means, dim=1, correction=0)
        variance = variances.mean(1) + between  # (B * C)
        factor, shift = (
            None if p is None else _repeated(p.to(mean.dtype).repeat(batch), parts) for p in (weight, bias)
        )
        mean_each, variance_each = _repeated(mean, parts), _repeated(variance, parts)
        y = torch.native_batch_norm(as_channels, factor, shift, mean_each, variance_each, False, 0.0, eps)[0]
        ctx.save_for_backward(x, mean, torch.rsqrt(variance + eps), weight)
        ctx.eps, ctx.bias_dtype = eps, None if bias is None else bias.dtype
        return torch.ops.aten._unsafe_view(y, x.shape)  # not one that autograd keeps account of: it may be overwritten

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, inverse_std, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_bias = None if ctx.bias_dtype is None else grad.sum([0, *range(2, grad.dim())], dtype=ctx.bias_dtype)
            return *gradients_with_graph(partial(_normalised, eps=ctx.eps), (x, weight), grad), of_bias, None
        batch, channels, size = x.shape[0], x.shape[1], x.shape[2:].numel()
        parts = _parts(size)
        views = [v.contiguous().reshape(1, -1, size // parts) for v in (grad, x)]
        stats = [_repeated(v, parts) for v in (mean, inverse_std)]
        ones = torch.ones_like(stats[0])
        sums = torch.ops.aten.native_batch_norm_backward(
            *views, ones, None, None, *stats, True, ctx.eps, [False, True, True]
        )[1:]
        scaled_sum, plain_sum = (s.reshape(-1, parts).sum(1) for s in sums)  # of grad * normalised x, and of grad
        factor = inverse_std if weight is None else inverse_std * weight.to(mean.dtype).repeat(batch)
        of_x = -factor * inverse_std * scaled_sum / size
        constant = -factor * plain_sum / size - of_x * mean
        shape = [batch, channels] + [1] * (x.dim() - 2)
        of_grad, of_x, constant = (v.reshape(shape) for v in (factor, of_x, constant))
        grad_x = torch.addcmul(constant, x, of_x, out=torch.empty_like(x))  # in x's dtype: nothing is kept in another
        torch.addcmul(grad_x, grad, of_grad, out=grad_x)
        grad_weight, grad_bias = (s.reshape(batch, channels).sum(0) for s in (scaled_sum, plain_sum))
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype),
            None,
        )


def _normalised(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    exact = torch.promote_types(x.dtype, torch.float32)  # which batch norm takes weights in
    return instance_norm(x, None if weight is None else weight.to(exact), None, eps)


def _parts(size: int) -> int:
    return next(n for n in range(_MOST_PARTS, 0, -1) if size % n == 0)


def _repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    return x[:, None].expand(-1, times).reshape(-1)


class _Split(nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self._is_eager(input):
            norm = split_instance_norm if self._is_split(input) else instance_norm
            return norm(input, self.weight, self.bias, self.eps)
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats, 0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip

    @torch.jit.unused
    def _is_eager(self, x: torch.Tensor) -> bool:
        is_graph = torch.compiler.is_compiling() or takes_torchs_own()
        return not is_graph and not self.track_running_stats and x.shape[2:].numel() > 1

    @torch.jit.unused
    def _is_split(self, x: torch.Tensor) -> bool:
        size = x.shape[2:].numel()
        is_idle = size >= _LEAST_VOXELS and x.shape[0] * x.shape[1] < _ENOUGH_BLOCKS
        return x.is_cuda and is_idle and _parts(size) > 1


class SplitInstanceNorm2d(_Split, nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d``, on CUDA by partial sums where its own kernels would leave most of the GPU idle.

    What overwrites its result, such as an activation in place, makes no copies of it, as it does of torch's own.
    """


class SplitInstanceNorm3d(_Split, nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d``, as :py:class:`SplitInstanceNorm2d` computes it."""


def with_split_sums(norm: tuple | str | None) -> tuple | str | None:
    """The norm of MONAI's factory that computes the same as ``norm``: for instance norm the one above."""
    if not norm:
        return norm
    name, args = split_args(norm)
    return ("split_instance", args) if str(name).upper() == "INSTANCE" else norm
