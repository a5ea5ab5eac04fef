"""Plots of the records of `evaluate_order`, with matplotlib; error bars are one standard error."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .colours import spread

FORWARD, REVERSE = spread(2)
GREY = "#8a8f96"
DPI = 120
CHARACTERS = 12  # of small letters to an inch


def plot_order(record: Mapping, folder: str | os.PathLike) -> list[Path]:
    """Draws what a record of `evaluate_order` holds, one PNG each.

    `order_position.png`, `order_class.png`, `order_frequency.png`: mean relative rank (0 = revealed
    first) on the given texts and in generated ones; `order_reveals.png`: loss and KL by the share
    revealed; `order_rates.png`: histograms.

    Returns:
        The files, those without data left out.
    Raises:
        ImportError: without matplotlib.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "order_position.png": _position,
        "order_class.png": _classes,
        "order_frequency.png": _frequency,
        "order_reveals.png": _reveals,
        "order_rates.png": _rates,
    }
    figures = {folder / name: draw(record) for name, draw in drawings.items()}
    for path, figure in figures.items():
        if figure is not None:
            figure.savefig(path, dpi=DPI)
    return [path for path, figure in figures.items() if figure is not None]


def plot_order_over_steps(records: Mapping[int, Mapping], path: str | os.PathLike) -> None:
    """Draws tau, spread of rates and correlation with confidence over training steps.

    Args:
        records: for each optimizer step the record of `evaluate_order` on its checkpoint, all on
            the same texts.
        path: file to write; the ending chooses the format.
    Raises:
        ValueError: no records. ImportError: without matplotlib.
    """
    if not records:
        raise ValueError(
            "records is empty. Pass the record of at least one checkpoint, by its step."
        )
    panels = {
        "Kendall tau to left-to-right": [
            (FORWARD, "w", lambda record: record["forward"]["kendall_tau"])
        ],
        "spread of rates within a text": [
            (FORWARD, "w", lambda record: record["rates"]["w"]["spread"]),
            (REVERSE, "v", lambda record: record["rates"]["v"]["spread"]),
        ],
        "correlation of v with confidence": [
            (REVERSE, "v", lambda record: record["rate_confidence_correlation"])
        ],
    }
    note = (
        "What to see: away from 0 the order is more left to right, rates are less equal, and the "
        "model writes what it is sure of first. w: given texts, v: masked positions."
    )
    figure, all_axes = figure_and_axes(11, 3.9, note, len(panels))
    for axes, (label, lines) in zip(all_axes, panels.items(), strict=True):
        for colour, name, read in lines:
            points = {step: read(records[step]) for step in sorted(records)}
            _line(axes, list(points), list(points.values()), colour, name, marker="o")
        axes.set(xlabel="optimizer step", title=label)
    add_legend(figure)
    figure.savefig(path, dpi=DPI)


def figure_and_axes(
    width: float, height: float, note: str, columns: int = 1, rows: int = 1
) -> tuple[Any, list]:
    """A matplotlib figure, its size in inches, with panels row by row, in our style.

    Args:
        note: a sentence or two below the panels, which says what there is to see.
    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'hf-lomdm[viz]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    columns_of_note = int(width * CHARACTERS)
    figure.supxlabel("\n".join(textwrap.wrap(note, columns_of_note)), fontsize="small")
    all_axes = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, all_axes


def add_legend(figure, columns: int = 3) -> None:
    """One legend for all panels, above them: each label once."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    # a model whose order is fixed may leave nothing to draw, and matplotlib would warn
    if shown:
        where = {"loc": "outside upper center", "ncols": columns, "fontsize": "small"}
        figure.legend(shown.values(), shown.keys(), frameon=False, **where)


