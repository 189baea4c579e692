"""Switches of a config: true or false."""


def switch(value: bool | int | str, name: str) -> bool:
    """Reads a switch: true or false, also as a text in small or capital letters.

    MONAI's command line leaves ``false`` a text, which Python takes for true: ``--overwrite false`` would overwrite.

    Args:
        value: true or false, also as a text, or 1 or 0.
        name: of the argument, for the error.

    Raises:
        ValueError: for anything else.

    Example::

        >>> switch("false", "overwrite"), switch(True, "overwrite")
        (False, True)
    """
    known = {"true": True, "false": False, "1": True, "0": False}
    text = str(value).lower()
    if text not in known:
        raise ValueError(f"{name}: expected true or false, got {value}; write one of the two.")
    return known[text]
