"""Data sets and files with real faults."""

import gzip
import json
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)


def write_volume(path, values=None, affine=None, shape=SHAPE, dtype=np.float32, seed=None):
    """A NIfTI file, by default of noise that no other path has."""
    path = Path(path)
    if values is None:
        seed = zlib.crc32(path.name.encode()) if seed is None else seed
        values = np.random.default_rng(seed).integers(1, 999, shape).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype), path)
    return path


def write_labels(path, *values, **options):
    """A label map with the values given at its first voxels and 1 at its last."""
    labels = np.zeros(options.pop("shape", SHAPE), options.pop("dtype", np.uint8))
    labels.flat[: len(values)] = values
    labels.flat[-1] = options.pop("last", 1)
    return write_volume(path, labels, **options)


def write_task(folder, cases=3, classes=2, **changes):
    """A small Decathlon task; ``changes`` of its ``dataset.json``."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    training = []
    for case in range(cases):
        entry = {"image": f"./imagesTr/case_{case}.nii.gz", "label": f"./labelsTr/case_{case}.nii.gz"}
        write_volume(folder / entry["image"], seed=case)
        write_labels(folder / entry["label"], *[0] * case, 1)
        training.append(entry)
    task = {"modality": {"0": "MRI"}, "labels": {str(c): f"class {c}" for c in range(classes)}, "training": training}
    (folder / "dataset.json").write_text(json.dumps({**task, **changes}))
    return folder


def change_list(task, change):
    """Changes the ``dataset.json`` of a task."""
    content = json.loads((task / "dataset.json").read_text())
    change(content)
    (task / "dataset.json").write_text(json.dumps(content))
    return task


def shifted(millimetres):
    """An affine."""
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def with_header(path, change):
    """Writes a volume again after a change of its image."""
    volume = nib.load(path)
    volume = nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine, volume.header)
    change(volume)
    nib.save(volume, path)


def cut(path, share=0.6):
    """Takes the end off a file."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])


def flip_stored_byte(path):
    """Flips a bit of one voxel in a gzip file that keeps its length and structure, so that only its CRC tells."""
    content = Path(path).read_bytes()
    stored = bytearray(gzip.compress(gzip.decompress(content), compresslevel=0))  # level 0: bytes as they are
    stored[len(stored) - 8 - 16] ^= 1  # before the CRC and the length; among the last voxels
    Path(path).write_bytes(bytes(stored))


def with_affine(path, affine, pixdim=None):
    """Writes an affine into the header as it is, which nibabel would not do; by default with its voxel size."""
    content = bytearray(gzip.decompress(Path(path).read_bytes()))
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, count=1)[0].copy()
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = np.asarray(affine)[row]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0) if pixdim is None else np.asarray(pixdim)
    header["pixdim"][1:4] = np.where(spacing > 0, spacing, 1)
    header["sform_code"], header["qform_code"] = 1, 0
    content[:348] = header.tobytes()
    Path(path).write_bytes(gzip.compress(bytes(content)))
