"""Share of a forward pass that goes into assembling the steerable kernels, which no cache holds.

    python benchmarks/kernel_assembly.py

Measured inside the forward passes themselves; medians of 15, on 2 threads.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from monai_scaleequiv import SEUNet
from monai_scaleequiv.layers import SteerableConv

BUNDLE = {"scales": (1.0, 0.9, 0.81), "sigma": 1.0, "max_order": 3}
CASES = {  # channels, strides, filters, size
    "SEUNet (16, 32, 64)": ((16, 32, 64), (2, 2), None, (48, 48, 48)),
    "hippocampus bundle": ((16, 32, 64, 128), (1, 2, 2), BUNDLE, (40, 56, 40)),
}


class Stopwatch:
    """Adds up the time that is spent in a function."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: object) -> torch.Tensor:
        start = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - start
        return result


@torch.no_grad()
def main(rounds: int = 15, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    for name, (channels, strides, filters, size) in CASES.items():
        net = SEUNet(3, 1, 3, channels, strides, filters=filters).eval()
        assembly = Stopwatch(SteerableConv.assemble_kernel)
        for layer in net.modules():
            if isinstance(layer, SteerableConv):
                layer.assemble_kernel = partial(assembly, layer)
        forward, x = Stopwatch(net), torch.randn(1, 1, *size)
        shares = []
        for _ in range(rounds + 2):
            forward.seconds = assembly.seconds = 0.0
            forward(x)
            shares.append((assembly.seconds / forward.seconds, forward.seconds))
        share, seconds = (statistics.median(column) for column in zip(*shares[2:], strict=True))
        sys.stdout.write(f"{name}: forward {seconds * 1e3:.1f} ms, of it assembly {share:.2%}\n")


if __name__ == "__main__":
    main()
