"""A slice of a case, and the outlines of labels on it."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import BorderPad, Orientation, SpatialResample
from monai.utils import convert_to_tensor

from monai_scaleequiv.data import one_line

# Okabe and Ito's colours, which differ for colour-blind readers, too; of the labels 1, 2, ...
COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00")
DASHES = ("-", "--", "-.")
PLANES = {"sagittal": "AS", "coronal": "RS", "axial": "RA"}
BARS = (1, 2, 5, 10, 20, 50, 100, 200)  # mm
SHADE = {"facecolor": "black", "alpha": 0.5, "linewidth": 0}


class CaseSlice(NamedTuple):
    """A slice of a case: arrays (width, height), the first axis to the right; ``size`` is that of all in mm."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    size: tuple[float, float]
    place: str
    ends: str  # what lies to the right and upwards, such as "RA" for right and anterior


def case_slice(case: Mapping[str, Any], worst: bool) -> CaseSlice:
    """The slice in which prediction and label differ most, or that with most of the label, across the largest voxels.

    Of a case as an evaluator leaves it: ``label`` and ``pred`` (C, D, H, W) on one grid (see ``label_maps``), ``image``
    (C, ...) on any, of which the first channel is resampled to the slice. Two-dimensional cases are one slice.
    """
    volume = _in_3d(label_maps(case)[0], case["label"].affine)
    image = _in_3d(case["image"][:1], case["image"].affine)
    upright: Any = Orientation("RAS", labels=None)(volume)
    truth, prediction = upright.as_tensor()
    sizes = affine_to_spacing(upright.affine).tolist()
    axis = max(range(3), key=lambda i: (truth.shape[i] == 1, round(sizes[i], 3), i))
    others = [i for i in range(3) if i != axis]
    wanted = (truth != prediction, truth > 0) if worst else (truth > 0,)
    counts = next((n for mask in wanted if (n := mask.sum(dim=others)).any()), None)
    at = truth.shape[axis] // 2 if counts is None else int(counts.argmax())
    shift = torch.eye(4, dtype=torch.float64)
    shift[axis, 3] = at
    shape = [1 if i == axis else n for i, n in enumerate(truth.shape)]
    affine = upright.affine.to(shift) @ shift
    framed: Any = BorderPad(1)(image.float())  # so that 0 lies around an image that was cropped
    grey: Any = SpatialResample(padding_mode="border")(framed, dst_affine=affine, spatial_size=shape)
    shown = [part.select(axis, i).cpu().numpy() for part, i in ((grey[0], 0), (truth, at), (prediction, at))]
    width, height = (sizes[i] * truth.shape[i] for i in others)
    plane, ends = list(PLANES.items())[axis]
    # One slice alone has no directions that are known.
    place, ends = (f"{plane} slice {at + 1} of {truth.shape[axis]}", ends) if truth.shape[axis] > 1 else ("", "")
    return CaseSlice(shown[0], shown[1], shown[2], (width, height), place, ends)


def label_maps(case: Mapping[str, Any]) -> tuple[torch.Tensor, range]:
    """Label maps (2, D, H, W) of ``label`` and ``pred``, and the labels that they may have.

    Both (C, D, H, W), of classes that exclude each other, the background first; or of regions that overlap, without
    one: then channel n is label n + 1, and regions lie on those that are larger in ``label``.
    """
    parts = torch.stack([convert_to_tensor(case[key], track_meta=False) for key in ("label", "pred")])
    if bool((parts[0].sum(dim=0) == 1).all()):
        return parts.argmax(dim=1).to(torch.int16), range(1, parts.shape[1])
    maps = torch.zeros_like(parts[:, 0], dtype=torch.int16)
    sizes = parts.flatten(2).sum(dim=2).tolist()  # of two that are equal in the label, those of the prediction count
    for channel in sorted(range(parts.shape[1]), key=lambda n: (sizes[0][n], sizes[1][n]), reverse=True):
        maps[parts[:, channel] > 0] = channel + 1
    return maps, range(1, parts.shape[1] + 1)


def _in_3d(values: torch.Tensor, affine: torch.Tensor) -> MetaTensor:
    values = convert_to_tensor(values, track_meta=False)
    return MetaTensor(values.reshape(*values.shape, *[1] * (4 - values.dim())), affine=to_affine_nd(3, affine))


