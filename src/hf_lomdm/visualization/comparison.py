"""Records of evaluations side by side, as a picture; the table is `evaluation.compare`'s."""

import math
from pathlib import Path
from typing import Any

from ..evaluation.compare import measures
from ..evaluation.corpus import Z95
from .plots import DPI, FORWARD, figure_and_axes

ACROSS = 3  # panels in a row
NOTE = (
    "What to see: a dot is a measurement, its bar the 95 % interval. On the same rows the table "
    "of differences says more."
)


def plot_comparison(records: dict[str, dict[str, Any]], path: str | Path) -> None:
    """Draws each measure of the records in its own panel, with 95 % intervals, to a file.

    Raises:
        ValueError: the format of the file is unknown, or there is nothing to draw.
        ImportError: without matplotlib.
    """
    columns = {name: measures(record) for name, record in records.items()}
    names = list(dict.fromkeys(measure for column in columns.values() for measure in column))
    if not names:
        raise ValueError(
            "the records hold no measures with standard errors, so there is nothing to draw."
        )
    across = min(ACROSS, len(names))
    down = math.ceil(len(names) / across)
    height = (1.1 + 0.32 * len(records)) * down
    figure, panels = figure_and_axes(4.2 * across, height + 0.4, NOTE, across, down)
    for place, (axes, measure) in enumerate(zip(panels, names, strict=False)):
        _draw_measure(axes, measure, columns, named=place % across == 0)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    except ValueError as error:
        raise ValueError(
            f"the plot cannot be written to {path}: {error}. Pass for example comparison.png."
        ) from error


def _draw_measure(
    axes: Any, measure: str, columns: dict[str, dict[str, tuple]], named: bool
) -> None:
    """One panel: the measure of each record, one below the other, `named` at the left edge."""
    for place, column in enumerate(columns.values()):
        value, error = column.get(measure, (math.nan, None))
        reach = None if error is None else Z95 * error
        axes.errorbar(value, place, xerr=reach, fmt="o", capsize=3, color=FORWARD)
    axes.set_yticks(range(len(columns)), list(columns) if named else [""] * len(columns))
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_title(measure, fontsize="medium")
