"""What a field of a configuration may hold, and what is raised for another value.

This file travels to the Hub.
"""

import inspect
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

MOST = 2**24  # whole numbers up to here are exact in float32: positions, for the rotary embedding
MOST_LABELS = 2**16
NO_FIELDS = (FunctionType, classmethod, staticmethod, dict)  # methods and tables of the class


@dataclass(frozen=True)
class Number:
    """What a field may hold: a finite number of a type and a range, in some fields also `None`.

    kind: `int` or `float`; a `float` field takes an `int` too. `True` and `False` are neither.
    low, high, ends: the range; a square bracket includes its end, a round one does not.
    """

    kind: type[int] | type[float]
    low: float
    high: float = MOST
    ends: str = "[]"
    optional: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None or isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            return value is None and self.optional
        above = self.low < value or (self.low == value and self.ends[0] == "[")
        return above and (value < self.high or (value == self.high and self.ends[1] == "]"))

    def __str__(self) -> str:
        name = "an int" if self.kind is int else "a number"
        scope = f"{self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
        return f"{'None or ' if self.optional else ''}{name} in {scope}"


SIZE, TOKEN, OPTIONAL_TOKEN = Number(int, 1), Number(int, 0), Number(int, 0, optional=True)
FLAG, NAME = (False, True), str | None
BASE: dict[str, Any] = {  # the entries of `base`
    "name": str,
    "revision": NAME,
    "fingerprint": NAME,
    "fingerprint_float16": NAME,
    "lora_scale": Number(float, 0, 1e6),
}


def check_field(config_class: Any, name: str, value: Any) -> None:
    """Raises `ValueError` for a value that the field may not hold by `config_class.allowed`.

    So it does for the name of a method of the class, which a file may not replace.
    """
    allowed = config_class.allowed.get(name, object)
    if isinstance(allowed, tuple):
        # 1 is not True
        fits = any(type(value) is type(entry) and value == entry for entry in allowed)
    else:
        fits = value in allowed if isinstance(allowed, Number) else isinstance(value, allowed)
    if not fits:
        expected = (
            f"one of {allowed}"
            if isinstance(allowed, tuple)
            else getattr(allowed, "__name__", allowed)
        )
        raise ValueError(
            f"{name.strip('_').removesuffix('_internal')} must be {expected}, got {shown(value)}."
        )
    if name.startswith("__") or isinstance(
        inspect.getattr_static(config_class, name, None), NO_FIELDS
    ):
        raise ValueError(
            f"{name!r} is part of the class {config_class.__name__}, no field of it. Leave it out."
        )
    if name == "dtype" and isinstance(value, str) and value != "auto":
        _check_dtype(value)
    if name == "id2label" and value is not None:
        _check_labels(value)


def _check_dtype(name: str) -> None:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"dtype must name a type of torch, such as 'bfloat16', got {shown(name)}.")


def _check_labels(labels: Any) -> None:
    """Raises unless the keys are different whole numbers, which transformers makes of them."""
    whole = (
        isinstance(labels, Mapping)
        and len(labels) <= MOST_LABELS
        and all(str(key).isdecimal() for key in labels)
    )
    if not whole or len({int(key) for key in labels}) < len(labels):
        raise ValueError(
            f"id2label must map at most {MOST_LABELS} different whole numbers to labels, got "
            f"{shown(labels)}. Leave it out: these models have no use for labels."
        )


def check_base(base: dict[str, Any]) -> None:
    """Raises `ValueError` for a missing, a wrong or an unknown entry of the field `base`."""
    for name, allowed in BASE.items():
        value = base.get(name)
        if value not in allowed if isinstance(allowed, Number) else not isinstance(value, allowed):
            what = getattr(allowed, "__name__", allowed)
            raise ValueError(f"{name} of base must be {what}, got {shown(value)}.")
    unknown = sorted(map(str, base.keys() - BASE))
    if unknown:
        raise ValueError(f"base has {unknown}, which mean nothing. Leave them out.")


@contextmanager
def plain_errors(source: str) -> Iterator[None]:
    """Turns what transformers raises about values into a `ValueError` of one line."""
    try:
        yield
    except (StrictDataclassError, TypeError, AttributeError) as error:
        reason = error.__cause__ or error
        raise ValueError(
            f"{source} has a value that transformers refuses: {reason}. Leave it out."
        ) from error


def shown(value: Any) -> str:
    """A value for an error, with its type, cut short where it is long."""
    huge = isinstance(value, int) and value.bit_length() > 64
    return (
        f"{f'{value.bit_length()} bits' if huge else reprlib.repr(value)} ({type(value).__name__})"
    )
