"""Inference straight to a label map, which takes the memory of one and not of a map per class."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import ensure_tuple

from monai_scaleequiv.data._check import name_of
from monai_scaleequiv.data._faults import channels_fault, finite_fault, refuse
from monai_scaleequiv.data._file_grid import file_grid
from monai_scaleequiv.data._stitching import slab_axis, stitched_pieces
from monai_scaleequiv.data._windows import MillimetreWindowInferer

__all__ = ["LabelMapInferer"]


class LabelMapInferer(Inferer):
    """Sliding windows to a label map on the grid of the image file, a few slices at a time.

    The same label map as from ``SlidingWindowInferer``, softmax, ``Invertd`` of the probabilities and argmax, but for
    rounding, without any of the maps of all classes: those of one window's thickness are enough. Between the file and
    the network there may be ``Orientationd`` and ``Spacingd`` (linear), or neither. If a GPU's memory does not do, the
    image is run again with one window at a time, put together on the CPU, with a warning.

    Args:
        windows: size of the windows, overlap, weights, devices.
        num_classes: number of the network's channels that are logits of classes, at most 256.
        maps: number of further channels, which are put together likewise and given behind the labels.
        remedy: what the user can do about logits that are not finite.

    Raises:
        ValueError: when an argument, the network's output or the preprocessing is not what it should be.

    Example::

        >>> network = lambda x: torch.cat([-x, x], 1)
        >>> infer = LabelMapInferer(SlidingWindowInferer((8, 8, 8), overlap=0.25), num_classes=2)
        >>> labels = infer(torch.randn(1, 1, 20, 18, 16), network)
        >>> labels.shape, labels.dtype
        (torch.Size([1, 1, 20, 18, 16]), torch.uint8)
    """

    def __init__(
        self,
        windows: SlidingWindowInferer | MillimetreWindowInferer,
        num_classes: int,
        maps: int = 0,
        remedy: str = "check the weights, and try --amp=false",
    ) -> None:
        super().__init__()
        if not isinstance(windows, (SlidingWindowInferer, MillimetreWindowInferer)):
            raise ValueError(f"windows: expected a SlidingWindowInferer, got {type(windows).__name__}; give one.")
        for option in ("with_coord", "buffer_steps", "progress"):
            if getattr(windows, option, None):
                raise ValueError(f"windows: expected no {option}, got {getattr(windows, option)}; leave it out.")
        _check_windows(windows)
        if not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes: expected 2 to 256, got {num_classes}; count the background, too.")
        if maps < 0:
            raise ValueError(f"maps: expected at least 0, got {maps}; count the channels behind the classes.")
        self.windows = windows
        self.num_classes = num_classes
        self.maps = int(maps)
        self.remedy = remedy

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs the network.

        Args:
            inputs: one image (1, C, D, H, W), as ``LoadImaged`` and the other transforms leave it.
            network: called as ``network(window, *args, **kwargs)``.
            args: see ``network``.
            kwargs: see ``network``; ``MillimetreWindowInferer`` needs ``spacing``.

        Returns:
            labels (1, 1, ...) on the file's grid, as uint8, or (1, 1 + maps, ...) as float32.
        """
        if inputs.shape[0] != 1:
            raise ValueError(f"expected one image at a time, got {inputs.shape[0]}; set batch_size to 1.")
        windows = self._windows(inputs, kwargs)

        def run(batch: torch.Tensor) -> torch.Tensor:
            return network(batch, *args, **kwargs)

        try:
            return self._labels(inputs, run, windows)
        except torch.OutOfMemoryError as error:
            if windows.sw_batch_size == 1 and torch.device(windows.device or inputs.device).type == "cpu":
                raise
            told = " ".join(str(error).split())[:120]
        # Outside of the except clause, for the error keeps everything alive that it passed.
        warnings.warn(f"out of memory ({told}): one window at a time now, put together on the CPU.", stacklevel=2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        windows.sw_batch_size, windows.device = 1, torch.device("cpu")
        return self._labels(inputs, run, windows)

    def _windows(self, inputs: torch.Tensor, kwargs: dict[str, Any]) -> SlidingWindowInferer:
        if isinstance(self.windows, SlidingWindowInferer):
            return copy.copy(self.windows)
        return self.windows.in_voxels(kwargs.get("spacing", ()), inputs.shape[2:])

    def _labels(self, inputs: torch.Tensor, network: Callable, windows: SlidingWindowInferer) -> torch.Tensor:
        image = decollate_batch(inputs)[0] if isinstance(inputs, MetaTensor) else inputs[0]
        name = name_of(image, "pred")
        grid = file_grid(image, name)
        axis = slab_axis(image.shape[1:], windows)
        plain = torch.as_tensor(image.as_tensor() if isinstance(image, MetaTensor) else image)[None]
        with torch.no_grad():
            pieces = self._probabilities(stitched_pieces(plain, network, windows, axis), name)
            labels, maps = grid.labels(pieces, axis, self.num_classes)
        found = torch.cat([labels[None].to(maps.dtype), maps])[None] if self.maps else labels[None, None]
        if not isinstance(inputs, MetaTensor):
            return found
        found = MetaTensor(found).copy_meta_from(inputs)
        found.affine = grid.affine[None] if inputs.is_batch else grid.affine
        found.applied_operations = [[]] if inputs.is_batch else []
        return found

    def _probabilities(self, pieces: Iterator[torch.Tensor], name: str) -> Iterator[torch.Tensor]:
        for piece in pieces:
            refuse(name, channels_fault(piece.shape[0], self.num_classes + self.maps))
            bad = piece.numel() - int(torch.isfinite(piece).sum())
            refuse(name, finite_fault(bad, self.remedy))
            probabilities = torch.softmax(piece[: self.num_classes], 0)
            yield torch.cat([probabilities, piece[self.num_classes :]]) if self.maps else probabilities


def _check_windows(windows: SlidingWindowInferer | MillimetreWindowInferer) -> None:
    number, overlaps = windows.sw_batch_size, ensure_tuple(windows.overlap)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"sw_batch_size: expected a whole number of at least 1, got {number!r}; give another one.")
    if not all(isinstance(o, (int, float)) and 0 <= o < 1 for o in overlaps):
        raise ValueError(f"overlap: expected a share from 0 to below 1, got {windows.overlap!r}; give another one.")
