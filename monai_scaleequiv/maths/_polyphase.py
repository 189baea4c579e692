r"""Polyphase form of convolutions: neighbouring voxels become channels, so that few channels become many.

A convolution of stride s, written for p neighbouring outputs and q = s p neighbouring inputs of an axis at once, is a
convolution of stride 1 on blocks, with p times as many output channels and q times as many input channels:

.. math:: y_{pM + a} = \sum_\delta \sum_{b < q} k_{q \delta + b - s a + \mathrm{pad}}\; x_{q (M + \delta) + b}

A transposed convolution is the adjoint of it. Convolution routines fill vectors with channels; the few products with
zeros that are added cost less than the lanes that would stay empty.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch


class PolyphaseAxis(NamedTuple):
    """One axis of a convolution on blocks."""

    outputs: int  # voxels of a block of the output, p
    inputs: int  # voxels of a block of the input, q
    padding: int  # blocks of zeros on either side
    taps: int  # edge of the kernel on blocks
    tap_index: tuple[int, ...]  # tap of the kernel on voxels for each (a, b, delta), flat; its edge where there is none


@lru_cache(maxsize=256)
def polyphase_axis(edge: int, stride: int, padding: int, phases: int) -> PolyphaseAxis:
    """The axis of a convolution with ``edge`` taps on voxels, for ``phases`` outputs in a block."""
    inputs = stride * phases
    first = -((inputs - 1 + padding) // inputs)
    last = (edge - 1 + stride * (phases - 1) - padding) // inputs
    first, last = min(first, 0), max(last, 0)
    taps = [
        inputs * delta + b - stride * a + padding
        for a in range(phases)
        for b in range(inputs)
        for delta in range(first, last + 1)
    ]
    index = tuple(t if 0 <= t < edge else edge for t in taps)
    return PolyphaseAxis(phases, inputs, -first, last - first + 1, index)


def block_counts(axis: PolyphaseAxis, size_in: int, size_out: int) -> tuple[int, int]:
    """Blocks of input and output along an axis; those past the end hold zeros."""
    shrink = axis.taps - 1 - 2 * axis.padding
    outputs = max(-(-size_out // axis.outputs), -(-size_in // axis.inputs) - shrink)
    return outputs + shrink, outputs


def polyphase_basis(
    basis: torch.Tensor, edges: Sequence[int], axes: Sequence[PolyphaseAxis], is_transposed: bool = False
) -> torch.Tensor:
    """Basis (S, F, K) of kernels on voxels as one of kernels on blocks, (S, F, out, in, taps).

    A block of the input has ``out`` voxels, one of the output ``in``; for a transposed convolution they change places.
    """
    kernel = basis.unflatten(2, list(edges))
    for i, axis in enumerate(axes, 2):  # (S, F, A1 B1 T1, ...)
        if axis.inputs > 1:
            zero = kernel.new_zeros([*kernel.shape[:i], 1, *kernel.shape[i + 1 :]])
            index = _on_device(axis.tap_index, basis.device)
            kernel = torch.cat([kernel, zero], dim=i).index_select(i, index)
    count = len(axes)
    for i in reversed(range(count)):
        kernel = kernel.unflatten(2 + i, (axes[i].outputs, axes[i].inputs, axes[i].taps))
    outputs, inputs, taps = ([2 + 3 * i + part for i in range(count)] for part in range(3))
    if is_transposed:
        outputs, inputs, kernel = inputs, outputs, kernel.flip(taps)
    kernel = kernel.permute(0, 1, *outputs, *inputs, *taps)
    return kernel.flatten(2 + 2 * count).flatten(2 + count, 1 + 2 * count).flatten(2, 1 + count)


@cache  # once a device: a copy to it would stop a stream of work. There are few, and small
def _on_device(index: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(index, device=device)


def split_phases(x: torch.Tensor, phases: Sequence[int], blocks: Sequence[int], interactions: int) -> torch.Tensor:
    """Features (B, S, C, ...) as blocks (B, S, J, P, C, ...): each scale beside the J - 1 that follow it.

    The last scale is repeated past the end, and space is continued by zeros.
    """
    batch, scales, channels = x.shape[:3]
    if interactions == 1 and prod(phases) == 1 and list(blocks) == list(x.shape[3:]):
        return x[:, :, None, None]
    y = x.new_empty([batch, scales, interactions, prod(phases), channels, *blocks])
    for p, (voxels, filled) in enumerate(_phases(tuple(phases), tuple(x.shape[3:]))):
        source = x[voxels]
        for j in range(interactions):
            part = y[:, :, j, p][filled]
            part[:, : scales - j].copy_(source[:, j:])
            if j > 0:
                part[:, scales - j :].copy_(source[:, -1:].expand(-1, j, *source.shape[2:]))
        for axis, piece in enumerate(filled[1:]):
            if piece.stop < blocks[axis]:
                y[:, :, :, p].narrow(4 + axis, piece.stop, blocks[axis] - piece.stop).zero_()
    return y


def join_phases(y: torch.Tensor, phases: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """The adjoint of :py:func:`split_phases`: blocks (B, S, J, P, C, ...) as features (B, S, C, *size)."""
    batch, scales, interactions, count, channels = y.shape[:5]
    if interactions == 1 and count == 1 and list(y.shape[5:]) == list(size):
        return y[:, :, 0, 0]
    x = y.new_empty([batch, scales, channels, *size])
    for p, (voxels, filled) in enumerate(_phases(tuple(phases), tuple(size))):
        target, source = x[voxels], y[:, :, :, p][filled]
        target.copy_(source[:, :, 0])
        for j in range(1, interactions):
            target[:, j:].add_(source[:, : scales - j, j])
            target[:, -1].add_(source[:, scales - j :, j].sum(dim=1))
    return x


@lru_cache(maxsize=256)
def _phases(phases: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[Any, Any]]:
    # Indices, for each phase, last axis fastest: its voxels, and the blocks that hold them
    slices: list[tuple[list[slice], list[slice]]] = [([], [])]
    for count, n in zip(phases, size, strict=True):
        axis = [(slice(b, None, count), slice(0, -(-(n - b) // count) if b < n else 0)) for b in range(count)]
        slices = [([*voxels, v], [*filled, f]) for voxels, filled in slices for v, f in axis]
    return [((..., *voxels), (..., *filled)) for voxels, filled in slices]
