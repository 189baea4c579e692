"""Memory of a process that loads a large CT for training: ``python -m tests.large_training X Y Z`` (voxels)."""

import json
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser
from monai.data import DataLoader, PersistentDataset
from monai.transforms import Compose, MapTransform

from tests.memory_run import ROOT, write_image

BUNDLE = ROOT / "bundles" / "repuxnet_abdomen_segmentation"


def status(name):
    """A line of the process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


class NotePeak(MapTransform):
    """Replaces an item by the highest memory so far of the worker that loaded it, above what it began with."""

    def __init__(self):
        super().__init__(("image", "label"))

    def begin(self, worker):
        """In a new worker."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest from here on
        self.start = status("VmRSS")

    def __call__(self, data):
        return status("VmHWM") - self.start


def measure(size, folder):
    """Bytes of a case, and of the highest memory above its start of one worker: filling the cache on disk, using it."""
    task = Path(folder)
    names = [f"{part}Tr/{i}.nii" for i in range(3) for part in ("images", "labels")]
    for name in names:
        write_image(task / name, size)
        if name.startswith("labels"):
            image = nib.load(task / name)
            nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 500).astype(np.uint8), image.affine), task / name)
    parser = ConfigParser()
    parser.read_config([BUNDLE / "configs" / "train.json", BUNDLE / "configs" / "persistent.json"])
    parser.update({"dataset_dir": str(task), "output_dir": str(task / "out"), "spacing": [1.0, 1.0, 1.0]})
    dataset: PersistentDataset = parser.get_parsed_content("train#dataset")
    note = NotePeak()
    dataset.transform = Compose([*dataset.transform.transforms, note])
    options = {"batch_size": 1, "num_workers": 1, "collate_fn": lambda items: items[0][0], "worker_init_fn": note.begin}
    first = list(DataLoader(dataset, **options))  # fills the cache, in a process that ends then
    stored = sum(file.stat().st_size for file in (task / "out" / "cache").iterdir()) / len(dataset.data)
    return {"case": stored, "first": first, "above": list(DataLoader(dataset, **options))}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(tuple(map(int, sys.argv[1:])), folder)) + "\n")
