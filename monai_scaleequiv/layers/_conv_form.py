"""Which form of a steerable convolution is the fastest: by device, threads, type and sizes, from measurements.

Three forms compute the same. *Blocks*: an ordinary convolution with a group for each scale, on voxels gathered into
blocks until the channels fill a processor's vectors. *Dense*: the same with one kernel for all scales, mostly zeros
where few scales interact. *Separable*: matrix products along the axes. ``benchmarks/conv_forms.py`` measures them side
by side with what is chosen here.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch

from monai_scaleequiv.maths import polyphase_axis

# Of a CPU, in products of two numbers. Its convolutions work on 16 channels in and out at once.
_LANES = 16
_PHASES = {  # tried one after another; along the last axis voxels lie beside each other in memory
    2: ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4)),
    3: ((1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 4, 2), (4, 4, 2)),
}
_COPIES = 1.1  # what gathering voxels and interacting scales adds
_MOST_DENSE = 512  # channels of all scales on a GPU: kernels with more would take gigabytes
_SEPARABLE = 2.7  # time of a product in small matrices, compared with one in a convolution
# What the many small calls cost for each image and scale; with several threads, each of them has to wake the others.
_SEPARABLE_START, _SEPARABLE_START_OF_THREADS = 1.2e7, 1.5e8


class ConvForm(NamedTuple):
    """How a convolution is computed: voxels of a block per axis, and which of the three forms."""

    phases: tuple[int, ...]
    is_dense: bool = False
    is_separable: bool = False
    layout: torch.memory_format = torch.contiguous_format


class ConvGeometry(NamedTuple):
    """What a convolution on voxels is, beside its weights; numbers along the axes."""

    edges: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    scale_size: int
    is_transposed: bool

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Size of the output, as torch has it."""
        axes = list(zip(size, self.edges, self.stride, self.padding, strict=True))
        if self.is_transposed:
            return [(n - 1) * s - 2 * p + k for n, k, s, p in axes]
        return [(n + 2 * p - k) // s + 1 for n, k, s, p in axes]

    def keeps_size(self) -> bool:
        axes = zip(self.edges, self.stride, self.padding, strict=True)
        return not self.is_transposed and all(s == 1 and 2 * p == k - 1 for k, s, p in axes)


class _Channels(NamedTuple):
    """Numbers of channels and scales."""

    inputs: int
    outputs: int
    scales_in: int
    scales: int


def choose_form(
    x: torch.Tensor, outputs: int, basis: Sequence[int], geometry: ConvGeometry, lines: torch.Tensor | None
) -> ConvForm:
    """The form for features (B, S or 1, C, ...), and a basis of this shape with the filters ``lines`` if it has any."""
    one = (1,) * len(geometry.edges)
    if x.device.type == "cuda":
        # Libraries there compute one group after another; tensor cores have products to spare, channels last.
        single = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        last = torch.channels_last_3d if len(one) == 3 else torch.channels_last
        layout = last if single or x.dtype in (torch.bfloat16, torch.float16) else torch.contiguous_format
        is_dense = basis[0] * max(x.shape[2], outputs) <= _MOST_DENSE
        return ConvForm(one, is_dense=is_dense, layout=layout)
    if x.device.type != "cpu":
        return ConvForm(one)
    scales, functions, _ = basis
    channels, voxels = _Channels(x.shape[2], outputs, x.shape[1], scales), prod(x.shape[3:])
    axes = tuple(geometry.edges), tuple(geometry.stride), tuple(geometry.padding)  # to be found in a cache
    geometry = ConvGeometry(*axes, geometry.scale_size, geometry.is_transposed)
    work, phases, is_dense = _best_blocks(channels, geometry)
    # Processors that multiply half precision fast do so in convolutions.
    if lines is not None and geometry.keeps_size() and x.dtype in (torch.float32, torch.float64):
        products = _separable_work(channels, geometry.scale_size, x.shape[3:], functions, lines.shape[1])
        start = _SEPARABLE_START if torch.get_num_threads() == 1 else _SEPARABLE_START_OF_THREADS
        if _SEPARABLE * products * voxels + scales * start < work * voxels:
            return ConvForm(one, is_separable=True)
    return ConvForm(phases, is_dense)


@lru_cache(maxsize=1024)
def _best_blocks(channels: _Channels, geometry: ConvGeometry) -> tuple[float, tuple[int, ...], bool]:
    dense = (False, True) if geometry.scale_size > 1 else (False,)
    phases = _PHASES[len(geometry.edges)]
    return min((_block_work(channels, geometry, p, d), p, d) for p in phases for d in dense)


def _block_work(channels: _Channels, geometry: ConvGeometry, phases: tuple[int, ...], is_dense: bool) -> float:
    # Products for each voxel at all scales, with those of empty lanes
    numbers = zip(geometry.edges, geometry.stride, geometry.padding, phases, strict=True)
    axes = [polyphase_axis(*axis) for axis in numbers]
    block_in, block_out = prod(a.inputs for a in axes), prod(a.outputs for a in axes)
    if geometry.is_transposed:
        block_in, block_out = block_out, block_in
    groups = 1 if is_dense or channels.scales_in == 1 else channels.scales
    inputs = block_in * channels.inputs * (channels.scales if is_dense else geometry.scale_size)
    outputs = block_out * channels.outputs * channels.scales // groups
    lanes = -(-inputs // _LANES) * -(-outputs // _LANES) * _LANES**2
    return groups * lanes * prod(a.taps for a in axes) / prod(phases) * (1 if is_dense else _COPIES)


def _separable_work(channels: _Channels, scale_size: int, size: Sequence[int], functions: int, orders: int) -> float:
    # Products for each voxel at all scales, see `SeparableConv`
    depth, height, width = [0] * (3 - len(size)) + list(size)
    pairs = orders * (orders + 1) // 2 if len(size) == 3 else orders
    inputs = channels.inputs * scale_size
    along = inputs * (orders * width + pairs * depth) + channels.outputs * orders * height
    return channels.scales * (functions * inputs * channels.outputs + along)
