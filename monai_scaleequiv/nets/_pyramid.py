"""Scale-equivariance for any segmentation network: each scale on its own grid."""

import math
from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from monai_scaleequiv.layers import ScaleProjection, SingleImageConvolutions, check_arguments, check_image
from monai_scaleequiv.maths import as_ratio, check_scales, resample_axes, voxel_sizes
from monai_scaleequiv.nets._checkpoint import run_checkpointed
from monai_scaleequiv.nets._metadata import with_metadata
from monai_scaleequiv.nets._seunet import SEUNet

_MOST_TIMES = 64  # coarser or finer than the image


class ScalePyramid(nn.Module):
    """Runs one network on rescaled copies of the image and joins its answers on the image's own grid.

    Whatever the network is made of, its answers move along the scale axis when the image is rescaled. Copies are made
    by ideal resampling and computed one after another. Put around a network before training, or around a trained one as
    test-time averaging over scales.

    Args:
        network: segmentation network, images (B, C, D, H, W) in, logits (B, C', D, H, W) out.
        scales: voxel sizes of the copies, relative to ``voxel_size`` or, without it, to the image's voxels. Larger is
            coarser and cheaper: the four default scales cost less than two passes of the network.
        projection: how the answers are joined, a mode of :py:class:`ScaleProjection` or a module of its kind.
        spatial_dims: 2 or 3.
        voxel_size: mm, one or per axis; copies have voxels of ``voxel_size * scale`` whatever the image's own, which is
            read from the MetaTensor or given with each call. None for scales in voxels.
        size_divisor: number that the copies' sizes must be multiples of, one or per axis, such as 32 for SwinUNETR;
            None for the product of ``network.strides`` (of MONAI's UNet), or 1 without it and around a SEUNet.
            What a copy reaches beyond the image is mirrored; it may end up to a quarter of its voxel before the image.
        use_checkpoint: whether training keeps only the copies' answers and computes the rest twice, to save memory.
        with_scale_map: whether a last channel is added: for each voxel the scale that contributed most to the
            predicted class, in mm with ``voxel_size`` (the geometric mean over axes), else relative.
        smoothing: standard deviation, in voxels of the copy, of a Gaussian instead of the sharp end of the band: with
            0.5 answers depend several times less on how the image was interpolated, at some loss of finest detail.
        dropout: probability for all layers of dropout in ``network``; None leaves them as they are.

    Raises:
        ValueError: when an argument is out of range, or ``voxel_size`` is given and the spacing of an image is unknown.

    Shape:
        input (B, C, D, H, W) of any size, output (B, C', D, H, W), or C' + 1 channels with a scale map.

    Example::

        >>> from monai.networks.nets import UNet
        >>> unet = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> ScalePyramid(unet)(torch.rand(1, 1, 35, 51, 36)).shape
        torch.Size([1, 2, 35, 51, 36])

    Source: shared networks on rescaled copies, Jansson and Lindeberg 2020 (arXiv 2004.01536), there for whole images.
    """

    def __init__(
        self, network: nn.Module, scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3), 2.0),
        projection: str | nn.Module = "logsumexp", spatial_dims: int = 3,
        voxel_size: Sequence[float] | float | None = None, size_divisor: Sequence[int] | int | None = None,
        use_checkpoint: bool = False, with_scale_map: bool = False, smoothing: float = 0.0,
        dropout: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        divisor = _strides_product(network, spatial_dims) if size_divisor is None else size_divisor
        check_arguments(spatial_dims, size_divisor=divisor)
        check_scales(scales)
        if getattr(network, "dsdepth", 1) > 1 or getattr(network, "deep_supervision", False):
            raise ValueError(f"network must give one answer, got a {type(network).__name__} with deep supervision.")
        if min(scales) < 1 / _MOST_TIMES or max(scales) > _MOST_TIMES:
            raise ValueError(f"scales must be from 1/{_MOST_TIMES} to {_MOST_TIMES}, got {tuple(scales)}.")
        self.network = network
        self.scales = [float(s) for s in scales]
        self.projection = ScaleProjection(projection) if isinstance(projection, str) else projection
        self.spatial_dims = spatial_dims
        self.voxel_size = None if voxel_size is None else voxel_sizes(voxel_size, spatial_dims, "voxel_size")
        self._voxel = self.voxel_size or [1.0] * spatial_dims
        self.size_divisor = list(ensure_tuple_rep(divisor, spatial_dims))
        if not 0 <= smoothing < math.inf:
            raise ValueError(f"smoothing must be a number of at least 0, got {smoothing}.")
        self.use_checkpoint = use_checkpoint
        self.smoothing = smoothing
        self.with_scale_map = with_scale_map
        self.dropout = dropout
        _set_dropout(network, dropout)

    def forward(self, x: torch.Tensor, spacing: list[float] | None = None) -> torch.Tensor:
        """Segments images (B, C, D, H, W); ``spacing`` in mm per axis, None to read it from a MetaTensor."""
        check_image(x, self.spatial_dims, 0)
        if not torch.jit.is_scripting() and self.voxel_size is not None and spacing is None:
            spacings = self._read_spacings(x)
            if len(spacings) > 1:
                return torch.cat([self.forward(x[i : i + 1], spacings[i]) for i in range(len(spacings))])
            spacing = spacings[0]
        if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
            return self._with_metadata(x, spacing)
        answers = [self._answer(x, step) for step in self._steps(spacing)]
        features = torch.stack(answers, dim=1)  # (B, S, C', D, H, W)
        y = self.projection(features)
        return torch.cat([y, self._scale_map(features, y)], dim=1) if self.with_scale_map else y

    @torch.jit.unused
    def _with_metadata(self, x: MetaTensor, spacing: list[float] | None) -> MetaTensor:
        return with_metadata(ScalePyramid.forward, self, x, spacing)

    def _answer(self, x: torch.Tensor, step: list[tuple[int, int]]) -> torch.Tensor:
        size = [x.shape[2 + axis] for axis in range(self.spatial_dims)]
        copy = resample_axes(x, self._copy_size(size, step), step, self.smoothing)
        if torch.jit.is_scripting():
            y = self.network(copy)
        elif self.use_checkpoint and self.training:
            y = self._checkpointed(copy)
        else:
            y = self._run(copy)
        return resample_axes(y, size, [(denominator, numerator) for numerator, denominator in step])

    @torch.jit.unused
    def _run(self, x: torch.Tensor) -> torch.Tensor:
        is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_graph or x.device.type != "cpu" or x.shape[0] > 1:
            return self.network(x)  # without what the context would cost at each of its operations
        with SingleImageConvolutions():
            return self.network(x)

    def _copy_size(self, size: list[int], step: list[tuple[int, int]]) -> list[int]:
        multiples: list[int] = []
        for axis, (numerator, denominator) in enumerate(step):
            # Rounded up from half a voxel less, so that 96 / 2**(1/3) = 76.2 voxels are 76 and not 80 where 4 divide.
            divisor = 2 * self.size_divisor[axis] * numerator
            multiples.append((2 * size[axis] * denominator - numerator + divisor - 1) // divisor)
            if multiples[axis] < 1:
                multiples[axis] = 1
        # A network's lowest level would hold a single voxel, of which no norm can take statistics.
        if max(multiples) == 1 and max(self.size_divisor) > 1:
            multiples[-1] = 2
        return [multiples[axis] * self.size_divisor[axis] for axis in range(self.spatial_dims)]

    @torch.jit.unused
    def _checkpointed(self, x: torch.Tensor) -> torch.Tensor:
        return run_checkpointed(self.network, self._run, x)

    def _steps(self, spacing: list[float] | None) -> list[list[tuple[int, int]]]:
        # For each scale and axis: the copy's voxel in voxels of the image, as a quotient
        voxel = [1.0 for _ in range(self.spatial_dims)]
        if self.voxel_size is not None:
            if spacing is None or len(spacing) != self.spatial_dims or not all([s > 0 for s in spacing]):  # noqa: C419
                raise ValueError(f"spacing must hold a voxel size above 0, in mm, for each axis, got {spacing}.")
            voxel = [self._voxel[axis] / spacing[axis] for axis in range(self.spatial_dims)]
            if min(voxel) < 1e-3 or max(voxel) > 1e3:
                raise ValueError(f"spacing must be within a factor of 1000 of voxel_size {self._voxel}, got {spacing}.")
        return [[as_ratio(scale * v) for v in voxel] for scale in self.scales]

    @torch.jit.unused
    def _read_spacings(self, x: torch.Tensor) -> list[list[float]]:
        # One if all images of the batch have the same, else one for each
        if not isinstance(x, MetaTensor):
            got = type(x).__name__
            raise ValueError(f"expected a MetaTensor, for its voxel size, or the argument spacing, got {got}.")
        pixdim = torch.stack(x.pixdim) if x.is_batch else x.pixdim[None]
        pixdim = pixdim[:, : self.spatial_dims]  # (B or 1, axes)
        return (pixdim[:1] if torch.allclose(pixdim, pixdim[:1], rtol=1e-4) else pixdim).tolist()

    def _scale_map(self, features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # features (B, S, C', ...): at each scale how probable the class is that was predicted in the end
        if features.shape[2] > 1:
            predicted = y.argmax(dim=1, keepdim=True).unsqueeze(1)  # (B, 1, 1, D, H, W)
            predicted = predicted.expand([-1, features.shape[1]] + [-1] * (y.dim() - 1))
            support = torch.log_softmax(features, dim=2).gather(2, predicted)
        else:
            support = features * torch.sign(y).unsqueeze(1)
        unit = math.exp(sum([math.log(v) for v in self._voxel]) / self.spatial_dims)
        sizes = torch.cat([y.new_full([1], s * unit) for s in self.scales])
        return sizes[support.argmax(dim=1)]  # (B, 1, D, H, W)

    def extra_repr(self) -> str:
        unit = f", voxel_size={self.voxel_size} mm" if self.voxel_size else ""
        return f"scales={[round(s, 4) for s in self.scales]}{unit}, size_divisor={self.size_divisor}"


def _set_dropout(network: nn.Module, dropout: float | None) -> None:
    if dropout is None:
        return
    layers = [layer for layer in network.modules() if isinstance(layer, _DropoutNd)]
    if not layers or not 0 <= dropout <= 1:
        got = f"got {dropout} and {len(layers)} layer(s)"
        raise ValueError(f"dropout: expected 0 to 1, and layers of dropout in the network, {got}; build it with some.")
    for layer in layers:
        layer.p = dropout


def _strides_product(network: nn.Module, spatial_dims: int) -> list[int]:
    strides = () if isinstance(network, SEUNet) else getattr(network, "strides", ())  # which takes any size
    strides = [ensure_tuple_rep(s, spatial_dims) for s in strides]
    return [math.prod(s[axis] for s in strides) for axis in range(spatial_dims)]
