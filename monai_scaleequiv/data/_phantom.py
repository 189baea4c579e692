"""Made-up volumes with known labels: the whole pipeline runs and can be checked with no data at hand."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.config import PathLike
from monai.networks.layers import GaussianFilter
from torch.nn.functional import interpolate

DESCRIPTION = {
    "name": "Phantom",
    "description": "ellipsoidal organs made by monai_scaleequiv",
    "tensorImageSize": "3D",
    "modality": {"0": "phantom"},
    "labels": {"0": "background", "1": "body", "2": "core"},
}
TISSUES = np.array([0.35, 0.65, 1.0], dtype=np.float32)  # intensities of background, body and core


def make_phantom_dataset(folder: PathLike, cases: int = 20, seed: int = 0, size: Sequence[int] = (40, 56, 40)) -> Path:
    """Writes volumes with an ellipsoidal organ and their labels, laid out like a Medical Segmentation Decathlon task.

    Each organ has a body (label 1) around a core (label 2) and its own size, axis ratios, position and orientation;
    the mean radius spreads over a factor of two. Unlabelled blobs as bright as the body lie around it. The images
    have partial volume at borders, texture, noise, a bias field and an intensity unit of their own.

    Args:
        folder: where ``imagesTr``, ``labelsTr`` and ``dataset.json`` are written; created if need be.
        cases: number of volumes.
        seed: the same seed gives the same volumes; the first volumes do not depend on ``cases``.
        size: voxels along each axis, each 1 mm wide, at least 16.

    Returns:
        path of ``dataset.json``.

    Raises:
        FileExistsError: when the folder has a ``dataset.json`` or a file of one of the volumes already.
        ValueError: when ``cases``, ``seed`` or ``size`` is out of range.

    Example::

        >>> make_phantom_dataset("phantoms", cases=2, size=(24, 32, 24)).name
        'dataset.json'
    """
    for name, value, least in (("cases", cases, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}; give another one.")
    if len(size) != 3 or min(size) < 16:
        raise ValueError(f"size={tuple(size)}: expected three axes of at least 16 voxels; give a larger size.")
    parts = (("image", "imagesTr"), ("label", "labelsTr"))
    training = [{key: f"./{sub}/phantom_{case:03d}.nii.gz" for key, sub in parts} for case in range(cases)]
    root = Path(folder)
    for file in ("dataset.json", *(file for entry in training for file in entry.values())):
        if os.path.lexists(root / file):
            raise FileExistsError(f"{root / file} exists already; choose another folder or remove it.")
    for _, sub in parts:
        (root / sub).mkdir(parents=True, exist_ok=True)
    for case, entry in enumerate(training):
        _write_case(root, entry, case, seed, size)
    description = {**DESCRIPTION, "numTraining": cases, "numTest": 0, "training": training, "test": []}
    # Last, so that an interrupted run leaves nothing that looks like a whole data set.
    target = root / "dataset.json"
    target.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return target


def _write_case(root: Path, files: dict[str, str], case: int, seed: int, size: Sequence[int]) -> None:
    rng = np.random.default_rng([seed, case])
    # The radii of successive cases fill their range evenly, so that even few of them spread over it.
    share = (np.random.default_rng(seed).random() + case * (5**0.5 - 1) / 2) % 1
    labels, tissue = _anatomy(rng, size, 0.17 * min(size) * 2**share)
    image = _scan(rng, tissue)
    if rng.random() < 0.5:
        image = np.round(image * rng.uniform(100, 1500)).astype(np.int16)
    else:
        image = image * np.float32(10 ** rng.uniform(-2, 2))
    affine = np.eye(4)
    affine[:3, 3] = np.round(rng.uniform(-60, -20, size=3), 2)
    for key, volume in (("image", image), ("label", labels)):
        nifti = nib.Nifti1Image(volume, affine)
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, root / files[key])


def _anatomy(rng: np.random.Generator, size: Sequence[int], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Label map and the intensity of the tissue in each voxel."""
    ratios = rng.uniform(0.8, 1.25, size=3)
    axes = radius * ratios / ratios.prod() ** (1 / 3)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    room = np.maximum(np.array(size) / 2 - axes.max() - 1, 0)
    centre = (np.array(size) - 1) / 2 + rng.uniform(-room, room)
    organ = _coordinates(size, centre, axes, rotation)
    shift = rng.normal(size=3)
    shift *= 0.3 * rng.random() / np.linalg.norm(shift)  # the core is at most 0.6 wide, so that it stays inside
    core = np.linalg.norm(organ - shift, axis=-1) < rng.uniform(0.5, 0.6)
    labels = np.where(np.linalg.norm(organ, axis=-1) < 1, np.where(core, 2, 1), 0).astype(np.uint8)
    blobs = np.zeros(size, dtype=bool)
    for _ in range(rng.integers(3, 7)):
        blob = rng.uniform(0, size), 0.1 * min(size) * rng.uniform(0.5, 1.2, size=3), np.eye(3)
        blobs |= np.linalg.norm(_coordinates(size, *blob), axis=-1) < 1
    apart = np.linalg.norm(organ, axis=-1) > 1.3  # a blob that touched the organ would look like a part of it
    return labels, np.where(blobs & apart, TISSUES[1], TISSUES[labels])


def _coordinates(size: Sequence[int], centre: np.ndarray, axes: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Each voxel's position in an ellipsoid's own frame, whose surface has norm 1; shape ``(*size, 3)``."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    return (grid - centre) @ rotation / axes


def _scan(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """What a scanner makes of the tissue: blurred borders, texture, bias field, noise."""
    blurred = GaussianFilter(3, sigma=0.7)(torch.from_numpy(tissue)[None, None])[0, 0].numpy()
    texture = 0.08 * _smooth_noise(rng, tissue.shape, 4)
    bias = np.exp(0.15 * _smooth_noise(rng, tissue.shape, 20))
    noise = rng.normal(scale=0.07, size=tissue.shape)
    return np.clip((blurred + texture) * bias + noise, 0, None).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, size: Sequence[int], voxels: int) -> np.ndarray:
    """Unit noise that is correlated over about so many voxels."""
    coarse = rng.normal(size=[n // voxels + 2 for n in size])
    return interpolate(torch.from_numpy(coarse)[None, None], size=tuple(size), mode="trilinear")[0, 0].numpy()
