"""Option types for argparse: what is out of range is refused before anything is read.

argparse names the option and ends with the message of the error.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path


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


def between(least: float, most: float = sys.float_info.max) -> Callable[[str], float]:
    """A number from `least` to `most`; neither `inf` nor `nan`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            span = (
                f"from {least} to {most}" if most < sys.float_info.max else f"of at least {least}"
            )
            raise argparse.ArgumentTypeError(f"must be a number {span}, got {text!r}")
        return value

    return read


def new_file(text: str) -> Path:
    """A file to be written later; its folder is there, and it is no folder itself."""
    path = Path(nonempty(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {text!r} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"must be in a folder that can be written to, got {text!r}"
        )
    return path


def nonempty(text: str) -> str:
    """A name or path that is not empty: an empty one would be the folder at hand."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of something, got nothing")
    return text


def refuse_unused(given: dict[str, object], unused: dict[str, str]) -> None:
    """Refuses options that would change nothing.

    Args:
        given: values by option, those that are as by default left out. unused: what each is for, by
            option.
    Raises:
        ValueError: one of `unused` is given.
    """
    for option, purpose in unused.items():
        if option in given:
            raise ValueError(f"--{option} {purpose}. Leave it out.")
