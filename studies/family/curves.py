r"""Learning curves of `compare_systems.py`, and how soon each reaches the first one's end.

    python studies/family/compare_systems.py \
        --config training_scripts/configs/tiny.yaml --systems mdlm lomdm --budget tokens=1e6 \
        --output outputs/compare_tiny.json
    python studies/family/curves.py outputs/compare_tiny.json --output curves.png

Systems of several records go into one picture; of one that is in two of them, the first counts.

A curve is the bound of the training batches between two lines of the log: of text that was not seen
before as long as a run is shorter than an epoch, with the weights as they are, not their average.
It falls steeply at the end, where the learning rate decays, so that a longer run is at a loss in
the middle: shares of steps are on the careful side.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_lomdm.visualization.colours import spread
from hf_lomdm.visualization.plots import DPI, add_legend, figure_and_axes

STYLES = ("-", "--", ":", "-.")
WINDOW = 5  # lines of the log that are averaged


def smooth(values: list[float]) -> list[float]:
    """Each value averaged with up to `WINDOW - 1` before it."""
    return [
        sum(part) / len(part)
        for part in (values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values)))
    ]


def reached_at(curve: list[list[float]], value: float) -> float | None:
    """The step at which the smoothed curve comes to `value`, interpolated; `None` if never.

    Args:
        curve: pairs of optimizer step and nats per token, by step.
    """
    steps, heights = [step for step, _ in curve], smooth([nats for _, nats in curve])
    for i, height in enumerate(heights):
        if height <= value:
            if i == 0:
                return steps[0]
            part = (heights[i - 1] - value) / (heights[i - 1] - height)
            return steps[i - 1] + part * (steps[i] - steps[i - 1])
    return None


def shares(systems: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float] | None]:
    """Shares of the first system's steps and operations after which each reaches its end.

    None for those that never are.
    """
    first = next(iter(systems.values()))
    goal = smooth([nats for _, nats in first["curve"]])[-1]
    reached = {}
    for name, system in systems.items():
        step = reached_at(system["curve"], goal)
        flops = system["train_flops"] / system["steps"]
        reached[name] = (
            None if step is None else (step / first["steps"], step * flops / first["train_flops"])
        )
    return reached


def plot_curves(systems: dict[str, dict[str, Any]], path: Path) -> None:
    """Smoothed curves over tokens and over operations, to a picture file.

    Raises:
        ImportError: without matplotlib. ValueError: the ending of `path` is none of a picture.
    """
    note = (
        "What to see: the lower, the better; the same curves over the text that was read (left) "
        "and over the operations that it took (right)."
    )
    figure, panels = figure_and_axes(11, 5, note, 2)
    colours = spread(len(systems))
    for (cost, label), axes in zip(
        {"train_tokens": "tokens", "train_flops": "FLOPs"}.items(), panels, strict=True
    ):
        for number, (name, system) in enumerate(systems.items()):
            unit = system[cost] / system["steps"]
            heights = smooth([nats for _, nats in system["curve"]])
            places = [step * unit for step, _ in system["curve"]]
            style = STYLES[number % len(STYLES)]  # neighbours in colour differ in style
            axes.plot(places, heights, style, label=name, color=colours[number], lw=1.5)
        axes.set(xlabel=label, ylabel="training bound, nats per token")
        axes.grid(alpha=0.3)
    panels[1].set_xscale("log")
    add_legend(figure, columns=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def read_systems(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """The systems of all records by name, the first of each.

    Raises:
        ValueError: one has no curve, or a file is no record.
    """
    systems = {}
    for path in paths:
        stored = json.loads(path.read_text(encoding="utf-8"))["systems"]
        without = [name for name, system in stored.items() if not system.get("curve")]
        if without:
            raise ValueError(
                f"{path} has no curve of {without}. Run compare_systems.py again, with logging."
            )
        systems |= {name: system for name, system in stored.items() if name not in systems}
    return systems


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="+", help="of compare_systems.py")
    parser.add_argument("--output", type=Path, required=True, help="picture file, a new one")
    options = parser.parse_args(arguments)
    try:
        if options.output.exists():
            raise ValueError(
                f"--output {options.output} is there already. Pass another name, or delete it."
            )
        systems = read_systems(options.records)
        plot_curves(systems, options.output)
    except (ImportError, OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {error}")
    print(
        "share of the first system's steps and FLOPs after which a system is where the first one "
        "ends"
    )
    for name, share in shares(systems).items():
        print(
            f"{name:16s} "
            + ("never" if share is None else f"{share[0]:6.1%} of steps  {share[1]:6.1%} of FLOPs")
        )
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
