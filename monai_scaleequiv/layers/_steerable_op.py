"""Steerable convolution as one operator of torch, with a backward pass of its own."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from monai_scaleequiv.layers._conv_form import ConvForm, ConvGeometry, choose_form
from monai_scaleequiv.layers._second_derivatives import gradients_with_graph
from monai_scaleequiv.maths import (
    SeparableConv,
    block_counts,
    join_phases,
    polyphase_axis,
    polyphase_basis,
    split_phases,
)


class _BlockConv:
    """One convolution, carried out on blocks of voxels: an ordinary one of stride 1 with more channels."""

    def __init__(
        self, x: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor, geometry: ConvGeometry, form: ConvForm
    ) -> None:
        self.weight, self.geometry = weight, geometry
        self.scales, self.scales_in = basis.shape[0], x.shape[1]
        self.size, self.size_out = list(x.shape[3:]), geometry.output_size(x.shape[3:])
        self.form = form
        fine, coarse = self.size, self.size_out
        if geometry.is_transposed:
            fine, coarse = coarse, fine
        axes = [
            polyphase_axis(*axis)
            for axis in zip(geometry.edges, geometry.stride, geometry.padding, self.form.phases, strict=True)
        ]
        counts = [block_counts(axis, n, m) for axis, n, m in zip(axes, fine, coarse, strict=True)]
        inner = [axis.inputs for axis in axes], [n for n, _ in counts], [axis.padding for axis in axes]
        outer = [axis.outputs for axis in axes], [m for _, m in counts], [a.taps - 1 - a.padding for a in axes]
        if geometry.is_transposed:
            inner, outer = outer, inner
        (self.phases_in, self.blocks_in, self.padding), (self.phases_out, self.blocks_out, self.flipped_padding) = (
            inner, outer,
        )  # fmt: skip
        self.taps = [axis.taps for axis in axes]
        self.basis = polyphase_basis(basis, geometry.edges, axes, geometry.is_transposed)  # (S, F, out, in, taps)
        self.is_dense = self.form.is_dense and self.scales_in > 1
        self.groups = self.scales if self.scales_in > 1 and not self.is_dense else 1

    def split_input(self, x: torch.Tensor) -> torch.Tensor:
        # (B, S or 1, I, ...) -> (B, channels, *blocks)
        interactions = 1 if self.is_dense else self.geometry.scale_size
        return split_phases(x, self.phases_in, self.blocks_in, interactions).flatten(1, 4)

    def join_input(self, y: torch.Tensor, channels: int) -> torch.Tensor:
        interactions = 1 if self.is_dense else self.geometry.scale_size
        y = y.unflatten(1, (self.scales_in, interactions, prod(self.phases_in), channels))
        return join_phases(y, self.phases_in, self.size)

    def split_output(self, grad: torch.Tensor) -> torch.Tensor:
        return split_phases(grad, self.phases_out, self.blocks_out, 1).flatten(1, 4)

    def join_output(self, y: torch.Tensor) -> torch.Tensor:
        y = y.unflatten(1, (self.scales, 1, prod(self.phases_out), self.weight.shape[0]))
        return join_phases(y, self.phases_out, self.size_out)

    def gradients(
        self, grad: torch.Tensor, x: torch.Tensor, of_input: bool, of_weight: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients for input and weights, empty where they are not wanted."""
        grad_x, grad_weight = x.new_empty([0]), self.weight.new_empty([0])
        grad = self.split_output(grad)
        kernel = self.kernel().to(x.dtype)
        if of_input:
            y = self.convolve(grad, self.flipped(kernel), self.flipped_padding)
            grad_x = self.join_input(y, x.shape[2]).contiguous()
        if of_weight:
            grad_weight = self.weight_gradient(self.kernel_gradient(grad, self.split_input(x), kernel))
        return grad_x, grad_weight.to(self.weight.dtype)

    def kernel(self) -> torch.Tensor:
        """Learned combination of the basis, (S * out * O, in channels of a group, *taps)."""
        outputs, inputs = self.weight.shape[:2]
        weight = self.weight.reshape(-1, self.basis.shape[1])  # (O * I * J, F)
        # Several times quicker than a matmul that broadcasts: (S, O * I * J, out * in * taps)
        kernel = torch.bmm(weight.expand(self.scales, -1, -1), self.basis.flatten(2))
        shape = [self.scales, outputs, inputs, self.geometry.scale_size, *self.basis.shape[2:]]
        kernel = kernel.reshape(shape).permute(0, 4, 1, 3, 5, 2, 6)  # (S, out, O, J, in, I, taps)
        if self.is_dense:
            kernel = _as_dense(kernel)
        return kernel.reshape(self.scales * shape[4] * outputs, -1, *self.taps)

    def weight_gradient(self, grad: torch.Tensor) -> torch.Tensor:
        """The adjoint of :py:meth:`kernel`."""
        outputs, inputs = self.weight.shape[:2]
        slots = self.scales if self.is_dense else self.geometry.scale_size
        shape = [self.scales, self.basis.shape[2], outputs, slots, self.basis.shape[3], inputs, self.basis.shape[4]]
        grad = grad.reshape(shape)
        if self.is_dense:
            grad = _from_dense(grad, self.geometry.scale_size)
        grad = grad.permute(0, 2, 5, 3, 1, 4, 6).reshape(self.scales, -1, self.basis[0, 0].numel())
        grad = torch.bmm(grad.to(self.basis.dtype), self.basis.flatten(2).transpose(1, 2))  # (S, O * I * J, F)
        return grad.sum(dim=0).reshape(self.weight.shape)

    def convolve(self, x: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int], bias=None) -> torch.Tensor:
        ones = [1] * len(self.taps)
        x, kernel = x.to(memory_format=self.form.layout), kernel.to(memory_format=self.form.layout)
        return torch.convolution(x, kernel, bias, ones, padding, ones, False, [0] * len(ones), self.groups)

    def flipped(self, kernel: torch.Tensor) -> torch.Tensor:
        """The kernel of the input's gradient, which is a convolution as well."""
        kernel = kernel.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return kernel.flip(list(range(2, kernel.dim())))

    def kernel_gradient(self, grad: torch.Tensor, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        ones = [1] * len(self.taps)
        geometry = ones, self.padding, ones, False, [0] * len(ones), self.groups
        # Of a kernel larger than the image, oneDNN's bfloat16 result is what the memory held (torch 2.13, avx512_bf16)
        is_unsafe = x.device.type == "cpu" and any(n < k for n, k in zip(x.shape[2:], self.taps, strict=True))
        dtype = torch.float32 if is_unsafe and x.dtype == torch.bfloat16 else x.dtype
        grad, x, kernel = (t.to(dtype=dtype, memory_format=self.form.layout) for t in (grad, x, kernel))
        return torch.ops.aten.convolution_backward(grad, x, kernel, None, *geometry, [False, True, False])[1]


def _as_dense(kernel: torch.Tensor) -> torch.Tensor:
    # (S, out, O, J, ...) -> (S, out, O, S, ...): what a scale takes from each of the others, often nothing
    scales, interactions = kernel.shape[0], kernel.shape[3]
    dense = kernel.new_zeros([*kernel.shape[:3], scales, *kernel.shape[4:]])
    for j in range(interactions):
        diagonal = dense.diagonal(j, 0, 3)  # (out, O, in, I, taps, S - j)
        diagonal.add_(kernel[: scales - j, :, :, j].movedim(0, -1))
        if j > 0:
            dense[scales - j :, :, :, -1].add_(kernel[scales - j :, :, :, j])
    return dense


def _from_dense(dense: torch.Tensor, interactions: int) -> torch.Tensor:
    # The adjoint of the above.
    scales = dense.shape[0]
    kernel = dense.new_empty([*dense.shape[:3], interactions, *dense.shape[4:]])
    for j in range(interactions):
        kernel[: scales - j, :, :, j] = dense.diagonal(j, 0, 3).movedim(-1, 0)
        if j > 0:
            kernel[scales - j :, :, :, j] = dense[scales - j :, :, :, -1]
    return kernel


def _plain(x: torch.Tensor) -> torch.Tensor:
    # A MetaTensor would hand its metadata on at every step; of a plain tensor tracers take the very object
    return x if type(x) is torch.Tensor else x.as_subclass(torch.Tensor)


def steerable_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, basis: torch.Tensor, lines: torch.Tensor | None,
    gains: torch.Tensor | None, edges: list[int], stride: list[int], padding: list[int], scale_size: int,
    is_transposed: bool,
) -> torch.Tensor:  # fmt: skip
    r"""Convolution of (B, S or 1, I, ...) with weights (O, I, J * F) of a basis (S, F, K); gives (B, S, O, ...).

    :math:`y_s = b + \sum_{j < J} \sum_i \sum_f w_{oijf}\, \psi_{fs} * x_{s + j, i}`, the last scale repeated.
    ``lines`` and ``gains`` are what the basis is the product of, see :py:func:`separable_filters`, if it is one.
    """
    geometry, x = ConvGeometry(edges, stride, padding, scale_size, is_transposed), _plain(x)
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        form = choose_form(x, weight.shape[0], basis.shape, geometry, lines)
        if form.is_separable and lines is not None and gains is not None:
            return SeparableConv(lines.unflatten(0, (len(edges), -1)), gains, weight, x.shape[3:]).forward(x, bias)
        conv = _BlockConv(x, weight, basis, geometry, form)
        if bias is not None:
            bias = bias.to(x.dtype).repeat(conv.scales * prod(conv.phases_out))
        y = conv.convolve(conv.split_input(x), conv.kernel().to(x.dtype), conv.padding, bias)
        return conv.join_output(y).contiguous()  # as a compiled graph is told


