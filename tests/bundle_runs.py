"""Running bundles in tests: small networks, and what runs leave behind."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import BUNDLES

FOLDERS = sorted(folder.parent for folder in BUNDLES.glob("*/models"))  # those with weights
CONFIGS = [
    *("train", "evaluate", "sweep", "inference", "inference_native", "deploy"),
    *("multi_gpu_train", "multi_gpu_evaluate", "multi_gpu_inference"),
]
SIZE = (24, 32, 24)
CPU = "$torch.device('cpu')"
# Overrides that make a bundle's own network small.
TINY = {
    "SEUNet": {"network_def#channels": [4, 8], "network_def#strides": [2]},
    "ScaleCanonicalizer": {
        "network_def#network#network#channels": [4, 8],
        "network_def#network#network#strides": [2],
        "network_def#channels": [4, 8],
    },
    "RepUXNet": {
        "network_def#depths": [1, 1],
        "network_def#feature_size": [4, 8],
        "network_def#kernel_size": 7,
        "network_def#hidden_size": 8,
    },
}
QUICK = {"patch_size": [16, 16, 16], "roi_size": list(SIZE), "epochs": 2, "val_interval": 1}
AXES = {0: "batch", 2: "x", 3: "y", 4: "z"}
ONNX_AT_ANY_SIZE = {
    "input_names": ["image"],
    "output_names": ["pred"],
    "dynamic_axes": {"image": AXES, "pred": AXES},
}


def check_onnx(path, network):
    """An export computes what the network does, also at another size and batch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, size in ((1, (19, 22, 17)), (2, SIZE)):
        image = torch.randn(batch, network.in_channels, *size)
        (found,) = session.run(["pred"], {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(image), atol=1e-3, rtol=1e-3)


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def config_files(bundle, *names):
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def network(bundle, **overrides):
    """The network of the config, with weights as they come."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update(overrides)
    return parser.get_parsed_content("network_def").eval()


def tiny(bundle):
    return TINY[config(bundle, "train")["network_def"]["_target_"]]


def run(bundle, *configs, **overrides):
    """What ``python -m monai.bundle run`` does."""
    path = sys.path.copy()
    try:
        monai.bundle.run(
            config_file=config_files(bundle, *configs),
            meta_file=str(bundle / "configs" / "metadata.json"),
            bundle_root=str(bundle),
            device=CPU,
            **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
        )
    finally:
        sys.path[:] = path


def train(bundle, phantoms, output, **overrides):
    run(bundle, "train", dataset_dir=phantoms, output_dir=output, **{**tiny(bundle), **QUICK, **overrides})
    return output


def load(path):
    return torch.load(path, weights_only=True)


def scalars(output, tag):
    """Step and value of what was written for TensorBoard."""
    (folder,) = {file.parent for file in output.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def metrics(output):
    """Means over all cases, from ``metrics.csv``."""
    return {name: float(value) for name, value in rows(output / "metrics.csv")}


def per_case(output, metric):
    """Values of each class by the case's file name, in the order of the table."""
    return [(Path(row[0]).name, [float(x) for x in row[1:]]) for row in rows(output / f"{metric}_raw.csv")[1:]]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(call, *arguments, kind=Exception, **options):
    """What a run comes to: the text of the error under those of MONAI."""
    with pytest.raises(RuntimeError) as raised:
        call(*arguments, **options)
    error = raised.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, kind)
    return str(error)


def torchrun(bundle, phantoms, output, *configs, restarts=0, environment=None, **overrides):
    """A job of two processes on the CPU; its log is beside its output."""
    options = {"bundle_root": bundle, "dataset_dir": phantoms, "output_dir": output, **overrides}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(f"--max-restarts={restarts}", "-m", "monai.bundle", "run"),
            f"--config_file={config_files(bundle, *configs)}",
            *(
                f"--{key}={value if isinstance(value, (str, Path)) else json.dumps(value)}"
                for key, value in options.items()
            ),
        ],
        # The last one is for restarts: https://github.com/pytorch/pytorch/issues/135712.
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            **(environment or {}),
        },
        cwd=output.parent,
        stdout=subprocess.DEVNULL,
        stderr=(output.parent / f"{output.name}.log").open("w"),
        text=True,
    )


# Noted by each process before its interpreter shuts down.
AT_EXIT = """
import atexit, os
from pathlib import Path

def note():
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    Path(os.environ["THREADS"], os.environ["RANK"]).write_text(" ".join(names))

"RANK" in os.environ and atexit.register(note)
"""


def run_on_two(bundle, phantoms, output, *configs, **overrides):
    """Two processes, of which no thread may outlive its work."""
    seen = output.parent / "seen"
    seen.mkdir()
    (seen / "sitecustomize.py").write_text(AT_EXIT)
    paths = os.pathsep.join(filter(None, [str(seen), os.environ.get("PYTHONPATH")]))
    job = torchrun(
        bundle, phantoms, output, *configs, environment={"PYTHONPATH": paths, "THREADS": str(seen)}, **overrides
    )
    assert job.wait(300) == 0, output.with_name(f"{output.name}.log").read_text()[-3000:]
    if Path("/proc/self/task").is_dir():
        assert not any("gloo" in (seen / rank).read_text() for rank in "01")


# A network that tells classes by brightness alone, so that what comes out is known.


def thresholds(classes):
    return np.linspace(0.5, 1.5, classes - 1).tolist()


def probe_labels(image, classes):
    return np.digitize((image - image.mean()) / image.std(), thresholds(classes)).astype(np.uint8)


def write_probe(path, classes=3):
    """Writes the probe's weights; overrides that put it in place of the bundle's network."""
    layer = torch.nn.Conv3d(1, classes, 1)
    with torch.no_grad():
        layer.weight.copy_(20 * torch.arange(classes).reshape(-1, 1, 1, 1, 1))
        layer.bias.copy_(-20 * torch.tensor([0.0, *thresholds(classes)]).cumsum(0))
    torch.save(layer.state_dict(), path)
    definition = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": classes, "kernel_size": 1}
    return {"network_def": definition, "ckpt_path": str(path), "roi_size": list(SIZE)}
