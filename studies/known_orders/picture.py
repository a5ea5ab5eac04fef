r"""Pictures of records of `measure.py`: the prize of each task, who wins it, rates over training.

    python studies/known_orders/picture.py studies/known_orders/records/*.json \
        --output docs/images/known_orders.png --rates docs/images/known_orders_rates.png

Above: the bound of each system beside the entropy, means over seeds with their errors, a dot for
each seed. Rates: the mean log rate of each position of the first task at the checkpoints of its
first LoMDM; at the start it is that of the order which the search found.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_lomdm.visualization.colours import spread
from hf_lomdm.visualization.plots import DPI, add_legend, figure_and_axes

LABELS = {
    "mdlm": "MDLM, random order",
    "backwards": "best order backwards, given",
    "paper": "LoMDM as in the paper",
    "no_search": "LoMDM without search",
    "lomdm": "LoMDM with search",
    "best": "best order, given",
}


def plot_prizes(records: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each task: bars of the systems, a dot for each seed, a line at the entropy."""
    note = (
        "What to see: the lower, the better; the dashed line is the entropy, which no bound goes "
        "below. Dots are seeds. Axes begin below the entropy, not at zero."
    )
    figure, panels = figure_and_axes(3.2 * len(records), 4, note, len(records))
    colours = dict(zip(LABELS, spread(len(LABELS)), strict=True))
    for (task, record), axes in zip(records.items(), panels, strict=True):
        for place, name in enumerate(name for name in LABELS if name in record["systems"]):
            system = record["systems"][name]
            bar = axes.bar(
                place, system["bound"], color=colours[name], yerr=system["standard_error"]
            )
            bar.set_label(LABELS[name])
            bounds = [run["bound"] for run in record["runs"][name]]
            axes.plot([place] * len(bounds), bounds, "k.", ms=4)
        axes.axhline(record["entropy"], color="k", ls="--", lw=1, label="entropy")
        axes.set(title=task, xticks=[], ylim=(0.85 * record["entropy"], None))
    panels[0].set_ylabel("order bound, nats per character")
    add_legend(figure, columns=4)
    _save(figure, path)


def plot_rates(record: dict[str, Any], path: Path) -> None:
    """Mean log rates of the positions at each checkpoint, less their mean over positions."""
    note = "What to see: positions with high rates are written first."
    figure, (axes,) = figure_and_axes(6, 4.2, note)
    by_step = record["runs"]["lomdm"][0]["log_rates_by_step"]
    colours = spread(len(by_step))[::-1]  # late is dark
    for number, (step, rates) in enumerate(by_step.items()):
        mean = sum(rates) / len(rates)
        heights, colour = [rate - mean for rate in rates], colours[number]
        axes.plot(heights, "o-", ms=3, color=colour, label=f"step {step}")
    axes.set(xlabel="position", ylabel="log rate, less the mean", title=record["task"])
    add_legend(figure)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="picture of the prizes")
    parser.add_argument("--rates", type=Path, required=True, help="picture of the rates")
    options = parser.parse_args(arguments)
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in options.records}
    plot_prizes(records, options.output)
    plot_rates(next(iter(records.values())), options.rates)


if __name__ == "__main__":
    main()
