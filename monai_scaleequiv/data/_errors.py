"""The one line that an error comes down to."""

import builtins
import errno
import os
import re

LONGEST = 400
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later volume can be written either
SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+|/dev/shm")


def root_cause(error: BaseException) -> BaseException:
    """What went wrong at the root: MONAI wraps an error in a RuntimeError for each transform or item on the way.

    Of the errors of writers and worker processes the text alone is kept; they are made anew from it, those of a full or
    read-only disk with their ``errno``.

    Example::

        >>> try:
        ...     raise RuntimeError("applying transform") from ValueError("the reason")
        ... except RuntimeError as error:
        ...     root_cause(error)
        ValueError('the reason')
    """
    while isinstance(error, RuntimeError):
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            break
        error = inner
    if "Traceback (most recent call last)" not in str(error):
        return error
    # Of chained tracebacks the first one is the root's, and its last line the error.
    first = re.split(r"\n\s*\n(?:The above exception|During handling)", str(error))[0]
    last = first.strip().splitlines()[-1].strip()
    name, _, message = last.partition(": ")
    kind = getattr(builtins, name.rpartition(".")[2], ValueError)
    known = issubclass(kind, (OSError, RuntimeError, ValueError))
    found = kind(message) if known else ValueError(last)
    if isinstance(found, OSError):
        found.errno = next((code for code in DISK if os.strerror(code) in message), None)
    return found


def one_line(error: BaseException, more: str = "") -> str:
    """The text of an error's root cause; ``more`` follows a text that was cut.

    Example::

        >>> one_line(KeyError("image"))
        "KeyError: 'image'"
    """
    error = root_cause(error)
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, RuntimeError)) and SHARED_MEMORY.search(text):
        expected = "num_workers: expected room in the shared memory (/dev/shm) for the data loader's worker processes"
        return f"{expected}, got too little ({text[:120]}); set num_workers to 0, or enlarge it."
    text = f"{text[:LONGEST]} ...{more}" if len(text) > LONGEST else text
    # The bare text of other types, such as KeyError's, says too little.
    return (
        text if isinstance(error, (OSError, RuntimeError, ValueError)) and text else f"{type(error).__name__}: {text}"
    )