def _line(
    axes, xs: list, estimates: list[Mapping], colour: str, label: str, marker: str | None = None
) -> None:
    """Values with a band of one standard error; points without a value are left out."""
    points = [
        (x, estimate["value"], estimate["standard_error"] or 0.0)
        for x, estimate in zip(xs, estimates, strict=True)
        if estimate["n"]
    ]
    if points:
        x, values, errors = zip(*points, strict=True)
        axes.plot(x, values, color=colour, label=label, marker=marker, markersize=4)
        low, high = (
            [v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _parts(record: Mapping) -> list[tuple[str, str, Mapping]]:
    parts = [(FORWARD, "given texts, expectation over forward orders", record["forward"])]
    return parts + (
        [(REVERSE, "generated texts", record["generated"])] if record["generated"] else []
    )


def _title(record: Mapping) -> str:
    tau, error = record["value"], record["standard_error"]
    value = "none" if tau is None else f"{tau:.3f}" + ("" if error is None else f" ± {error:.3f}")
    return f"Kendall tau to left-to-right {value}, {record['n']} texts"


def _position(record: Mapping):
    note = (
        "What to see: a line that rises from 0 to 1 is left to right, one along the dashed line "
        "has no order. The band is one standard error."
    )
    figure, (axes,) = figure_and_axes(7.5, 4.4, note)
    for colour, label, part in _parts(record):
        _line(
            axes,
            list(range(len(part["rank_by_position"]))),
            part["rank_by_position"],
            colour,
            label,
        )
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    where = "position in the block" if record["block_size"] else "position"
    axes.set(xlabel=where, ylabel="mean rank (0 = first)", ylim=(0, 1), title=_title(record))
    add_legend(figure)
    return figure


def _classes(record: Mapping):
    if not record["forward"]["rank_by_class"]:
        return None
    names = sorted(
        record["forward"]["rank_by_class"],
        key=lambda name: _class_value(record, name),
        reverse=True,
    )
    note = (
        "What to see: classes left of the dashed line are written earlier than the average token."
    )
    figure, (axes,) = figure_and_axes(7.5, 1.8 + 0.42 * len(names), note)
    parts = _parts(record)
    for number, (colour, label, part) in enumerate(parts):
        shift = 0.12 * (2 * number - len(parts) + 1)
        points = [
            (y - shift, part["rank_by_class"][name])
            for y, name in enumerate(names)
            if name in part["rank_by_class"]
        ]
        _points(axes, points, colour, label)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="mean rank (0 = first)", title="Rank of reveal by token class")
    add_legend(figure)
    return figure


def _class_value(record: Mapping, name: str) -> float:
    return record["forward"]["rank_by_class"][name]["value"]


def _points(axes, points: list[tuple[float, Mapping]], colour: str, label: str) -> None:
    values, errors = (
        [estimate[name] or 0.0 for _, estimate in points] for name in ("value", "standard_error")
    )
    heights = [y for y, _ in points]
    axes.errorbar(
        values, heights, xerr=errors, fmt="o", color=colour, label=label, capsize=3, markersize=5
    )


def _frequency(record: Mapping):
    note = "What to see: where the line falls, frequent tokens are written before rare ones."
    figure, (axes,) = figure_and_axes(7.5, 4.4, note)
    for colour, label, part in _parts(record):
        numbers = list(range(1, len(part["rank_by_frequency"]) + 1))
        _line(axes, numbers, part["rank_by_frequency"], colour, label, marker="o")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(1, 11))
    axes.set(
        xlabel="tenth of the positions by token frequency (1 = rarest tokens, 10 = most frequent)"
    )
    axes.set(ylabel="mean rank (0 = first)", title="Rank of reveal by token frequency")
    add_legend(figure)
    return figure


def _reveals(record: Mapping):
    note = (
        "What to see: left, how much harder the first tokens are than the last; right, how far the "
        "model's draw of the next position is from the order that the text suggests."
    )
    figure, (left, right) = figure_and_axes(10, 4.2, note, 2)
    shares = [group["share"] for group in record["by_reveals"]]
    _line(
        left, shares, [group["main"] for group in record["by_reveals"]], FORWARD, "main", marker="o"
    )
    _line(
        right,
        shares,
        [group["velocity"] for group in record["by_reveals"]],
        REVERSE,
        "velocity",
        marker="o",
    )
    for axes, title in ((left, "Loss of the next token"), (right, "KL of the next position")):
        axes.set(
            xlabel="share of tokens already revealed",
            ylabel="nats per reveal",
            title=title,
            xlim=(0, 1),
        )
    right.set_ylim(bottom=0)
    return figure


def _rates(record: Mapping):
    note = (
        "What to see: the wider, the more the order says; rates that are all equal are a random "
        "order."
    )
    figure, (axes,) = figure_and_axes(7.5, 4.4, note)
    for colour, name, label in (
        (FORWARD, "w", "w (forward)"),
        (REVERSE, "v", "v (reverse, masked positions)"),
    ):
        rates = record["rates"][name]
        edges, counts = rates["histogram"]["edges"], rates["histogram"]["counts"]
        total = sum(
            count * (high - low)
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
        )
        spread = (
            "" if rates["spread"]["value"] is None else f", spread {rates['spread']['value']:.3f}"
        )
        axes.stairs([count / total for count in counts], edges, color=colour, fill=True, alpha=0.35)
        axes.stairs([count / total for count in counts], edges, color=colour, label=label + spread)
    axes.set(xlabel="rate", ylabel="density", title="Rates")
    add_legend(figure)
    return figure
