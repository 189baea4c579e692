"""Which form of a steerable convolution is fastest, by device, type and sizes: one table, from measurements."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch

from monai_scaleequiv.maths import polyphase_axis

_LANES = 16
_PHASES = {
    2: ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4)),
    3: ((1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 4, 2), (4, 4, 2)),
}


_ADVANTAGE = 2.7
_OVERHEAD = 1.2e7


class ConvForm(NamedTuple):
    phases: tuple[int, ...]
    is_dense: bool = False
    is_separable: bool = False
    layout: torch.memory_format = torch.contiguous_format


class _Sizes(NamedTuple):
    inputs: int
    outputs: int
    scales: int
    scales_in: int
    scale_size: int
    is_transposed: bool


def _block_work(sizes: _Sizes, axes, phases, is_dense: bool) -> float:
    shape = [polyphase_axis(*axis, p) for axis, p in zip(axes, phases, strict=True)]
    fine, coarse, taps = (prod(getattr(a, name) for a in shape) for name in ("inputs", "outputs", "taps"))
    if sizes.is_transposed:
        fine, coarse = coarse, fine
    groups = 1 if is_dense or sizes.scales_in == 1 else sizes.scales
    ins = fine * sizes.inputs * (sizes.scales if is_dense else sizes.scale_size)
    outs = coarse * sizes.outputs * sizes.scales // groups
    work = groups * -(-ins // _LANES) * -(-outs // _LANES) * _LANES**2 * taps / prod(phases)
    return work if is_dense else 1.1 * work


@lru_cache(maxsize=1024)
def _best_blocks(sizes: _Sizes, axes) -> tuple[float, tuple[int, ...], bool]:
    dense = (False, True) if sizes.scale_size > 1 else (False,)
    return min((_block_work(sizes, axes, phases, d), phases, d) for phases in _PHASES[len(axes)] for d in dense)


def _separable_work(sizes: _Sizes, size, functions: int, orders: int) -> float:
    # products for each voxel, at all scales
    depth, height, width = [0] * (3 - len(size)) + list(size)
    pairs = orders * (orders + 1) // 2 if len(size) == 3 else orders
    ins = sizes.inputs * sizes.scale_size
    axes = ins * (orders * depth + pairs * width) + sizes.outputs * orders * height
    return sizes.scales * (functions * ins * sizes.outputs + axes)


def choose_form(x: torch.Tensor, outputs: int, basis, geometry, lines) -> ConvForm:
    dims = len(geometry.edges)
    if x.device.type != "cpu":
        return ConvForm((1,) * dims, True, False, torch.channels_last_3d if dims == 3 else torch.channels_last)
    scales, functions, _ = basis
    sizes = _Sizes(x.shape[2], outputs, scales, x.shape[1], geometry.scale_size, geometry.is_transposed)
    axes = tuple(zip(geometry.edges, geometry.stride, geometry.padding, strict=True))
    work, phases, dense = _best_blocks(sizes, axes)
    keeps_size = all(s == 1 and 2 * p == k - 1 for k, s, p in axes) and not geometry.is_transposed
    if lines is not None and keeps_size and x.dtype in (torch.float32, torch.float64):
        voxels = prod(x.shape[3:])
        separable = _ADVANTAGE * _separable_work(sizes, x.shape[3:], functions, lines.shape[1])
        if separable * voxels + scales * _OVERHEAD < work * voxels:
            return ConvForm((1,) * dims, is_separable=True)
    return ConvForm(phases, dense)
