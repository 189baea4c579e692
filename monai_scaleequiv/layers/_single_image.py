"""Convolutions of a single volume on a CPU, computed as those of a batch are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch.overrides import TorchFunctionMode

# Torch computes a batch of one volume by oneDNN only when channels * D * H are more than this, or the kernel's edge is
# more than 3; otherwise it unrolls the volume into a matrix, which takes up to ten times as long.
_MOST_UNROLLED = 20480
_WIDEST_UNROLLED = 3


class SingleImageConvolutions(TorchFunctionMode):
    """Within this context, 3D convolutions of one volume that torch would unroll run as a batch of its two halves.

    Values and gradients are the same up to rounding. Nothing changes elsewhere: batches, other devices, other
    precisions, grouped convolutions, under autocast.

    Example::

        >>> with SingleImageConvolutions():
        ...     torch.nn.Conv3d(4, 8, 3, padding=1)(torch.rand(1, 4, 16, 16, 16)).shape
        torch.Size([1, 8, 16, 16, 16])
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv3d and not kwargs and _is_unrolled(*args):
            return _conv3d_in_halves(*args)
        return func(*args, **(kwargs or {}))


def _is_unrolled(x: torch.Tensor, weight: torch.Tensor, *options: Any) -> bool:
    if x.dim() != 5 or x.shape[0] != 1 or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if len(options) > 4 and options[4] != 1:  # groups are never unrolled
        return False
    is_narrow = min(weight.shape[3:]) <= _WIDEST_UNROLLED and max(weight.shape[3:]) > 1
    is_small = x.shape[1] * x.shape[2] * x.shape[3] <= _MOST_UNROLLED
    # Else the halves' own copies, or arranging the weights, take longer than the unrolled volume.
    pays = weight.shape[0] <= min(weight[0].numel() // 2, x.shape[2:].numel())
    return (
        is_narrow
        and is_small
        and pays
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _conv3d_in_halves(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0, dilation: Sequence[int] | int = 1, groups: int = 1,
) -> torch.Tensor:  # fmt: skip
    if isinstance(padding, str):
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    step, pad, gap = (ensure_tuple_rep(v, 3) for v in (stride, padding, dilation))
    reach = gap[0] * (weight.shape[2] - 1) + 1
    depth = (x.shape[2] + 2 * pad[0] - reach) // step[0] + 1
    if depth < 2:
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    half = (depth + 1) // 2
    start, length = half * step[0], (half - 1) * step[0] + reach
    x = F.pad(x, [0, 0, 0, 0, pad[0], max(0, start + length - x.shape[2] - pad[0])])
    halves = torch.cat([x.narrow(2, 0, length), x.narrow(2, start, length)])
    first, second = F.conv3d(halves, weight, bias, step, (0, *pad[1:]), gap).split(1)
    return torch.cat([first, second.narrow(2, 0, depth - half)], dim=2)