def draw_overlay(
    axes: Any, image: np.ndarray, size: Sequence[float], labels: np.ndarray, truth: np.ndarray | None = None
) -> None:
    """Draws an image in grey, outlines of labels in their colours, and those of the truth dotted in white.

    Args:
        axes: of matplotlib.
        image: of shape (width, height), the first axis to the right.
        size: what it measures along these axes, as in mm.
        labels: label map of the same extent; it may have another number of voxels.
        truth: another one.

    Example::

        >>> from matplotlib.figure import Figure
        >>> draw_overlay(Figure().subplots(), np.zeros((8, 6)), (16.0, 6.0), np.eye(8, 6, dtype=int))
    """
    low, high = np.percentile(image, (1, 99))
    extent = (0, size[0], 0, size[1])
    axes.imshow(image.T, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest", extent=extent)
    for label in (int(value) for value in np.unique(labels) if value):
        _outline(axes, labels == label, size, colors=[colour_of(label)], linewidths=2, linestyles=dashes_of(label))
    for label in () if truth is None else (value for value in np.unique(truth) if value):
        _outline(axes, truth == label, size, colors="black", linewidths=1)  # to be seen on white, too
        _outline(axes, truth == label, size, colors="white", linewidths=1, linestyles=":")
    axes.set(xticks=[], yticks=[], xlim=(0, size[0]), ylim=(0, size[1]))


def colour_of(label: int) -> str:
    """The colour of a label from 1 on."""
    return COLOURS[(label - 1) % len(COLOURS)]


def dashes_of(label: int) -> str:
    """The style of a label's line, by which labels of one colour differ."""
    return DASHES[(label - 1) // len(COLOURS) % len(DASHES)]


def _outline(axes: Any, mask: np.ndarray, size: Sequence[float], **style: Any) -> Any:
    centres = [(np.arange(-1, n + 1) + 0.5) * length / n for n, length in zip(mask.shape, size, strict=True)]
    return axes.contour(*centres, np.pad(mask, 1).T, [0.5], **style)  # padded, so that outlines close at the border


def legend_lines(labels: Iterable[int], names: Mapping[int, str]) -> list[Any]:
    """What a legend shows of labels: a line in the colour of each, with its name."""
    from matplotlib.lines import Line2D

    shown = sorted(set(labels) - {0})
    styles: dict[int, dict[str, Any]] = {n: {"color": colour_of(n), "linestyle": dashes_of(n)} for n in shown}
    return [Line2D([], [], linewidth=2, label=names.get(n, f"class {n}"), **style) for n, style in styles.items()]


def columns_of(lines: Sequence[Any], letters: int) -> int:
    """How many columns of a legend fit beside each other in so many letters."""
    return max(1, min(6, letters // (6 + max((len(line.get_label()) for line in lines), default=1))))


@contextmanager
def no_harm(picture: str) -> Iterator[None]:
    """Turns any error into a warning: a picture that cannot be drawn or written may not cost a training its hours."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{picture}: not drawn ({one_line(error)}); the run goes on.", stacklevel=3)


def frame(axes: Any, mask: np.ndarray, size: Sequence[float], ends: str = "") -> None:
    """Shows the square around a mask, with room about it, a bar for its scale and directions; all if it is empty."""
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    steps = [length / n for n, length in zip(mask.shape, size, strict=True)]
    found = [np.nonzero(mask.any(axis=1 - i))[0] for i in (0, 1)]
    spans = [(at[0] * step, (at[-1] + 1) * step) for at, step in zip(found, steps, strict=True) if len(at)]
    spans = spans or [(0, length) for length in size]
    side = min(max(1.6 * max(high - low for low, high in spans), 24 * max(steps)), max(size))
    starts = [(low + high - side) / 2 for low, high in spans]
    # No emptiness beside an image that goes on elsewhere.
    starts = [
        min(max(start, 0), length - side) if length > side else (length - side) / 2
        for start, length in zip(starts, size, strict=True)
    ]
    (left, bottom), bar = starts, max((b for b in BARS if b <= side / 3), default=BARS[0])
    axes.set(xlim=(left, left + side), ylim=(bottom, bottom + side), facecolor="black")
    style = {"loc": "lower right", "color": "white", "size_vertical": side / 150, "pad": 0.3, "borderpad": 0.2}
    ruler = AnchoredSizeBar(axes.transData, bar, f"{bar} mm", **style)
    ruler.patch.set(**SHADE)
    axes.add_artist(ruler)
    for letter, x, y in zip(ends, (0.97, 0.5), (0.5, 0.96), strict=False):
        style = {"ha": "center", "va": "center", "bbox": {**SHADE, "pad": 1}}
        axes.text(x, y, letter, color="white", fontsize=9, transform=axes.transAxes, **style)
