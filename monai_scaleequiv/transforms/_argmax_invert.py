"""From logits on the network's grid to labels on the file's, one class at a time."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform
from monai.utils import convert_to_tensor, ensure_tuple_rep

from monai_scaleequiv.data import rules
from monai_scaleequiv.transforms._checks import has_batch_axis, name_of

PIECE = 1 << 24  # bytes that are worked on at a time


class ArgmaxInvertd(Invertd):
    """MONAI's ``Invertd`` for logits, which gives the label map and needs the memory of few class maps.

    The same as ``Activationsd(softmax=True)``, ``Invertd(nearest_interp=False)`` and ``AsDiscreted(argmax=True)``. The
    softmax is taken in place, and classes are inverted one by one while the largest so far is kept.

    Args:
        keys: keys of the logits, (K, ...) or (1, K, ...); their memory is written over.
        transform: the preprocessing that is to be undone.
        orig_keys: keys of the images that went through it, with or without a batch axis.
        num_classes: how many channels are logits of classes, at most 256; None for all.
        softmax: whether ``keys`` hold logits; else they hold probabilities, as of ``Activationsd(softmax=True)``.
        maps_key: key for the channels behind them, such as a scale map, inverted likewise; None where there are none.
        spatial_dims: number of spatial dimensions.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: when there is another number of channels, another size than the image's, or NaN or infinity.

    Example::

        >>> from monai.transforms import Compose, Flipd
        >>> flip = Compose([Flipd("image", spatial_axis=0)])
        >>> data = flip({"image": MetaTensor(torch.tensor([[[-1.0], [2.0]]]))})
        >>> data["pred"] = torch.cat([-data["image"], data["image"]])
        >>> ArgmaxInvertd("pred", flip, "image", spatial_dims=2)(data)["pred"].flatten().tolist()
        [0, 1]
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: InvertibleTransform,
        orig_keys: KeysCollection,
        num_classes: int | None = None,
        maps_key: KeysCollection | None = None,
        spatial_dims: int = 3,
        allow_missing_keys: bool = False,
        softmax: bool = True,
    ) -> None:
        super().__init__(keys, transform, orig_keys, nearest_interp=False, allow_missing_keys=allow_missing_keys)
        if num_classes is not None and not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes: expected 2 to 256, got {num_classes}; count the background, too.")
        self.num_classes = num_classes
        self.maps_key = ensure_tuple_rep(maps_key, len(self.keys))
        self.spatial_dims = spatial_dims
        self.softmax = softmax

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key, orig_key, maps_key in self.key_iterator(done, self.orig_keys, self.maps_key):
            batched = has_batch_axis(done[key], self.spatial_dims)
            image = self._single(done[orig_key], orig_key)
            logits = self._single(convert_to_tensor(done[key], track_meta=False), key).detach()
            logits = logits.float()  # probabilities of half precision would be ties
            classes = self._check(logits, image, name_of(image, key), maps_key is not None)
            for piece in logits[:classes].split(_slices(logits), 1):
                piece.copy_(self._activate(piece))
            inverted = [self._labels(logits[:classes], image, orig_key)]
            if classes < len(logits):
                inverted.append(torch.cat([self._inverted(part, image, orig_key) for part in logits[classes:]]))
            for name, volume in zip((key, maps_key), inverted, strict=False):
                done[name] = volume[None] if batched else volume
        return done

    def _activate(self, piece: torch.Tensor) -> torch.Tensor:
        return piece.softmax(0) if self.softmax else piece

    def _single(self, volume: torch.Tensor, name: Hashable) -> torch.Tensor:
        if not has_batch_axis(volume, self.spatial_dims):
            return volume
        if volume.shape[0] != 1:
            raise ValueError(f"{name}: expected one volume at a time, got {volume.shape[0]}; decollate the batch.")
        return volume[0]

    def _check(self, logits: torch.Tensor, image: torch.Tensor, name: str, with_maps: bool) -> int:
        """The number of classes."""
        if not isinstance(image, MetaTensor):
            raise ValueError(f"{name}: expected an image with its transforms, got a plain tensor; use LoadImaged.")
        classes = self.num_classes or len(logits)
        if len(logits) < classes + with_maps or (len(logits) > classes and not with_maps):
            rules.raise_first(name, rules.channels(len(logits), classes + with_maps))
        shapes = tuple(logits.shape[1:]), tuple(image.shape[1:])
        rules.raise_first(name, rules.grid(shapes[0], None, shapes[1], None, "the network's input"))
        bad = sum(int((~piece.isfinite()).sum()) for piece in logits.split(_slices(logits), 1))
        rules.raise_first(name, rules.finite(bad, "check the weights, and try --amp=false"))
        return classes

    def _labels(self, probabilities: torch.Tensor, image: torch.Tensor, orig_key: Hashable) -> torch.Tensor:
        best = self._inverted(probabilities[0], image, orig_key)
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for label in range(1, len(probabilities)):
            found = self._inverted(probabilities[label], image, orig_key)
            labels[found > best] = label  # of equal ones the first, as argmax has it
            torch.maximum(best, found, out=best)
        return labels

    def _inverted(self, volume: torch.Tensor, image: torch.Tensor, orig_key: Hashable) -> torch.Tensor:
        invert = Invertd("map", self.transform, orig_key, nearest_interp=False)
        return invert({"map": MetaTensor(volume[None]), orig_key: image})["map"]


def _slices(logits: torch.Tensor) -> int:
    """How many slices along the first spatial axis make a piece."""
    return max(1, PIECE * logits.shape[1] // (4 * logits.numel()))
