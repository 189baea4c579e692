"""One training: a CUDA graph replayed for each step, or the same steps one after the other."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import nn

from benchmarks.dice.datasets import CLASSES, Volume
from benchmarks.dice.networks import ENTRIES, LatePyramid, Remembering, TwoOfThem
from benchmarks.dice.one_scale import OneScaleAtATime
from benchmarks.dice.sampling import Augmentation, Bank
from benchmarks.dice.stages import ESTIMATOR_OCTAVES, Stages

CHECKPOINT_SECONDS = 60.0
RECIPES = {
    "hippocampus": {"size": (40, 56, 40), "batch": 2, "flips": (0,), "rotation": 15.0},
    "brats": {"size": (48, 48, 48), "batch": 2, "flips": (0,), "rotation": 15.0},
    "acdc": {"size": (128, 128), "batch": 16, "flips": (), "rotation": 30.0},
}
EAGER = 3  # steps of a kind, on a GPU, before a CUDA graph is made of it: torch asks for some


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
        spacings = [
            [round(s, 4) / entry.unit for s in v.spacing[: len(recipe["size"])]] for v in volumes if entry.is_told
        ]
        if entry.resample:
            volumes = [v.resampled(entry.resample) for v in volumes]
        if entry.is_mirrored:
            volumes = [v.mirrored() for v in volumes]
        self.volumes, self.bank = volumes, Bank(volumes, recipe["size"], classes, device)
        self.net = entry.build(len(recipe["size"]), len(volumes[0].image), classes).to(device)
        self.one_scale = self.net if isinstance(self.net, OneScaleAtATime) else None
        # A CUDA graph would keep the scales that were drawn first
        self.draws = any(isinstance(module, TwoOfThem) for module in self.net.modules())
        augmentation = Augmentation(entry.octaves, recipe["rotation"], recipe["flips"], entry.is_whole)
        self.stages = Stages(run.steps, entry)
        self.plan = self.bank.plan(self.stages.segmenting, recipe["batch"], augmentation, run.seed, entry.is_told)
        if self.stages.last:  # steps that have a plan of their own
            near = dataclasses.replace(augmentation, octaves=ESTIMATOR_OCTAVES)
            last = self.bank.plan(self.stages.last, recipe["batch"], near, run.seed)
            self.plan = {name: torch.cat([values, last[name]]) for name, values in self.plan.items()}
        firsts = self.plan["case"][:, 0].tolist()
        self.spacings = [spacings[self.bank.of_volume[i]] for i in firsts] if entry.is_told else []  # of each step
        self.sizes = self.plan.pop("size").tolist() if entry.is_whole else []  # of each step
        self.rates = torch.tensor(self.stages.rates(run.learning_rate), device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # the step's number
        self.lost = torch.zeros(run.steps, device=device)
        rate = torch.tensor(run.learning_rate, device=device) if device.type == "cuda" else run.learning_rate
        is_capturable = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.net.parameters(), rate, weight_decay=1e-4, capturable=is_capturable)
        self.criterion = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        self.done, self.seconds = 0, 0.0
        self.seen: Counter = Counter()
        self.graphs: dict[tuple[float, ...], torch.cuda.CUDAGraph] = {}
        if device.type == "cuda":
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())

    def step(self) -> None:
        """One optimizer step; on a GPU nothing of it waits for the host."""
        if self.stages.of_a_canonicaliser:
            self._set_parts()
        group = self.optimizer.param_groups[0]
        rate = self.rates.index_select(0, self.at)[0]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].copy_(rate)
        else:
            group["lr"] = float(rate)
        images, labels = self.bank.sample(self.plan, self.at, *self.sizes[self.done : self.done + 1])
        self.optimizer.zero_grad(set_to_none=True)
        if self.done < self.stages.segmenting:
            loss = self.loss(self.net(images, *self.spacings[self.done : self.done + 1]), labels)
        else:
            loss = self.net.estimator_loss(images)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.lost.index_copy_(0, self.at, loss.detach()[None])
        self.at += 1

    def images(self) -> Iterator[torch.Tensor]:
        """The training's whole images (1, C, ...), as they are."""
        for volume in self.volumes:
            yield volume.normalised()[None].to(self.device)

    def _set_parts(self) -> None:
        """What of a canonicaliser the next step trains."""
        self.net.weight = float(self.stages.trains_estimator(self.done))
        if isinstance(self.net.network, LatePyramid):
            self.net.network.is_alone = self.done < self.stages.alone

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Dice and cross entropy of the answer, and with ``deep`` of each copy's own."""
        loss = self.criterion(logits, labels)
        projection = getattr(self.net, "projection", None)
        if self.deep and isinstance(projection, Remembering):
            answers = projection.scales_answers.unbind(1)
            loss = loss + self.deep * sum(self.criterion(y, labels) for y in answers) / len(answers)
        return loss

    def advance(self) -> None:
        """The next step: on a GPU by a CUDA graph, once some of the same kind were done one kernel at a time."""
        if self.one_scale:
            self.one_scale.draw()
        if self.device.type == "cpu":
            self.step()
        else:
            with torch.cuda.stream(self.stream):
                self._advance_on_gpu(self._kind())
        self.done += 1

    def _kind(self) -> tuple[float, ...]:
        """Of the next step: those of one kind have one CUDA graph."""
        if self.one_scale:
            return (float(self.one_scale.drawn),)
        if self.stages.of_a_canonicaliser:
            return self.stages.kind(self.done)
        return tuple((self.spacings or self.sizes)[self.done]) if self.spacings or self.sizes else ()

    def _advance_on_gpu(self, kind: tuple[float, ...]) -> None:
        if self.draws or (kind not in self.graphs and self.seen[kind] < EAGER):
            self.seen[kind] += 1
            self.step()
            return
        if kind not in self.graphs:
            self.graphs[kind] = torch.cuda.CUDAGraph()
            # Each training its own stream: one workspace of cuBLAS for two that run at once would mix their numbers
            with torch.cuda.graph(self.graphs[kind], stream=self.stream):
                self.step()
        self.graphs[kind].replay()

    def save(self, path: Path) -> None:
        """All that the remaining steps depend on; a file that is there stays whole until the new one is."""
        parts = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        facts = {"done": self.done, "seconds": self.seconds, "lost": self.lost, "random": torch.get_rng_state()}
        unfinished = path.with_suffix(".tmp")
        torch.save({**parts, **facts}, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Goes on where ``save`` was called, bit for bit on a CPU."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds, self.lost = state["done"], state["seconds"], state["lost"]
        self.at.fill_(self.done)
        if "random" in state:  # for networks that draw numbers in training; checkpoints of before have none
            torch.set_rng_state(state["random"].cpu())


def finish(trainers: Sequence[Trainer], checkpoints: Sequence[Path] = ()) -> None:
    """The remaining steps of several trainings, in turns, which on a GPU run beside each other.

    On a CPU, each leaves its checkpoint every minute. The seconds of each are those of all that run beside each other.
    """
    saved = time.perf_counter()
    is_cuda = trainers[0].device.type == "cuda"
    torch.backends.cudnn.benchmark = is_cuda  # the shapes of a training never change
    for trainer in trainers:
        trainer.net.train()
    while left := [trainer for trainer in trainers if trainer.done < trainer.run.steps]:
        for trainer in left:
            trainer.advance()
        now = time.perf_counter()
        if checkpoints and not is_cuda and now - saved > CHECKPOINT_SECONDS:
            for trainer, checkpoint in zip(trainers, checkpoints, strict=True):
                trainer.seconds += now - saved
                trainer.save(checkpoint)
            saved = now
    if is_cuda:
        torch.cuda.synchronize()
    torch.backends.cudnn.benchmark = False
    for trainer in trainers:
        if trainer.stages.last:
            trainer.net.eval().center(trainer.images())
        trainer.seconds += time.perf_counter() - saved
        trainer.graphs.clear()
