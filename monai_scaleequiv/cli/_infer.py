"""Inference over volumes one by one: one that fails is noted, and the others go on."""

import errno
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset
from monai.utils import ensure_tuple
from tqdm import tqdm

from monai_scaleequiv.data import one_line, root_cause, whole_file

HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no later volume could be written either
SHOWN = 3


def segment(workflow: ConfigWorkflow) -> None:
    """Runs an inference workflow volume by volume and keeps the failures in ``failures.json``.

    A single volume raises its own error; of several, RuntimeError names the first that failed after all have been run.
    A full or read-only disk stops the run, and so does an error before the first volume. Of several processes, each of
    which has volumes of its own, the first reports for all.
    """
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    dataset = evaluator.data_loader.dataset
    failures: dict[str, str] = {}
    done: set[str] = set()
    workers, data = evaluator.data_loader.num_workers, dataset.data
    alone = len(data) == idist.get_world_size() == 1
    if not alone:
        dataset = Dataset(data, functools.partial(_loaded, dataset.transform))
    evaluator.data_loader = DataLoader(dataset, batch_size=1, num_workers=workers)
    evaluator.state.epoch_length = len(dataset)
    step = evaluator._process_function  # Ignite has no setter
    evaluator._process_function = _attempts(step, data, alone, failures, done)
    listed = Path(workflow.parser.get_parsed_content("output_dir")) / "failures.json"
    try:
        if data:  # a process may have no share
            evaluator.run()
        failures, done = _of_all_processes(failures, done)
    finally:
        mine = failures or not idist.get_rank()
        where = f", listed in {listed}" if mine and _list_failures(listed, failures, done) else ""
    if not (failures or done or idist.get_rank()):
        tqdm.write("nothing to do: there is no volume without a result")
    workflow.finalize()
    if failures:
        texts, more = list(failures.values()), len(failures) - SHOWN
        shown = " | ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        counts = f"{len(texts)} of {len(failures) + len(done)} volumes failed{where}"
        raise RuntimeError(f"{counts}; correct them and run again with --skip_existing: {shown}")


def _of_all_processes(failures: dict[str, str], done: set[str]) -> tuple[dict[str, str], set[str]]:
    """In the first process what all of them have noted, in the others nothing."""
    parts: Any = idist.all_gather((failures, done))
    if idist.get_rank() > 0:
        return {}, set()
    failed, finished = zip(*parts, strict=True)
    return {file: text for part in failed for file, text in part.items()}, set().union(*finished)


def _attempts(
    step: Callable, data: Sequence[Mapping[str, Any]], alone: bool, failures: dict[str, str], done: set[str]
) -> Callable:
    """An engine's step that notes an error, and the volumes that are done, instead of raising it."""

    def attempt(engine: Any, batch: Mapping[str, Any]) -> Any:
        file = str(ensure_tuple(data[engine.state.iteration - 1]["image"])[0])
        error = batch["error"][0] if "error" in batch else ""
        try:
            output = {} if error else step(engine, batch)
        except Exception as raised:
            if alone or getattr(root_cause(raised), "errno", None) in HOPELESS:
                raise
            output, error = {}, one_line(raised)  # the exception itself would keep the volume in memory
        if error:
            failures[file] = error if file in error else f"{file}: {error}"
            tqdm.write(failures[file])
        else:
            done.add(file)
        return output

    return attempt


def _loaded(transform: Callable, case: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return transform(case)
    except Exception as error:
        return {"error": one_line(error)}


def _list_failures(path: Path, failures: dict[str, str], done: set[str]) -> bool:
    """Brings the list up to date; whether it could be. What hinders that is reported, and no error of its own."""
    try:
        text = path.read_text(encoding="utf-8") if os.path.lexists(path) else None
        earlier = {} if text is None else json.loads(text)
        ours = isinstance(earlier, dict) and all(isinstance(t, str) and file in t for file, t in earlier.items())
        if not ours or (text is not None and not earlier):
            raise ValueError("other content")
        left = {file: text for file, text in earlier.items() if file not in done} | failures
        if left and left != earlier:
            with whole_file(path) as unfinished:
                unfinished.write_text(json.dumps(left, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        elif earlier and not left:
            path.unlink()
    except (OSError, ValueError, RecursionError) as error:
        if failures or isinstance(error, OSError):
            reason = error.strerror if isinstance(error, OSError) else "a file of another kind, which is left alone"
            tqdm.write(f"{path}: expected a list of failed volumes that can be written to, got {reason}.")
        return False
    return True
