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

from hf_lomdm.visualization.plots import DPI, figure_and_axes

COLOURS = {
    "mdlm": "0.55",
    "backwards": "C3",
    "paper": "C4",
    "no_search": "C1",
    "lomdm": "C0",
    "best": "C2",
}
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
    figure, panels = figure_and_axes(3.2 * len(records), 3.6, len(records))
    shown: dict[str, Any] = {}  # for the legend, each system once
    for (task, record), axes in zip(records.items(), panels, strict=True):
        for place, name in enumerate(name for name in COLOURS if name in record["systems"]):
            system = record["systems"][name]
            bar = axes.bar(
                place, system["bound"], color=COLOURS[name], yerr=system["standard_error"]
            )
            shown.setdefault(LABELS[name], bar)
            bounds = [run["bound"] for run in record["runs"][name]]
            axes.plot([place] * len(bounds), bounds, "k.", ms=4)
        shown["entropy"] = axes.axhline(record["entropy"], color="k", ls="--", lw=1)
        axes.set(title=task, xticks=[], ylim=(0.85 * record["entropy"], None))
    panels[0].set_ylabel("order bound, nats per character")
    figure.legend(
        shown.values(), shown.keys(), ncols=4, fontsize="small", loc="outside lower center"
    )
    _save(figure, path)


def plot_rates(record: dict[str, Any], path: Path) -> None:
    """Mean log rates of the positions at each checkpoint, less their mean over positions."""
    figure, (axes,) = figure_and_axes(6, 3.6)
    by_step = record["runs"]["lomdm"][0]["log_rates_by_step"]
    for number, (step, rates) in enumerate(by_step.items()):
        mean = sum(rates) / len(rates)
        shade = f"{0.75 - 0.75 * (number + 1) / len(by_step):.2f}"
        axes.plot([rate - mean for rate in rates], "o-", ms=3, color=shade, label=f"step {step}")
    axes.set(xlabel="position", ylabel="log rate, less the mean", title=record["task"])
    axes.legend(fontsize="small")
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
