"""From the command line to a command, and from whatever goes wrong to one line and an exit status."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fire
from fire import decorators
from fire.core import FireExit
from monai.apps import get_logger

from monai_scaleequiv.cli._commands import COMMANDS
from monai_scaleequiv.cli._overrides import override_value, suggestion
from monai_scaleequiv.data import one_line

__all__ = ["main"]

Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: command and its arguments, by default the process's own.

    Returns:
        exit status: 0 for success, 1 after an error, which is told on standard error, 130 after an interrupt.

    Example::

        >>> main(["--help"])  # doctest: +SKIP
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = False
    try:
        call, debug = _parse(argv)
        with warnings.catch_warnings(), _quiet(debug):
            call()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"error: {one_line(error, ' (--debug shows all of it)')}\n")
        return 1
    return 0


def _parse(argv: list[str]) -> tuple[Call, bool]:
    """The call that the arguments ask for, and ``debug``. Nothing runs while Fire parses: its output is held back."""
    calls: list[tuple[Call, bool]] = []
    components = {name: _noting(command, calls) for name, command in COMMANDS.items()}
    if not argv or {"-h", "--help"} & set(argv):
        argv = [*(a for a in argv[:1] if a in COMMANDS), "--", "--help"]
        components = COMMANDS  # as they are, for Fire would describe what it finds attached to the others
    elif argv[0] not in COMMANDS:
        raise ValueError(f"{argv[0]}: no such command; {suggestion(argv[0], COMMANDS)}")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            fire.Fire(components, argv, name="monai_scaleequiv")
    except FireExit as stop:
        if stop.code:
            told = stop.trace.elements[-1].ErrorAsStr()
            raise ValueError(f"{argv[0]}: {told}; {_remedy(argv[0], told)}") from None
        return functools.partial(sys.stdout.write, told.getvalue()), False
    return calls[0]


def _remedy(command: str, told: str) -> str:
    """What to do about arguments that Fire does not take."""
    stray = re.search(r"--(\w+)", told)
    known = [name for name in inspect.signature(COMMANDS[command]).parameters if name != "overrides"]
    return suggestion(stray[1], known, "--") if stray else f"see {command} --help."


def _noting(command: Callable, calls: list[tuple[Call, bool]]) -> Callable:
    """What Fire calls instead of the command: it notes the call for later."""

    @functools.wraps(command)
    def note(*arguments: Any, debug: bool = False, **options: Any) -> None:
        if not isinstance(debug, bool):
            raise ValueError(f"--debug: expected true or false, got {debug!r}; give --debug alone.")
        calls.append((functools.partial(command, *arguments, **options), debug))

    # Paths stay as they are given: a folder named 2024 is not a number.
    note = decorators.SetParseFns(bundle=str, images=str, input=str, labels=str, output=str)(note)
    return decorators.SetParseFn(override_value)(note)


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Leaves to be seen the epochs' metrics and warnings that concern the user; with ``debug`` everything."""
    if debug:
        yield
        return
    # Engines and handlers log an error, with its traceback, before it arrives here.
    engines, nowhere = logging.getLogger("ignite"), logging.NullHandler()
    stats = get_logger("monai.handlers.StatsHandler")
    bundles = {logger: logger.level for logger in map(get_logger, ("monai.bundle.scripts", "monai.bundle.workflows"))}
    engines.addHandler(nowhere)
    engines.propagate = False
    stats.addFilter(_without_traceback)
    for logger in bundles:
        logger.setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    try:
        yield
    finally:
        engines.removeHandler(nowhere)
        engines.propagate = True
        stats.removeFilter(_without_traceback)
        for logger, level in bundles.items():
            logger.setLevel(level)


def _without_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info