# An operator, so that torch.compile has one node, whose form may depend on the sizes at hand.
steerable_conv = torch.library.custom_op("monai_scaleequiv::steerable_conv", steerable_forward, mutates_args=())


@torch.library.custom_op("monai_scaleequiv::steerable_gradients", mutates_args=())
def steerable_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor, lines: torch.Tensor | None,
    gains: torch.Tensor | None, edges: list[int], stride: list[int], padding: list[int], scale_size: int,
    is_transposed: bool, of_input: bool, of_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients for input and weights; an empty tensor stands for one that is not wanted."""
    grad, x = _plain(grad), _plain(x)
    geometry = ConvGeometry(edges, stride, padding, scale_size, is_transposed)
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        form = choose_form(x, weight.shape[0], basis.shape, geometry, lines)
        if form.is_separable and lines is not None and gains is not None:
            return SeparableConv(lines.unflatten(0, (len(edges), -1)), gains, weight, x.shape[3:]).gradients(
                grad, x, of_input, of_weight
            )
        return _BlockConv(x, weight, basis, geometry, form).gradients(grad, x, of_input, of_weight)


@steerable_conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, _bias: Any, basis: torch.Tensor, *args: Any) -> torch.Tensor:
    size = ConvGeometry(*args[2:]).output_size(x.shape[3:])  # after lines and gains
    return x.new_empty([x.shape[0], basis.shape[0], weight.shape[0], *size])


@steerable_gradients.register_fake
def _(_grad: Any, x: torch.Tensor, weight: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    of_input, of_weight = args[-2:]
    return x.new_empty(x.shape if of_input else 0), weight.new_empty(weight.shape if of_weight else 0)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, weight, bias, *constants = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.constants = constants  # the basis needs no gradient, and lives as long as its layer
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
    (x, weight), constants = ctx.saved_tensors, ctx.constants
    grad_bias = grad.sum([0, 1, *range(3, grad.dim())], dtype=ctx.bias_dtype) if of_bias else None
    if not of_input and not of_weight:
        return None, None, grad_bias, *[None] * 8
    if torch.is_grad_enabled():

        def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return steerable_forward(x, weight, None, constants[0], None, None, *constants[3:])  # not line by line

        return *gradients_with_graph(convolve, (x, weight), grad), grad_bias, *[None] * 8
    grad_x, grad_weight = steerable_gradients(grad, x, weight, *constants, of_input, of_weight)
    return grad_x if of_input else None, grad_weight if of_weight else None, grad_bias, *[None] * 8


steerable_conv.register_autograd(_backward, setup_context=_setup_context)
