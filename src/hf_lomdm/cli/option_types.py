"""Types of command line options for argparse: what is out of range is refused before anything is read.

argparse names the option and ends with the message of the error.
"""

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from `least` to `most`, or without an upper limit."""
    span = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {span}, got {text!r}")
        return value

    return read


SEED = whole(0, 2**32 - 1)  # what numpy takes too


def positive(text: str) -> float:
    """A number above zero; neither `inf` nor `nan`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def nonempty(text: str) -> str:
    """A name or path that is not empty: an empty one would be the folder at hand."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of something, got nothing")
    return text


def refuse_unused(given: dict[str, object], unused: dict[str, str]) -> None:
    """Refuses options that would change nothing.

    Args:
        given: values by option, those that are as by default left out. unused: what each is for, by option.
    Raises:
        ValueError: one of `unused` is given.
    """
    for option, purpose in unused.items():
        if option in given:
            raise ValueError(f"--{option} {purpose}. Leave it out.")
