"""From the command line to a command, and from whatever goes wrong to one line and an exit status."""

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

PATHS = dict.fromkeys(("bundle", "config", "images", "input", "labels", "output"), str)  # a folder 2024 is no number

DEBUG = "Every command takes --debug: it shows all warnings and logs and, after an error, the traceback."

Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: command and its arguments, by default the process's own.

    Returns:
        exit status: 0 for success, 1 after an error, reported on standard error in one line, 130 after an interrupt.

    Example::

        >>> main(["--help"])  # doctest: +SKIP
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        call = _parse([argument for argument in arguments if argument != "--debug"])
        with warnings.catch_warnings(), contextlib.nullcontext() if debug else _quiet():
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


def _parse(argv: list[str]) -> Call:
    """The call that the arguments ask for. Nothing runs while Fire parses: its output is held back."""
    calls: list[Call] = []
    components = {name: _noting(command, calls) for name, command in COMMANDS.items()}
    if not argv or {"-h", "--help"} & set(argv):
        argv = [*(a for a in argv[:1] if a in COMMANDS), "--", "--help"]
        components = COMMANDS  # as they are, for Fire would describe what it finds attached to the others
    elif argv[0] not in COMMANDS:
        raise ValueError(f"{argv[0]}: no such command; {suggestion(argv[0], COMMANDS)}")
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            fire.Fire(components, argv, name="monai_scaleequiv")
    except FireExit as stop:
        if stop.code:
            raise ValueError(_fires_error(argv[0], stop.trace.elements[-1].ErrorAsStr())) from None
        return functools.partial(sys.stdout.write, f"{shown.getvalue()}\n{DEBUG}\n")
    return calls[0]


def _fires_error(command: str, text: str) -> str:
    """What Fire says of arguments that it does not take, with a hint."""
    stray = re.search(r"--(\w+)", text)
    known = [name for name in inspect.signature(COMMANDS[command]).parameters if name != "overrides"]
    return f"{command}: {text}; {suggestion(stray[1], known, '--') if stray else f'see {command} --help.'}"


def _noting(command: Callable, calls: list[Call]) -> Callable:
    """What Fire calls instead of the command: it notes the call for later."""

    @functools.wraps(command)
    def note(*arguments: Any, **options: Any) -> None:
        calls.append(functools.partial(command, *arguments, **options))

    return decorators.SetParseFn(override_value)(decorators.SetParseFns(**PATHS)(note))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves to be seen the epochs' metrics, and in one line each the warnings that concern the user."""
    warnings.showwarning = _in_one_line
    for category in (DeprecationWarning, FutureWarning, RuntimeWarning):
        warnings.simplefilter("ignore", category)
    # Engines and handlers log an error, with its traceback, before it arrives here.
    levels = dict.fromkeys(("ignite", "monai.bundle.scripts", "monai.bundle.workflows"), logging.CRITICAL)
    levels["dev_collate"] = logging.CRITICAL + 1  # whose steps MONAI calls critical
    stats, without_traceback = get_logger("monai.handlers.StatsHandler"), lambda record: not record.exc_info
    with contextlib.ExitStack() as stack:
        for logger, level in ((logging.getLogger(name), level) for name, level in levels.items()):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        stats.addFilter(without_traceback)
        stack.callback(stats.removeFilter, without_traceback)
        yield


def _in_one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
