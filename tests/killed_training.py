"""Trains a bundle in child processes that kill themselves, one after the other; run by tests as a process of its own.

Usage: ``python -m tests.killed_training JOBS.json``; a job gives bundle, overrides and, for each child, after how many
ticks it sends itself SIGKILL, 0 for never. A tick is any step of a training: an iteration's start, forward pass,
backward pass or end, a validated case, or half of a checkpoint written. Prints how each child of each job
ended.
"""

import hashlib
import io
import json
import os
import pickle
import random
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents

import monai_scaleequiv  # noqa: F401


def train(job: dict, last: int) -> None:
    left = [last]

    def tick(*_) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(engine) -> None:
        names = [Path(case["image"].meta["filename_or_obj"]).name for case in engine.state.batch]
        loss = float(engine.state.output[0]["loss"]).hex()
        print("step", engine.state.iteration, names, loss, file=log, flush=True)

    def note_epoch(engine) -> None:
        print("epoch", engine.state.epoch, random_states(transforms), file=log, flush=True)

    configs = [str(Path(job["bundle"]) / "configs" / f"{name}.json") for name in job["configs"]]
    workflow = ConfigWorkflow(configs, workflow_type="train", logging_file=False, **job["overrides"])
    workflow.initialize()
    trainer, evaluator, transforms = (
        workflow.parser.get_parsed_content(id) for id in ("train#trainer", "validate#evaluator", "train#preprocessing")
    )
    steps = (IterationEvents.FORWARD_COMPLETED, IterationEvents.BACKWARD_COMPLETED, Events.ITERATION_COMPLETED)
    for event in (Events.ITERATION_STARTED, *steps):
        trainer.add_event_handler(event, tick)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, tick)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, note_epoch)
    output = Path(job["overrides"]["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    torch.save = partial(slow_save, torch.save, tick)
    with (output / "steps.txt").open("a") as log:
        workflow.run()


def random_states(transforms) -> str:
    """Generators and the transforms' random states as the epoch leaves them."""
    own = [t.R.get_state() for t in transforms.flatten().transforms if hasattr(t, "R")]
    inner = [t.rand_affine.R.get_state() for t in transforms.transforms if hasattr(t, "rand_affine")]
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes(), own, inner]
    return hashlib.sha256(pickle.dumps(states)).hexdigest()


def slow_save(save, tick, content, file) -> None:
    buffer = io.BytesIO()
    save(content, buffer)
    data = buffer.getvalue()
    file.write(data[: len(data) // 2])
    file.flush()
    tick()
    file.write(data[len(data) // 2 :])


def in_a_child(job: dict, last: int) -> int:
    """The child's exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(job, last)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(json.dumps([[in_a_child(job, last) for last in job["ticks"]] for job in jobs]))
