"""The one line that an error comes down to."""

from __future__ import annotations

import traceback

from monai.transforms import LoadImage
from monai.utils import ensure_tuple

__all__ = ["one_line", "root_cause"]

LONGEST = 400


def root_cause(error: BaseException) -> BaseException:
    """What went wrong at the root: MONAI wraps an error in a RuntimeError for each transform or item on the way.

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
    return error


def one_line(error: BaseException, more: str = "") -> str:
    """The text of an error's root cause, with the file that was being read.

    Args:
        error: as it was caught.
        more: follows a text that was cut.

    Example::

        >>> one_line(KeyError("image"))
        "KeyError: 'image'"
    """
    error = root_cause(error)
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ...{more}"
    # The bare text of other types, such as KeyError's, says too little.
    known = isinstance(error, (OSError, RuntimeError, ValueError)) and text
    text = text if known else f"{type(error).__name__}: {text}"
    file = _file_being_read(error)
    return text if file in text else f"{file}: {text}"


def _file_being_read(error: BaseException) -> str:
    """The file that MONAI was loading, else nothing: a decompressor's error, for one, does not name it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == LoadImage.__module__ and "filename" in frame.f_locals:
            return ", ".join(map(str, ensure_tuple(frame.f_locals["filename"])))
    return ""
