"""Images, networks and small helpers that the measurements of equivariance share."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from monai_scaleequiv import ScaleLiftingConv
from monai_scaleequiv.published import PublishedSEUNet

SEEDS = 3
SCALES = tuple(0.9**i for i in range(4))
NETWORKS = (((4, 8), (2,)), ((4, 8, 8), (2, 2)))
Row = dict[str, object]


def volume(data: Path, index: int, size: int) -> torch.Tensor:
    file = sorted((data / "imagesTr").glob("hippocampus_*.nii.gz"))[index]
    v = np.asarray(nibabel.load(file).dataobj, dtype=np.float64)
    v = np.pad(v, [(0, max(0, size - n)) for n in v.shape], mode="symmetric")[:size, :size, :size]
    return torch.from_numpy((v - v.mean()) / v.std())[None, None].float()


def periodic_noise(size: int = 60, slope: float = 3.5) -> torch.Tensor:
    white = torch.randn([size] * 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = torch.fft.fftfreq(size, dtype=torch.float64) ** 2
    power = f[:, None, None] + f[:, None] + f
    amplitude = torch.where(power > 0, power, torch.inf) ** (-slope / 4)
    v = torch.fft.ifftn(torch.fft.fftn(white) * amplitude).real
    return (v / v.std())[None, None].float()


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def settled(net: nn.Module, x: torch.Tensor) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    return net.eval()


def summary(errors: list[float]) -> Row:
    return {"mean": statistics.mean(errors), "max": max(errors)}


def published(channels: Sequence[int], strides: Sequence[int], scales: Sequence[float]) -> PublishedSEUNet:
    """The network as its authors configured it."""
    settings = {"kernel_size": 5, "effective_size": 3, "basis_type": "multi", "num_res_units": 2, "act": "silu"}
    return PublishedSEUNet(1, 2, channels, strides, scales=scales, reduction="avg", **settings)


def shrunk(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Ideal down-sampling of the last axis of a periodic signal."""
    size = x.shape[-1]
    spectrum = torch.fft.rfft(x, dim=-1)
    kept = torch.arange(spectrum.shape[-1]) * 2 * factor < size
    return torch.fft.irfft(spectrum * kept, size, dim=-1)[..., ::factor]


def periodic(layer: ScaleLiftingConv, x: torch.Tensor) -> torch.Tensor:
    return layer(F.pad(x, [n for k in reversed(layer.kernel_size) for n in [k // 2] * 2], mode="circular"))
