"""Ways to compute instance norm, for measurements of each on a device.

python benchmarks/norms.py --edge=96 --channels=48 --device=cuda --dtype=bfloat16
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import fire
import torch
import torch.nn.functional as F

from monai_scaleequiv.layers import split_instance_norm

_EPS = 1e-5


def candidates() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Functions from images (B, C, ...) to the same images, each channel of each normalised over its voxels."""
    return {
        "instance_norm": F.instance_norm,
        "group_norm": lambda x: F.group_norm(x, x.shape[1]),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[2:]),
        "cudnn_batch_norm": _batch_norm_with_weights,
        "channels_last_batch_norm": _channels_last_batch_norm,
        "var_mean": _by_var_mean,
        "split": split_instance_norm,
    }


def _batch_norm_with_weights(x: torch.Tensor) -> torch.Tensor:
    """With a weight and a bias, and only then, torch takes cuDNN's batch norm on CUDA."""
    ones = torch.ones(x.shape[0] * x.shape[1], device=x.device)
    y = F.batch_norm(x.reshape(1, -1, *x.shape[2:]), None, None, ones, torch.zeros_like(ones), True, 0.0, _EPS)
    return y.reshape(x.shape)


def _channels_last_batch_norm(x: torch.Tensor) -> torch.Tensor:
    """Torch's kernels for channels in the last place spread a channel's sum over several blocks, for two copies."""
    rows = x.reshape(1, x.shape[0] * x.shape[1], -1, 1).contiguous(memory_format=torch.channels_last)
    return F.batch_norm(rows, None, None, None, None, True, 0.0, _EPS).reshape(x.shape)


def _by_var_mean(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x.float(), dim=list(range(2, x.dim())), correction=0, keepdim=True)
    factor = torch.rsqrt(variance + _EPS)
    return torch.addcmul(-mean * factor, x, factor).to(x.dtype)


def milliseconds(work: Callable[[], object], device: str, runs: int) -> float:
    """Median of wall times, the device waited for; the first call is left out."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measured(edge: int, channels: int, device: str, dtype: str, runs: int) -> list[dict[str, object]]:
    """One row for each candidate: forward alone, and forward with backward."""
    x = torch.randn([1, channels, edge, edge, edge], device=device, dtype=getattr(torch, dtype), requires_grad=True)
    grad = torch.randn_like(x)
    rows = []
    for name, norm in candidates().items():
        with torch.no_grad():
            forward = milliseconds(lambda norm=norm: norm(x), device, runs)
        step = milliseconds(lambda norm=norm: torch.autograd.grad(norm(x), x, grad), device, runs)
        rows.append({"norm": name, "forward_ms": round(forward, 3), "step_ms": round(step, 3)})
    return rows


def main(edge: int = 96, channels: int = 48, device: str = "cpu", dtype: str = "float32", runs: int = 10) -> None:
    """Prints one line of JSON for each candidate."""
    sys.stdout.writelines(json.dumps(row) + "\n" for row in measured(edge, channels, device, dtype, runs))


if __name__ == "__main__":
    fire.Fire(main)
