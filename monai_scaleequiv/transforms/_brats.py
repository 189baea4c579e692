"""From logits of the overlapping regions of a brain tumour to BraTS label maps on the file's grid."""

from collections.abc import Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform

from monai_scaleequiv.transforms._argmax_invert import ArgmaxInvertd

REGIONS = ("tumour core", "whole tumour", "enhancing tumour")  # as ConvertToMultiChannelBasedOnBratsClasses has them


class BratsRegionsInvertd(ArgmaxInvertd):
    """``ArgmaxInvertd`` for the channels of MONAI's ``ConvertToMultiChannelBasedOnBratsClassesd``, and their inverse.

    The same as ``Activationsd(sigmoid=True)``, ``Invertd(nearest_interp=False)`` and ``AsDiscreted(threshold)``,
    but that a voxel of an inner region is in the outer ones, too: so it gets the label of the innermost one.

    Args:
        keys: keys of the logits, (3, ...) or (1, 3, ...): tumour core, whole tumour, enhancing tumour; their memory is
            written over.
        transform: the preprocessing that is to be undone.
        orig_keys: keys of the images that went through it, with or without a batch axis.
        label_values: of necrotic core, oedema and enhancing tumour; None for the three regions as channels.
        threshold: probability above which a voxel is in a region.
        sigmoid: whether ``keys`` hold logits; else they hold probabilities, as of ``Activationsd(sigmoid=True)``.
        allow_missing_keys: whether to pass over keys that are not there.

    Raises:
        ValueError: when the threshold is not between 0 and 1, or there are not three channels, another size than the
            image's, or NaN or infinity.

    Example::

        >>> from monai.data import MetaTensor
        >>> from monai.transforms import Compose, Flipd
        >>> flip = Compose([Flipd("image", spatial_axis=0)])
        >>> data = flip({"image": MetaTensor(torch.zeros(1, 4, 1, 1))})
        >>> data["pred"] = torch.tensor([[-9.0, -9, 9, 9], [-9, 9, 9, 9], [-9, -9, -9, 9]]).reshape(3, 4, 1, 1)
        >>> BratsRegionsInvertd("pred", flip, "image")(data)["pred"].flatten().tolist()
        [4, 1, 2, 0]
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: InvertibleTransform,
        orig_keys: KeysCollection,
        label_values: Sequence[int] | None = (1, 2, 4),
        threshold: float = 0.5,
        sigmoid: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, transform, orig_keys, len(REGIONS), allow_missing_keys=allow_missing_keys)
        if label_values is not None and (len(set(label_values) | {0}) != 4 or not set(label_values) <= set(range(256))):
            hint = "give those of necrotic core, oedema and enhancing tumour, such as [1, 2, 4]"
            raise ValueError(f"label_values: expected three labels from 1 to 255, got {list(label_values)}; {hint}.")
        if not 0 < threshold < 1:
            raise ValueError(
                f"threshold: expected a probability between 0 and 1, got {threshold}; give one such as 0.5."
            )
        self.label_values, self.threshold = label_values, threshold
        self.sigmoid = sigmoid

    def _activate(self, piece: torch.Tensor) -> torch.Tensor:
        return piece.sigmoid() if self.sigmoid else piece

    def _labels(self, probabilities: torch.Tensor, image: torch.Tensor, orig_key: object) -> torch.Tensor:
        core, whole, enhancing = (self._inverted(region, image, orig_key) > self.threshold for region in probabilities)
        core = core | enhancing
        whole = whole | core
        if self.label_values is None:
            return torch.cat([core, whole, enhancing]).to(torch.uint8)
        labels = torch.zeros_like(core, dtype=torch.uint8)
        necrotic_label, oedema_label, enhancing_label = self.label_values
        for region, label in ((whole, oedema_label), (core, necrotic_label), (enhancing, enhancing_label)):
            labels[region] = label
        return labels
