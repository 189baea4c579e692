"""The hippocampus bundle's training: how long a batch takes to load, and how long the network takes for it."""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from benchmarks.measuring import gain, rounded, seconds

BUNDLE = Path(__file__).parents[1] / "bundles" / "seunet_hippocampus_segmentation"


def loader_beside_step(
    data: str, device: str = "cpu", workers: int | None = None, small: bool = False
) -> dict[str, Any]:
    """Seconds of a batch in the loader alone, of the step on it (baseline), and those that training waits for it.

    Args:
        data: folder of the data set; without it, the row says that it was skipped.
        device: where the network computes.
        workers: processes of the loader; None for what the bundle has.
        small: whether to read a few cases, with a small network.
    """
    if not (Path(data) / "dataset.json").exists():
        return {"unit": "s", "skipped": f"needs the data set at {data}"}
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "train.json")
    parser.read_meta(BUNDLE / "configs" / "metadata.json")
    parser.update({"dataset_dir": data, "device": f"$torch.device('{device}')", "bundle_root": str(BUNDLE)})
    parser.update({"train#dataset#data": f"$@split[0][:{4 if small else 40}]"})
    if small:
        parser.update({"network_def#channels": [2, 2], "network_def#strides": [2], "patch_size": [16, 16, 16]})
    if workers is not None:
        parser.update({"num_workers": workers})
    loader = parser.get_parsed_content("train#dataloader")
    network, loss, optimizer = (parser.get_parsed_content(key) for key in ("network", "loss", "optimizer"))
    for _ in loader:  # fills the cache, starts what loads
        pass
    start = time.perf_counter()
    batches = list(loader)
    alone = (time.perf_counter() - start) / len(batches)
    run = _trainer(network, loss, optimizer, device)
    steps = [seconds(lambda batch=batch: run(batch), torch.device(device)) for batch in batches]
    row = {"unit": "s", "ours": rounded(alone), "baseline": rounded(statistics.median(steps)), "goal": 1.0}
    workers = parser.get_parsed_content("num_workers")
    return {**row, "gain": gain(row), "waited": rounded(_waited(loader, run)), "workers": workers}


def _trainer(
    network: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> Callable[[dict], None]:
    network.train()

    def run(batch: dict) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, enabled=device == "cuda"):
            value = loss(network(batch["image"].to(device)), batch["label"].to(device))
        value.backward()
        optimizer.step()

    return run


def _waited(loader: Iterable[dict], run: Callable[[dict], None]) -> float:
    # Mean seconds between the end of a step and the next batch
    waits, ended = [], None
    for batch in loader:
        if ended is not None:
            waits.append(time.perf_counter() - ended)
        run(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.perf_counter()
    return statistics.mean(waits)
