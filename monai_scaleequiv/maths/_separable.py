r"""Convolution with Hermite-Gaussian filters as matrix products along the axes.

The functions of the basis are products of one filter per axis, of orders a, b, c with :math:`a + b + c \le N`:

.. math:: y = \sum_b H_b \Big( \sum_{a, c} w_{abc}\, (D_a\, W_c\, x) \Big)

with a band matrix for each order along depth (D), height (H) and width (W). Its cost hardly depends on the edge of the
kernel, and channels are mixed once per function instead of once per tap.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

_SLAB = 2**21  # numbers that are kept at once, about what a cache holds


def band_matrices(lines: torch.Tensor, size: int) -> torch.Tensor:
    """Matrices (..., size, size) that correlate an axis, zero outside, with centred filters (..., taps)."""
    taps = lines.shape[-1]
    voxels = torch.arange(size, device=lines.device)
    tap = voxels - voxels[:, None] + taps // 2
    tap = torch.where((tap >= 0) & (tap < taps), tap, taps)  # a zero behind the last
    return F.pad(lines, (0, 1)).index_select(-1, tap.flatten()).unflatten(-1, (size, size))


@lru_cache(maxsize=64)
def _places(max_order: int, axes: int) -> list[list[tuple[int, int, int]]]:
    # For each order c along the width: a, b and the place in the basis of the functions that have it
    deepest = max_order if axes == 3 else 0
    orders = [
        (a, b, c) for a in range(deepest + 1) for b in range(max_order + 1 - a) for c in range(max_order + 1 - a - b)
    ]
    return [[(a, b, i) for i, (a, b, other) in enumerate(orders) if other == c] for c in range(max_order + 1)]


class SeparableConv:
    """One convolution of features (B, S or 1, I, ...) with weights (O, I, J * F), for images of one size.

    Args:
        lines: filters along each axis, (axes, S, N + 1, taps), shorter ones continued by zeros.
        gains: factor of each function of the basis, (F).
        weight: (O, I, J * F).
        size: of the images, two or three numbers.
    """

    def __init__(self, lines: torch.Tensor, gains: torch.Tensor, weight: torch.Tensor, size: Sequence[int]) -> None:
        axes, self.scales, orders, _ = lines.shape
        self.outputs, self.inputs = weight.shape[:2]
        self.gains, self.weight_shape, self.places = gains, weight.shape, _places(orders - 1, axes)
        self.depth, self.height, self.width = [1] * (3 - axes) + list(size)
        matrices = [band_matrices(line, n) for line, n in zip(lines, size, strict=True)]  # (S, N + 1, n, n)
        self.along_depth = matrices[0] if axes == 3 else lines.new_ones(self.scales, 1, 1, 1)
        self.along_height, self.along_width = matrices[-2:]
        weight = weight.unflatten(2, (-1, len(gains))) * gains  # (O, I, J, F)
        self.interactions = weight.shape[2]
        # For each c, what mixes channels and orders a into channels and orders b, (b * O, J * I * a)
        self.mixing = [self._mixing(weight, c) for c in range(orders)]
        kept = max(m.shape[0] + m.shape[1] for m in self.mixing)
        planes = min(self.depth, max(1, _SLAB // (kept * self.height * self.width)))
        self.planes = -(-self.depth // -(-self.depth // planes))  # slabs of one size
        # Matrices (J * I, orders * planes, D) of each slab, scale and c, made once for all images
        self.depth_matrices = {
            start: [[self._depth_matrix(s, c, start, count) for c in range(orders)] for s in range(self.scales)]
            for start, count in self._slabs()
        }
        self.buffers: dict[str, torch.Tensor] = {}

    def _depth_matrix(self, scale: int, c: int, start: int, count: int) -> torch.Tensor:
        orders = max(a for a, _, _ in self.places[c]) + 1
        matrix = self.along_depth[scale, :orders, start : start + count].reshape(-1, self.depth)
        return matrix.expand(self.interactions * self.inputs, -1, -1)

    def _mixing(self, weight: torch.Tensor, c: int) -> torch.Tensor:
        a, b, place = zip(*self.places[c], strict=True)
        mixing = weight.new_zeros([max(b) + 1, self.outputs, self.interactions, self.inputs, max(a) + 1])
        mixing[list(b), ..., list(a)] = weight[..., list(place)].permute(3, 0, 2, 1)
        return mixing.flatten(2).flatten(0, 1)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution, (B, S, O, ...)."""
        y = x.new_empty([x.shape[0], self.scales, self.outputs, self.depth, self.height, self.width])
        shift = y.new_zeros(self.outputs, 1, 1, 1) if bias is None else bias.to(y.dtype).reshape(-1, 1, 1, 1)
        for image, scale in itertools.product(range(len(x)), range(self.scales)):
            lines = self._along_width(x[image], scale)
            for start, count in self._slabs():
                mixed = self._buffer("mixed", x, self.along_height.shape[1] * self.outputs, count)
                for c, mixing in enumerate(self.mixing):
                    responses = self._along_depth(lines[c], scale, c, start)
                    mixed[: len(mixing)].flatten(1).addmm_(mixing, responses, beta=min(c, 1))
                total = self._buffer("total", x, self.outputs, count)
                for b, part in enumerate(mixed.split(self.outputs)):
                    matrix = self.along_height[scale, b].expand(self.outputs * count, -1, -1)
                    total.flatten(0, 1).baddbmm_(matrix, part.flatten(0, 1), beta=min(b, 1))
                torch.add(total, shift, out=y[image, scale, :, start : start + count])
        return y.reshape(*y.shape[:3], *x.shape[3:])

    def gradients(
        self, grad: torch.Tensor, x: torch.Tensor, of_input: bool, of_weight: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients for features and weights, empty where they are not wanted."""
        grad_x = x.new_zeros(list(x.shape) if of_input else [0])
        grads = [torch.zeros_like(mixing) for mixing in self.mixing]
        grad = grad.reshape(*grad.shape[:3], self.depth, self.height, self.width)
        for image, scale in itertools.product(range(len(x)), range(self.scales)):
            lines = self._along_width(x[image], scale) if of_weight else None
            of_lines = self._lines("of_lines", x)
            for start, count in self._slabs():
                mixed = self._back_along_height(grad[image, scale, :, start : start + count], scale)
                for c, mixing in enumerate(self.mixing):
                    part = mixed[: len(mixing)].flatten(1)
                    if lines is not None:
                        grads[c].addmm_(part, self._along_depth(lines[c], scale, c, start).t())
                    if of_input:
                        self._back_along_depth(of_lines[c], part, scale, c, start)
            if of_input:
                self._back_along_width(grad_x[image], of_lines, scale)
        return grad_x, self._weight_gradient(grads) if of_weight else x.new_empty([0])

    def _slabs(self) -> Iterator[tuple[int, int]]:
        # First and number of the planes of the output that are computed at once
        return ((start, min(self.planes, self.depth - start)) for start in range(0, self.depth, self.planes))

    def _buffer(self, name: str, like: torch.Tensor, channels: int, planes: int) -> torch.Tensor:
        # Memory that is used again and again: (channels, planes, H, W)
        count = channels * planes * self.height * self.width
        if name not in self.buffers or self.buffers[name].numel() < count:
            self.buffers[name] = like.new_empty([count])
        return self.buffers[name][:count].view(channels, planes, self.height, self.width)

    def _lines(self, name: str, like: torch.Tensor) -> torch.Tensor:
        orders = self.along_width.shape[1]
        lines = self._buffer(name, like, orders * self.interactions * self.inputs, self.depth)
        return lines.view(orders, self.interactions * self.inputs, self.depth, -1)

    def _along_width(self, x: torch.Tensor, scale: int) -> torch.Tensor:
        # (S or 1, I, ...) -> (N + 1, J * I, D, H * W)
        lines = self._lines("lines", x)
        for j, c in itertools.product(range(self.interactions), range(len(lines))):
            source = x[min(scale + j, len(x) - 1)].reshape(-1, self.width)
            out = lines[c].unflatten(0, (self.interactions, -1))[j].view(-1, self.width)
            torch.mm(source, self.along_width[scale, c].t(), out=out)
        return lines

    def _along_depth(self, lines: torch.Tensor, scale: int, c: int, start: int) -> torch.Tensor:
        # (J * I, D, H * W) -> (J * I * orders, planes * H * W)
        matrix = self.depth_matrices[start][scale][c]
        responses = self._buffer("responses", lines, matrix.shape[0] * matrix.shape[1], 1).view(*matrix.shape[:2], -1)
        torch.bmm(matrix, lines, out=responses)
        return responses.view(self.mixing[c].shape[1], -1)

    def _back_along_height(self, grad: torch.Tensor, scale: int) -> torch.Tensor:
        source = self._buffer("total", grad, *grad.shape[:2]).copy_(grad).flatten(0, 1)
        orders = self.along_height.shape[1]
        mixed = self._buffer("mixed", grad, orders * self.outputs, grad.shape[1])
        for b, out in enumerate(mixed.split(self.outputs)):
            matrix = self.along_height[scale, b].t().expand(len(source), -1, -1)
            torch.bmm(matrix, source, out=out.flatten(0, 1))
        return mixed

    def _back_along_depth(self, of_lines: torch.Tensor, mixed: torch.Tensor, scale: int, c: int, start: int) -> None:
        matrix = self.depth_matrices[start][scale][c]
        responses = self._buffer("responses", mixed, matrix.shape[0] * matrix.shape[1], 1)
        torch.mm(self.mixing[c].t(), mixed, out=responses.view(self.mixing[c].shape[1], -1))
        of_lines.baddbmm_(matrix.transpose(1, 2), responses.view(*matrix.shape[:2], -1), beta=min(start, 1))

    def _back_along_width(self, grad_x: torch.Tensor, of_lines: torch.Tensor, scale: int) -> None:
        for j, c in itertools.product(range(self.interactions), range(len(of_lines))):
            target = grad_x[min(scale + j, len(grad_x) - 1)].view(-1, self.width)
            part = of_lines[c].unflatten(0, (self.interactions, -1))[j]
            target.addmm_(part.view(-1, self.width), self.along_width[scale, c])

    def _weight_gradient(self, grads: Sequence[torch.Tensor]) -> torch.Tensor:
        weight = grads[0].new_empty([self.outputs, self.inputs, self.interactions, len(self.gains)])
        for places, grad in zip(self.places, grads, strict=True):
            a, b, place = zip(*places, strict=True)
            grad = grad.view(max(b) + 1, self.outputs, self.interactions, self.inputs, max(a) + 1)
            weight[..., list(place)] = grad[list(b), ..., list(a)].permute(1, 3, 2, 0)
        return (weight * self.gains).reshape(self.weight_shape)
