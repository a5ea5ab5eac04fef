"""What a script says when it cannot go on: a line for its user's mistakes, a traceback for bugs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import EntryNotFoundError, HTTPError, StrictDataclassError
from safetensors import SafetensorError

from ..visualization.terminal import visible

# What ends work in its middle and is no bug: a full disk, no memory, a broken connection, a loss
# that is not finite.
FROM_OUTSIDE = (
    *(OSError, MemoryError, torch.OutOfMemoryError, FloatingPointError),
    *(SafetensorError, HTTPError, EntryNotFoundError),
)
MISTAKES = (*FROM_OUTSIDE, ValueError, ImportError, StrictDataclassError)
# What torch says by a bare RuntimeError, and Python of a file of a thousand brackets.
OTHERS_SAY = {
    "DefaultCPUAllocator: can't allocate": "not enough memory. Take fewer or shorter texts.",
    "enforce fail at inline_container": "a file could not be written. Is the disk full?",
    "recursion depth exceeded while decoding a JSON": "a JSON file is nested too deeply.",
}
LONGEST = 1000  # characters of a line
INTERRUPTED, READER_LEFT = 130, 141  # what a shell reports of a program that SIGINT or SIGPIPE ends


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Around `main` of a script (`@user_errors()`), or a part: an error of `kinds` is one line.

    Ctrl-C, and a reader of the output who leaves (`| head`), end it without a word. Characters that
    the encoding of the output lacks are printed as `?`.

    Args:
        kinds: default `MISTAKES`. Pass `*FROM_OUTSIDE` where a `ValueError` would be a bug.
    Raises:
        SystemExit: as said; and what is none of `kinds`, as it is.
    """
    _prepare_output()
    status = None
    try:
        yield
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as end:
        status = end.code or 0
    except Exception as error:
        if _is_bug(error, kinds or MISTAKES):
            raise
        # of another pipe than the output it is an error like any other
        left = isinstance(error, BrokenPipeError) and _flush_output("\n") is not None
        status = READER_LEFT if left else f"error: {one_line(error)}"
    lost = _flush_output()
    if lost is not None and not status:
        status = READER_LEFT if isinstance(lost, BrokenPipeError) else f"error: {one_line(lost)}"
    if status is not None:
        sys.exit(status)


@contextmanager
def loading(option: str, name: str | os.PathLike) -> Iterator[None]:
    """Errors while a model is loaded within it say whether `name` was a folder, and what is wrong.

    Any error is one of the folder here: of broken files the libraries say all sorts of things, such
    as `KeyError`, or a bare `Exception` (tokenizers).

    Args:
        option: where the user has said `name`, such as `--model`.
    Raises:
        ValueError: in one line.
    """
    try:
        yield
    except Exception as error:
        if os.path.isdir(name):
            reason = one_line(error)
        elif os.path.exists(name):
            reason = "it is a file, not the folder of a model"
        else:
            reason = f"there is no such folder, and as a repository of the Hub: {one_line(error)}"
        raise ValueError(f"{option} {name} cannot be loaded: {reason}") from error


def one_line(error: Exception) -> str:
    """What a user needs of an error's text: its first lines in one, without control characters."""
    for phrase, plain in OTHERS_SAY.items():
        if phrase in str(error):
            return plain
    if isinstance(error, MemoryError):
        return next(iter(OTHERS_SAY.values()))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        lines = [f"{error.filename}: {error.strerror}"]
    else:
        lines = [line for line in str(error).splitlines() if line.strip()]
    kind = "" if lines and isinstance(error, MISTAKES) else f"{type(error).__name__}: "
    text = visible((kind + " ".join(" ".join(lines[:2]).split())).removesuffix(": "))
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _is_bug(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether the traceback is wanted: of no such kind, or an import within this package."""
    if isinstance(error, ImportError):
        return (error.name or "").startswith("hf_lomdm")
    return not isinstance(error, kinds) and not any(phrase in str(error) for phrase in OTHERS_SAY)


def _prepare_output() -> None:
    """Output never stops a script: without a stream it goes nowhere, what has no code is `?`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the end
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _flush_output(more: str = "") -> OSError | None:
    """Writes what is left, and `more`; if that fails the error, and further output goes nowhere."""
    try:
        print(more, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
