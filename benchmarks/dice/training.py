"""One training: a CUDA graph replayed for each step, or the same steps one after the other."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import nn

from benchmarks.dice.datasets import CLASSES, MODALITIES, Volume
from benchmarks.dice.networks import ENTRIES, Remembering
from benchmarks.dice.sampling import Augmentation, Bank

WARM_UP = 0.1  # share of the steps in which the learning rate rises
CHECKPOINT_SECONDS = 60.0
RECIPES = {
    "hippocampus": {"size": (40, 56, 40), "batch": 2, "flips": (0,), "rotation": 15.0},
    "brats": {"size": (48, 48, 48), "batch": 2, "flips": (0,), "rotation": 15.0},
    "acdc": {"size": (128, 128), "batch": 16, "flips": (), "rotation": 30.0},
}
GROUPS = 2  # volumes in a batch for a network that is told their voxel size


@dataclass(frozen=True)
class Run:
    """What is trained, and what it is called."""

    dataset: str
    network: str
    volumes: int
    seed: int = 0
    fold: int = 0
    setting: str = "scale"
    match: str = "steps"
    steps: int = 1000
    learning_rate: float = 5e-3

    @property
    def name(self) -> str:
        fields = asdict(self)
        rate = f"{fields.pop('learning_rate'):g}"
        return "_".join([str(value) for value in fields.values()] + [rate])


class Trainer:
    """Network, optimizer and the plan of all samples of a run; ``step`` does the next one.

    Args:
        run: the run.
        volumes: its training volumes.
        device: where it computes.
    """

    def __init__(self, run: Run, volumes: list[Volume], device: torch.device) -> None:
        recipe, entry = RECIPES[run.dataset], ENTRIES[run.network]
        classes = 1 + len(CLASSES[run.dataset])
        torch.manual_seed(run.seed)
        self.run, self.device, self.deep = run, device, entry.deep
        self.spacings = [[s / entry.unit for s in v.spacing[: len(recipe["size"])]] for v in volumes if entry.is_told]
        if entry.resample:
            volumes = [v.resampled(entry.resample) for v in volumes]
        self.bank = Bank(volumes, recipe["size"], classes, device)
        channels = len(MODALITIES) if run.dataset == "brats" else 1
        self.net = entry.build(len(recipe["size"]), channels, classes).to(device)
        augmentation = Augmentation(entry.octaves, recipe["rotation"], recipe["flips"])
        self.plan = self.bank.plan(run.steps, recipe["batch"], augmentation, run.seed, GROUPS * entry.is_told)
        self.rates = torch.tensor([rate_at(i, run.steps, run.learning_rate) for i in range(run.steps)], device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # the step's number
        self.lost = torch.zeros(run.steps, device=device)
        rate = torch.tensor(run.learning_rate, device=device) if device.type == "cuda" else run.learning_rate
        is_capturable = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.net.parameters(), rate, weight_decay=1e-4, capturable=is_capturable)
        self.criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        self.done, self.seconds = 0, 0.0

    def step(self) -> None:
        """One optimizer step; on a GPU nothing of it waits for the host."""
        group = self.optimizer.param_groups[0]
        rate = self.rates.index_select(0, self.at)[0]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].copy_(rate)
        else:
            group["lr"] = float(rate)
        images, labels = self.bank.sample(self.plan, self.at)
        self.optimizer.zero_grad(set_to_none=True)
        if self.spacings:
            loss = self._told(images, labels)
        else:
            loss = self.loss(self.net(images), labels)
            loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.lost.index_copy_(0, self.at, loss.detach()[None])
        self.at += 1

    def _told(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # One voxel size after the other: gradients add up
        total = torch.zeros((), device=self.device)
        cases = self.plan["case"][self.done].tolist()
        for part in torch.arange(len(cases)).chunk(GROUPS):
            spacing = self.spacings[self.bank.of_volume[cases[part[0]]]]
            loss = self.loss(self.net(images[part], spacing), labels[part]) / GROUPS
            loss.backward()
            total += loss.detach()
        return total

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = self.criterion(logits, labels)
        projection = getattr(self.net, "projection", None)
        if self.deep and isinstance(projection, Remembering):
            answers = projection.scales_answers.unbind(1)
            loss = loss + self.deep * sum(self.criterion(y, labels) for y in answers) / len(answers)
        return loss

    def finish(self, checkpoint: Path | None = None) -> None:
        """The remaining steps; on the CPU with a checkpoint every minute."""
        self.net.train()
        torch.backends.cudnn.benchmark = True  # the shapes of a training never change
        start, saved = time.perf_counter(), time.perf_counter()
        take = self._captured() if self.device.type == "cuda" and not self.spacings else self.step
        while self.done < self.run.steps:
            take()
            self.done += 1
            if self.device.type == "cpu" and checkpoint and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                now = time.perf_counter()
                self.seconds, start, saved = self.seconds + now - start, now, now
                self.save(checkpoint)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        torch.backends.cudnn.benchmark = False
        self.seconds += time.perf_counter() - start

    def _captured(self) -> Callable[[], None]:
        # Three steps that count on another stream, as torch asks for, then the graph, which does not run yet
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(min(3, self.run.steps)):
                self.step()
                self.done += 1
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def save(self, path: Path) -> None:
        parts = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        facts = {"done": self.done, "seconds": self.seconds, "lost": self.lost}
        unfinished = path.with_suffix(".tmp")
        torch.save({**parts, **facts}, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds, self.lost = state["done"], state["seconds"], state["lost"]
        self.at.fill_(self.done)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate: a straight rise, then half a cosine."""
    rising = max(int(WARM_UP * steps), 1)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def seconds_per_step(trainer: Trainer, steps: int = 30) -> float:
    """Median seconds of a step on a machine that does nothing else; the trainer is of no further use."""
    torch.backends.cudnn.benchmark = True
    take = trainer._captured() if trainer.device.type == "cuda" and not trainer.spacings else None
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        (take or trainer.step)()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def gmacs(trainer: Trainer) -> float:
    """Multiply-adds, in thousands of millions, of one sample's forward pass (convolutions and matrix products)."""
    from torch.utils.flop_counter import FlopCounterMode

    images, _ = trainer.bank.sample(trainer.plan, torch.zeros_like(trainer.at))
    net = copy.deepcopy(trainer.net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images[:1], *trainer.spacings[:1])
    return counter.get_total_flops() / 2e9


def described(trainer: Trainer) -> dict[str, Any]:
    """Facts about a run for its report."""
    return {
        **asdict(trainer.run),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "gmacs": round(gmacs(trainer), 3),
        "training_seconds": round(trainer.seconds, 2),
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "loss": [round(v, 4) for v in trainer.lost.view(-1)[:: max(trainer.run.steps // 20, 1)].tolist()],
    }
