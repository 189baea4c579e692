"""Views of images at a random scale and place, whose numbers stay on the device."""

import math

import torch


def zoomed_view(
    x: torch.Tensor, size: list[int], step: torch.Tensor, centre: torch.Tensor, smoothing: torch.Tensor
) -> torch.Tensor:
    r"""Ideal resampling of each image of a batch at a step and about a centre of its own, mirrored beyond its border.

    The cosine series of :py:func:`resample_axis`, with a step that may be any number and need not be known to the host,
    so that nothing waits for the device and a CUDA graph can hold it.

    Args:
        x: images (B, C, D, H, W) or (B, C, H, W).
        size: number of voxels of each axis of the view.
        step: (B,), voxels of the view in voxels of the image.
        centre: (B, axes), the view's middle in voxels from the image's border.
        smoothing: (B,), standard deviation in voxels of the view of a Gaussian on top of the sharp end of the band.

    Example::

        >>> x, two = torch.rand(2, 1, 9, 8), torch.full([2], 2.0)
        >>> zoomed_view(x, [5, 4], two, torch.full([2, 2], 4.0), 0 * two).shape
        torch.Size([2, 1, 5, 4])
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    step, centre, smoothing = (value.to(x.device, dtype) for value in (step, centre, smoothing))
    for axis, target_size in enumerate(size):
        matrix = _view_matrix(x.shape[2], target_size, step, centre[:, axis], smoothing).to(x.dtype)
        x = x.movedim(2, -1)  # all axes have been moved in the end
        before = x.shape[1:-1]
        x = torch.bmm(x.flatten(1, -2), matrix.transpose(1, 2)).unflatten(1, before)
    return x


def _view_matrix(
    size: int, target_size: int, step: torch.Tensor, centre: torch.Tensor, smoothing: torch.Tensor
) -> torch.Tensor:
    # (B, M, N)
    orders = torch.arange(size, device=step.device, dtype=step.dtype)
    places = torch.arange(target_size, device=step.device, dtype=step.dtype) - (target_size - 1) / 2
    frequencies = orders * (step / size)[:, None]  # (B, N), in halves of the view's sampling rate
    damping = torch.exp(-0.5 * (math.pi * smoothing[:, None] * frequencies) ** 2)
    gain = (frequencies < 1) * damping * (2 - (orders == 0).to(step.dtype)) / size
    positions = torch.remainder(centre[:, None] + step[:, None] * places, 2 * size)  # (B, M), in one period
    analysis = torch.cos(orders[:, None] * (orders + 0.5) * (math.pi / size))  # (K, N)
    synthesis = torch.cos(positions[:, :, None] * orders * (math.pi / size))  # (B, M, K)
    return torch.matmul(synthesis * gain[:, None], analysis)
