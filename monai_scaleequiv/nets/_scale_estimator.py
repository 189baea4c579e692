"""A small network that says how large the content of an image is."""

from collections.abc import Sequence

import torch
from torch import nn

_GROUP = 8  # channels that are normalised together


class ScaleEstimator(nn.Module):
    """Binary logarithm of the scale of images: convolutions, mean and deviation over space, two linear layers.

    Its answer is 0 at first.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of the levels, each after the first on a grid coarser by 2.

    Shape:
        input (B, in_channels, D, H, W) of any size, output (B,).

    Example::

        >>> ScaleEstimator(3, 1, (4, 8))(torch.rand(2, 1, 9, 4, 5)).shape
        torch.Size([2])
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        conv: type[nn.Module] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(zip([in_channels, *channels[:-1]], channels, strict=True)):
            layers += [_Border(spatial_dims), conv(before, after, 3, stride=2 if level else 1), _norm(after), nn.SiLU()]
            if level:
                layers += [_Border(spatial_dims), conv(after, after, 3), _norm(after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(2 * channels[-1], channels[-1])
        self.act = nn.SiLU()
        self.last = nn.Linear(channels[-1], 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).flatten(2)
        # Not the maximum, which grows with the number of voxels.
        deviation = (features.var(-1, unbiased=False) + 1e-5).sqrt()  # which has a gradient at 0 too
        pooled = torch.cat([features.mean(-1), deviation], 1)
        return self.last(self.act(self.hidden(pooled)))[:, 0]


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // _GROUP if channels % _GROUP == 0 else 1, channels)


class _Border(nn.Module):
    # One voxel around the image, as the nearest. Unlike torch's, its gradient is deterministic on CUDA devices.
    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, 2 + self.spatial_dims):
            x = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, x.shape[axis] - 1, 1)], axis)
        return x
