"""Inference over volumes one by one: one that fails is noted, and the others go on."""

import errno
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Events
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
    A full or read-only disk stops the run, and so does an error before the first volume.
    """
    for handler in workflow.parser.get("handlers", []):
        if isinstance(handler, dict) and "ProgressBar" in str(handler.get("_target_")):
            handler["_disabled_"] = True  # it would show a bar for each volume
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    dataset, failures, done = evaluator.data_loader.dataset, {}, set()
    if not len(dataset):
        tqdm.write("nothing to do: there is no volume without a result")
        return
    for handler in workflow.parser.get_parsed_content("handlers", default=[]):
        for step in (handler, handler.__call__) if callable(handler) else ():
            if evaluator.has_event_handler(step, Events.STARTED):  # such as reading the weights: once is enough
                evaluator.remove_event_handler(step, Events.STARTED)
                handler(evaluator)
    listed = Path(workflow.parser.get_parsed_content("output_dir")) / "failures.json"
    try:
        for file, error in _results(evaluator, dataset):
            if error:
                failures[file] = error if file in error else f"{file}: {error}"
                tqdm.write(failures[file])
                continue
            done.add(file)
    finally:
        where = f", listed in {listed}" if _list_failures(listed, failures, done) else ""
    workflow.finalize()
    if failures:
        texts, more = list(failures.values()), len(failures) - SHOWN
        shown = " | ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        counts = f"{len(texts)} of {len(dataset)} volumes failed{where}"
        raise RuntimeError(f"{counts}; correct them and run again with --skip_existing: {shown}")


def _results(evaluator: Any, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Each volume's file and, if it failed, its error."""
    several = len(dataset) > 1
    transform = functools.partial(_attempt, dataset.transform) if several else dataset.transform
    loader = DataLoader(Dataset(dataset.data, transform), batch_size=1, num_workers=evaluator.data_loader.num_workers)
    # After an error, an engine that can be resumed would end the next run before its first volume.
    evaluator.interrupt_resume_enabled = False
    evaluator.state.epoch_length = 1
    for case, batch in zip(dataset.data, tqdm(loader, desc="segment", disable=None), strict=True):
        file = str(ensure_tuple(case["image"])[0])
        yield file, batch["error"][0] if "error" in batch else _run(evaluator, batch, several)


def _attempt(transform: Callable, case: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return transform(case)
    except Exception as error:
        return {"error": one_line(error)}


def _run(evaluator: Any, batch: Mapping[str, Any], several: bool) -> str:
    """The error of a volume in words, empty for none: as an exception it would keep the volume in memory."""
    evaluator.data_loader = [batch]
    try:
        evaluator.run()
    except Exception as error:
        if not several or getattr(root_cause(error), "errno", None) in HOPELESS:
            raise
        return one_line(error)
    finally:
        evaluator.data_loader, evaluator.state.batch = [], None
    return ""


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
