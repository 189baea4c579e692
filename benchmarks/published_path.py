"""The scale-equivariant U-Net along the data path of the published code: slow, obvious, and the reference for speed.

Features are (B, C, S, D, H, W); every convolution is one grouped convolution for each interacting scale, between
changes of the layout, and normalisation is written out. Parameters, filters and results are those of ``build_seunet``.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn

from monai_scaleequiv.layers import (
    PerScale,
    ScaleGroupConv,
    ScaleLiftingConv,
    ScalePointwiseConv,
    ScaleProjection,
    SteerableConv,
)
from monai_scaleequiv.published import PublishedSEUNet
from monai_scaleequiv.published._seunet import PublishedResidualUnit

_ELEMENTWISE = (nn.Identity, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.ELU)


class PublishedPath(nn.Module):
    """Computes what ``network`` computes, with its parameters, in the published way.

    Args:
        network: from :py:func:`monai_scaleequiv.published.build_seunet`, without dropout.

    Example::

        >>> net = PublishedSEUNet(1, 1, (4, 8), (2,), kernel_size=5, effective_size=3, num_res_units=1)
        >>> PublishedPath(net)(torch.rand(1, 1, 17, 17, 17)).shape
        torch.Size([1, 1, 17, 17, 17])
    """

    def __init__(self, network: PublishedSEUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _run(self.network.model, x)


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What one module of the network does to an image (B, C, ...) or features (B, C, S, ...)."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = _run(part, x)
        return x
    if isinstance(module, SkipConnection):
        return torch.cat([x, _run(module.submodule, x)], dim=1)
    if isinstance(module, PublishedResidualUnit):
        return _run(module.conv, x) + _run(module.residual, x)
    if isinstance(module, ScaleLiftingConv):
        return _with_bias(
            module, _channels_first(module, _convolve(module, x, module.assemble_kernel()[:, :, 0], groups=1))
        )
    if isinstance(module, ScaleGroupConv):
        return _with_bias(module, _sum_over_scales(module, x))
    if isinstance(module, ScalePointwiseConv):
        return _pointwise(module.layer.weight, x)
    if isinstance(module, PerScale):
        return _normalise(module.layer, x)
    if isinstance(module, ScaleProjection):
        return x.amax(dim=2) if module.mode == "max" else x.mean(dim=2)
    if isinstance(module, _ELEMENTWISE):
        return module(x)
    raise TypeError(f"expected a module of the published network without dropout, got {type(module).__name__}.")


def _convolve(layer: SteerableConv, x: torch.Tensor, kernel: torch.Tensor, groups: int) -> torch.Tensor:
    # x (B, groups * I, ...), kernel (S, O, I, ...) -> (B, S * O, ...)
    if not layer.is_transposed:
        return F.conv3d(x, kernel.flatten(0, 1), None, layer.stride, layer.padding, groups=groups)
    kernel = kernel.transpose(1, 2).flatten(0, 1)  # (S * I, O, ...)
    return F.conv_transpose3d(x, kernel, None, layer.stride, layer.padding, groups=groups)


def _channels_first(layer: SteerableConv, y: torch.Tensor) -> torch.Tensor:
    return y.unflatten(1, (layer.num_scales, layer.out_channels)).permute(0, 2, 1, 3, 4, 5).contiguous()


def _sum_over_scales(layer: ScaleGroupConv, x: torch.Tensor) -> torch.Tensor:
    kernel = layer.assemble_kernel()  # (S, O, J, I, ...)
    scales, others = kernel.shape[0], kernel.shape[2]
    last = x[:, :, -1:].expand(-1, -1, others - 1, -1, -1, -1)
    padded = torch.cat([x, last], dim=2) if others > 1 else x  # (B, C, S + J - 1, ...)
    parts = []
    for j in range(others):
        shifted = padded[:, :, j : j + scales].permute(0, 2, 1, 3, 4, 5).contiguous().flatten(1, 2)  # (B, S * C, ...)
        parts.append(_convolve(layer, shifted, kernel[:, :, j], groups=scales))
    return _channels_first(layer, reduce(torch.add, parts))


def _with_bias(layer: SteerableConv, y: torch.Tensor) -> torch.Tensor:
    return y if layer.bias is None else y + layer.bias.reshape(-1, 1, 1, 1, 1)


def _pointwise(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # Weight (O, I, 1, 1, 1), repeated for every scale
    scales = x.shape[2]
    repeated = weight.repeat(scales, 1, 1, 1, 1)
    y = F.conv3d(x.permute(0, 2, 1, 3, 4, 5).contiguous().flatten(1, 2), repeated, groups=scales)
    return y.unflatten(1, (scales, weight.shape[0])).permute(0, 2, 1, 3, 4, 5).contiguous()


def _normalise(norm: nn.BatchNorm3d, x: torch.Tensor) -> torch.Tensor:
    # By the batch's statistics: biased in training, unbiased in evaluation
    dims = (0, 2, 3, 4, 5)
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=int(not norm.training), keepdim=True)
    y = (x - mean) / torch.sqrt(var + norm.eps)
    return y * norm.weight.reshape(-1, 1, 1, 1, 1) + norm.bias.reshape(-1, 1, 1, 1, 1)
