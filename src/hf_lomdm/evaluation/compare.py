"""Systems side by side: records of evaluations in one table, with errors.

Records of the same rows are compared text by text: what makes a text hard is the same for both
systems and cancels, so that the error of the difference is often several times smaller than the
error of either value.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Further rows of the table for likelihood records.
_DETAILS = {
    "95 % of the perplexity": lambda record: (
        " to ".join(f"{end:.2f}" for end in record["perplexity_interval"] or ()) or "-"
    ),
    "Monte-Carlo error, nats": lambda record: _format_error(record["monte_carlo_error"]),
    "estimator": lambda record: record["estimator"],
    "samples": lambda record: str(record["num_samples"] or "-"),
    "texts": lambda record: f"{record['n']:,}",
    "tokens counted": lambda record: f"{record['tokens']:,}",
}


# Rows of the table for generation and Sudoku: values without an error.
_COSTS = (
    "repetition",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "forward_passes",
    "tokens_per_forward",
    "seconds",
)
_COSTS += ("solved", "cells_right", "forced_at_random")


class Difference(NamedTuple):
    """`value` (this record minus the first), its `standard_error`, and whether texts are paired."""

    value: float
    standard_error: float | None
    paired: bool


def read_records(paths: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """The records of JSON files by file name, with as many folders as tell them apart.

    Raises:
        ValueError: a file that is missing or no record, the same file twice, or records of
            different tasks.
    """
    records = {}
    for path, name in zip(paths, _short_names([Path(path) for path in paths]), strict=True):
        try:
            records[name] = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no record of an evaluation: {error}") from error
    tasks = {
        record.get("task") if isinstance(record, dict) else None for record in records.values()
    }
    if len(tasks) > 1 or None in tasks:
        raise ValueError(
            f"the records must be of one task, got {', '.join(map(str, tasks))}. Compare like with "
            "like."
        )
    return records


def measures(record: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """The figures of a record with their standard errors (`None`: unknown), by name.

    A likelihood has nats per token, perplexity and bits; zero-shot the perplexity of each set;
    another record its own `value`, every number that has a standard error beside it, and what
    generation and Sudoku say without.
    """
    if record["task"] == "likelihood":
        return _likelihood_measures(record)
    if record["task"] == "zero-shot":
        return {
            f"{name}: perplexity": _likelihood_measures(likelihood)["perplexity"]
            for name, likelihood in record["sets"].items()
        }
    value = {record.get("unit", "value"): (record["value"], record["standard_error"])}
    costs = {name: (record[name], None) for name in _COSTS if name in record}
    return value | dict(_find_measures(record, "")) | costs


def difference(record: dict[str, Any], first: dict[str, Any]) -> Difference:
    """Nats per token of a record minus those of `first`, paired over texts with equal rows."""
    if (record["rows"], record["groups"]) == (first["rows"], first["groups"]):
        ours, theirs = (_nelbo(likelihood) for likelihood in (record, first))
        tokens = torch.tensor(record["per_text"]["tokens"], dtype=torch.float64)
        value, counted = (ours - theirs).sum() / tokens.sum(), int((tokens > 0).sum())
        spread = (ours - theirs - value * tokens).square().sum() * counted / max(counted - 1, 1)
        error = float(spread.sqrt() / tokens.sum()) if counted > 1 else None
        return Difference(float(value), error, True)
    errors = [likelihood["standard_error"] for likelihood in (record, first)]
    return Difference(
        record["value"] - first["value"], None if None in errors else math.hypot(*errors), False
    )


def measure_table(records: dict[str, dict[str, Any]]) -> str:
    """A table for people: a line per measure, a column per record."""
    return _align(_measure_lines(records))


def comparison_table(records: dict[str, dict[str, Any]]) -> str:
    """`measure_table`, and the differences of likelihoods to the first record."""
    first, *others = records.values()
    parts: dict[str, list] = {}
    if first["task"] == "likelihood":
        parts = {"": [first, *others]}
    elif first["task"] == "zero-shot":
        parts = {
            f"{name}: ": [record["sets"].get(name) for record in records.values()]
            for name in first["sets"]
        }
    lines = _measure_lines(records)
    for label, (reference, *compared) in parts.items():
        lines.append(
            [
                f"{label}nats per token, minus the first",
                "",
                *(_format_difference(other, reference) for other in compared),
            ]
        )
    return _align(lines)


def _find_measures(
    record: dict[str, Any], prefix: str
) -> Iterator[tuple[str, tuple[float, float | None]]]:
    """Numbers with a `..._standard_error` beside them, and dicts of both, at any depth."""
    for name, value in record.items():
        if isinstance(value, dict):
            if value.get("value") is not None and "standard_error" in value:
                yield prefix + name, (value["value"], value["standard_error"])
            else:
                yield from _find_measures(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and f"{name}_standard_error" in record:
            yield prefix + name, (value, record[f"{name}_standard_error"])


def _measure_lines(records: dict[str, dict[str, Any]]) -> list[list[str]]:
    columns = [measures(record) for record in records.values()]
    lines = [["", *records]]
    lines += [
        [measure, *(_format(*column.get(measure, (None, None))) for column in columns)]
        for measure in dict.fromkeys(measure for column in columns for measure in column)
    ]
    if all(record["task"] == "likelihood" for record in records.values()):
        for label, describe in _DETAILS.items():
            lines.append([label, *(describe(record) for record in records.values())])
    return lines


def _align(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _likelihood_measures(record: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    error = record["standard_error"]
    found = {
        "nats per token": (record["value"], error),
        "perplexity": (
            record["perplexity"],
            None if error is None else record["perplexity"] * error,
        ),
    }
    for unit in ("character", "byte"):
        if f"bits_per_{unit}" in record:
            found[f"bits per {unit}"] = (
                record[f"bits_per_{unit}"],
                record[f"bits_per_{unit}_standard_error"],
            )
    return found


def _nelbo(record: dict[str, Any]) -> torch.Tensor:
    main, velocity = (
        torch.tensor(record["per_text"][name], dtype=torch.float64) for name in ("main", "velocity")
    )
    return main + velocity


def _format(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    digits = 3 if error is None or error <= 0 else min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _format_error(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"


def _format_difference(record: dict[str, Any] | None, first: dict[str, Any]) -> str:
    if record is None:
        return "-"
    change = difference(record, first)
    rows = "paired" if change.paired else "other rows"
    return f"{_format(change.value, change.standard_error)} ({rows})"


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, without its suffix, long enough to differ from the others."""
    if len(set(paths)) < len(paths):
        raise ValueError(f"the same record twice: {', '.join(map(str, paths))}. Pass each once.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
