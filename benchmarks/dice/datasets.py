"""Volumes of the three data sets, as 8-bit intensities and labels, and who trains and who is tested.

Intensities are cut at the 0.1 and 99.9 percent points and kept in 255 steps, so that all volumes travel in one file per
data set and fit a graphics card many times; 0 is what lies outside of the brain.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch

from benchmarks.dice.zooming import resized

FOLDERS = {"hippocampus": "Task04_Hippocampus", "brats": "BraTS18_2mm", "acdc": "ACDC"}
CLASSES = {
    "hippocampus": ("anterior", "posterior"),
    "brats": ("whole tumour",),
    "acdc": ("right ventricle", "myocardium", "left ventricle"),
}
MODALITIES = ("t1", "t1ce", "t2", "flair")
FINE = 1.5  # mm: ACDC's setting "coarse" trains from here upwards and tests below
FOLDS = 6  # of BraTS


@dataclass
class Volume:
    """Image (C, D, H, W) in 8 bits, label (D, H, W) and voxel size in mm."""

    dataset: str
    name: str
    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]

    def normalised(self) -> torch.Tensor:
        """Zero mean and unit deviation of what is not 0, channel by channel; what is 0 stays 0."""
        image = torch.from_numpy(self.image).float()
        for channel in image:
            inside = channel > 0
            values = channel[inside]
            channel[inside] = (values - values.mean()) / values.std()
        return image

    def mirrored(self) -> "Volume":
        """With as many channels more, which show the other side."""
        return dataclasses.replace(self, image=np.concatenate([self.image, self.image[:, ::-1]]))

    def resampled(self, voxel: float) -> "Volume":
        """In the plane at another voxel size, for a training; labels by the most probable class."""
        size = [max(round(n * s / voxel), 1) for n, s in zip(self.label.shape[:2], self.spacing, strict=False)]
        size.append(self.label.shape[2])
        lowest = int(self.image.min())  # 1 where nothing lies outside: splines must not make a 0 there
        image = resized(torch.from_numpy(self.image)[None].float(), size)[0].round().clamp(lowest, 255)
        each = torch.stack([torch.from_numpy(self.label == k).float() for k in range(int(self.label.max()) + 1)])
        label = resized(each[None], size)[0].argmax(0)
        spacing = (voxel, voxel, *self.spacing[2:])
        return Volume(self.dataset, self.name, image.byte().numpy(), label.byte().numpy(), spacing)


def prepare(output: str, data: str = "../shared/data") -> None:
    """Reads the NIfTI files once and leaves one file for each data set.

    Args:
        output: folder for ``hippocampus.npz``, ``brats.npz`` and ``acdc.npz``.
        data: folder with the data sets.
    """
    Path(output).mkdir(parents=True, exist_ok=True)
    for name, folder in FOLDERS.items():
        read = _read_brats if name == "brats" else _read_decathlon
        arrays = {}
        for volume in read(Path(data) / folder, name):
            arrays[f"{volume.name}/image"], arrays[f"{volume.name}/label"] = volume.image, volume.label
            arrays[f"{volume.name}/spacing"] = np.array(volume.spacing)
        np.savez(Path(output) / f"{name}.npz", **arrays)


def load(dataset: str, cases: str | Path) -> list[Volume]:
    """All volumes of a data set, sorted by name, from what ``prepare`` left."""
    file = Path(cases) / f"{dataset}.npz"
    if not file.exists():
        raise FileNotFoundError(f"--cases: expected {file}, found none; `python -m benchmarks dice prepare` writes it.")
    with np.load(file) as stored:
        names = sorted({key.split("/")[0] for key in stored})
        return [
            Volume(
                dataset,
                name,
                stored[f"{name}/image"],
                stored[f"{name}/label"],
                tuple(stored[f"{name}/spacing"].tolist()),
            )
            for name in names
        ]


def split(dataset: str, volumes: list[Volume], setting: str, fold: int) -> tuple[list[Volume], list[Volume]]:
    """Pool, in the order in which the first n train, and the volumes for the test.

    ``"validation"`` is for choices: it takes the place of the test by volumes that are not in it.
    """
    if dataset == "hippocampus":
        return volumes[82:], volumes[40:82] if setting == "validation" else volumes[:40]
    if dataset == "brats":
        order = np.random.default_rng(0).permutation(len(volumes))
        test = [volumes[i] for i in order[fold::FOLDS]]
        pool = [volumes[i] for i in np.random.default_rng(1 + fold).permutation(order) if i not in order[fold::FOLDS]]
        return (pool[5:], pool[:5]) if setting == "validation" else (pool, test)
    if setting == "coarse":
        return [v for v in volumes if v.spacing[0] > FINE], [v for v in volumes if v.spacing[0] <= FINE]
    order = np.random.default_rng(0).permutation(len(volumes))
    half = len(volumes) // 2
    pool, test = [volumes[i] for i in order[:half]], [volumes[i] for i in order[half:]]
    return (pool[9:], pool[:9]) if setting == "validation" else (pool, test)


def _read_decathlon(folder: Path, dataset: str) -> Iterator[Volume]:
    for path in sorted((folder / "imagesTr").glob("*.nii.gz")):
        file = nibabel.load(path)
        label = np.asarray(nibabel.load(folder / "labelsTr" / path.name).dataobj)
        image = np.stack([_in_eight_bits(file.get_fdata(dtype=np.float32), False)])
        yield Volume(dataset, path.name.split(".")[0], image, label.astype(np.uint8), file.header.get_zooms()[:3])


def _read_brats(folder: Path, dataset: str) -> Iterator[Volume]:
    for case in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = [nibabel.load(case / f"{case.name}_{m}.nii.gz") for m in MODALITIES]
        image = np.stack([_in_eight_bits(file.get_fdata(dtype=np.float32), True) for file in files])
        label = np.asarray(nibabel.load(case / f"{case.name}_seg.nii.gz").dataobj) > 0
        box = tuple(slice(inside.min(), inside.max() + 1) for inside in np.nonzero(image.any(axis=0)))  # the brain's
        yield Volume(dataset, case.name, image[:, *box], label[box].astype(np.uint8), files[0].header.get_zooms()[:3])


def _in_eight_bits(values: np.ndarray, zero_is_outside: bool) -> np.ndarray:
    inside = values > 0 if zero_is_outside else np.ones(values.shape, bool)
    low, high = np.percentile(values[inside], [0.1, 99.9])
    steps = np.round(1 + 254 * (np.clip(values, low, high) - low) / max(high - low, 1e-12))
    return np.where(inside, steps, 0).astype(np.uint8)
