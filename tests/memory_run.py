"""Peak memory of an inference, in a process of its own: ``python -m tests.memory_run INPUT OUTPUT METHOD CLASSES``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundles" / "seunet_hippocampus_segmentation" / "configs"
# What the bundle's postprocessing would be with MONAI's own transforms.
PLAIN = {
    "postprocessing#transforms#1": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ],
    }
}


def write_image(path: Path, size: tuple[int, ...], voxel: float = 1.0) -> Path:
    """A smooth volume as int16, uncompressed."""
    axes = np.meshgrid(*(np.linspace(0, 9, n, dtype=np.float32) for n in size), indexing="ij", sparse=True)
    values = (500 * np.sin(axes[0]) * np.cos(axes[1]) + 100 * axes[2]).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([voxel, voxel, voxel, 1])), path)
    return path


def write_weights(path: Path, classes: int) -> Path:
    """Weights of a 1 x 1 x 1 convolution whose classes follow each other with the brightness."""
    layer = torch.nn.Conv3d(1, classes, 1)
    steps = torch.arange(classes, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(steps.reshape(-1, 1, 1, 1, 1))
        layer.bias.copy_(-((steps - classes / 2) ** 2) / classes)
    torch.save(layer.state_dict(), path)
    return path


def segment(images: Path, output: Path, method: str, classes: int, roi: int = 96, **overrides) -> None:
    """Runs the bundle's inference with that convolution, as it is (``bundle``) or with MONAI's parts (``plain``)."""
    output.mkdir(parents=True, exist_ok=True)
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": classes, "kernel_size": 1}
    monai.bundle.run(
        config_file=str(CONFIGS / "inference.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        device="$torch.device('cpu')",
        dataset_dir=str(images),
        output_dir=str(output),
        ckpt_path=str(write_weights(output / "weights.pt", classes)),
        network_def=definition,
        num_classes=classes,
        roi_size=[roi] * 3,
        **(PLAIN if method == "plain" else {}),
        **overrides,
    )


def measure(folder: Path, method: str, classes: int, images: Path, most: int | None = None) -> dict:
    """Peak resident memory in bytes and seconds of ``segment`` in a new process.

    Args:
        folder: to write to.
        method: see ``segment``.
        classes: see ``segment``.
        images: file or folder.
        most: bytes at which the process is killed, for the machine's sake.
    """
    command = [sys.executable, "-m", "tests.memory_run", str(images), str(folder), method, str(classes)]
    start, ended, highest = time.perf_counter(), False, 0
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, env=dict(os.environ))
        while child.poll() is None:
            with contextlib.suppress(OSError, IndexError, ValueError):
                resident = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
                highest = max(highest, resident)
                ended = most is not None and resident > most
            if ended:
                child.kill()
            time.sleep(0.1)
        output = child.stdout.read().decode().splitlines()
    seconds = round(time.perf_counter() - start, 1)
    if ended or child.returncode == -signal.SIGKILL:  # by this function, or by a system that has no more
        return {"method": method, "classes": classes, "killed_at_bytes": highest, "seconds": seconds}
    assert child.returncode == 0, (folder.parent / f"{folder.name}.log").read_text()[-2000:]
    return {"method": method, "classes": classes, **json.loads(output[-1]), "seconds": seconds}


def own_peak() -> int:
    """Peak resident bytes of this process; ``getrusage`` would count what the parent held when it started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(images: str, output: str, method: str, classes: str) -> None:
    segment(Path(images), Path(output), method, int(classes))
    sys.stdout.write(json.dumps({"peak_bytes": own_peak()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
