r"""Quality against passes: how few forward passes write as well as one token at a time.

    python studies/passes/passes.py sudoku --model checkpoints/lomdm-sudoku \
        --file sudoku17_solved.csv --start 43000
    python studies/passes/passes.py words --model checkpoints/lomdm-enwiki --file enwiki.valid.txt
    python studies/passes/passes.py plot --records studies/passes/records/*.json --output passes.png

Sudoku: puzzles with 40 clues, solved or not. Words: three tokens in a row are masked in held-out
texts; the law of the three that a setting writes is enumerated from samples against the exact law
of one token at a time. Records: outputs/studies/.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from hf_lomdm import LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.sudoku import add_clues, load_puzzles
from hf_lomdm.evaluation.records import write_record
from hf_lomdm.evaluation.sudoku import evaluate_sudoku

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from measuring import record_place

UNIFORM = {"sampler": "ancestral", "grid": "uniform"}
ORDERS = {"sequential": "learned", "random": "random", "confidence": "confidence"}
# name -> settings of the call, with the number of steps
SETTINGS = {
    **{
        f"{order}, {steps} steps": {"sampler": sampler, "num_inference_steps": steps}
        for sampler, order in ORDERS.items()
        for steps in (41, 21, 14, 7)
    },
    **{
        f"threshold {tau}": {"sampler": "threshold", "threshold": tau}
        for tau in (0.999, 0.99, 0.95, 0.9, 0.7)
    },
    **{
        f"entropy bound {gamma}": {"sampler": "entropy_bound", "entropy_bound": gamma}
        for gamma in (0.01, 0.1, 0.5, 2.0)
    },
    **{
        f"{order}, entropy bound 0.1": {
            "sampler": sampler,
            "count": "entropy_bound",
            "entropy_bound": 0.1,
        }
        for sampler, order in (("sequential", "learned"), ("random", "random"))
    },
    **{
        f"remasking {kind} {sigma}": {**UNIFORM, "remasking": kind, "sigma": sigma}
        for kind, sigma in (("cap", 0.02), ("cap", 0.1), ("rescale", 0.1), ("confidence", 1.0))
    },
    "remasking cap 0.1 in a loop": {
        **UNIFORM,
        **{"remasking": "cap", "sigma": 0.1, "loop_start": 0.55, "loop_stop": 0.05},
    },
    "threshold 0.9, 2 corrections of 4": {
        **{"sampler": "threshold", "threshold": 0.9},
        **{"corrector_steps": 2, "corrector_k": 4, "corrector_selection": "confidence"},
    },
}


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sudoku = commands.add_parser("sudoku", help="solved grids")
    sudoku.add_argument("--model", type=nonempty, required=True)
    sudoku.add_argument("--file", type=nonempty, required=True, help="columns puzzle, solution")
    sudoku.add_argument("--start", type=whole(0), default=0)
    sudoku.add_argument("--max_rows", type=whole(2), default=512, help="puzzles")
    sudoku.add_argument("--clues", type=whole(17), default=40)
    sudoku.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    sudoku.add_argument("--output", type=nonempty)
    sudoku.set_defaults(run=run_sudoku)
    plot = commands.add_parser("plot", help="one picture for each record")
    plot.add_argument("--records", nargs="+", type=nonempty, required=True)
    plot.add_argument("--output", type=nonempty, required=True)
    plot.set_defaults(run=run_plot)
    return parser.parse_args(arguments)


def run_sudoku(options: argparse.Namespace) -> None:
    names = ("model", "start", "max_rows", "clues", "settings")
    measured = {"task": "passes_sudoku", "source": Path(options.file).name}
    measured |= {name: getattr(options, name) for name in names}
    path = record_place(options.output, measured, "studies")
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    puzzles = load_puzzles(options.file, options.start, options.max_rows)
    puzzles = [add_clues(puzzle, options.clues, generator) for puzzle in puzzles]
    found = {}
    for name in options.settings:
        settings = {"num_inference_steps": 81 - options.clues, **SETTINGS[name]}
        steps = settings.pop("num_inference_steps")
        pipe.scheduler = type(pipe.scheduler)(pipe.scheduler.config.mask_token_id, **settings)
        record = evaluate_sudoku(pipe, puzzles, num_inference_steps=steps, progress=False)
        kept = ("value", "standard_error", "forward_passes", "tokens_per_forward", "seconds")
        found[name] = {key: record[key] for key in kept} | {"setting": SETTINGS[name]}
        show(name, found[name])
        write_record(path, measured | {"unit": record["unit"], "found": found})
    print(f"record: {path}")


def show(name: str, one: dict) -> None:
    quality = f"{one['value']:.4f} +- {one['standard_error']:.4f}"
    print(f"{name:36s} {one['forward_passes']:6.2f} passes {quality}", flush=True)


def run_plot(options: argparse.Namespace) -> None:
    """Quality against passes of each record, one panel each, with two errors."""
    import matplotlib.pyplot as plt

    records = [json.loads(Path(name).read_text(encoding="utf-8")) for name in options.records]
    figure, panels = plt.subplots(1, len(records), figsize=(7 * len(records), 5), squeeze=False)
    for panel, record in zip(panels[0], records, strict=True):
        families: dict[str, list] = {}
        for name, one in record["found"].items():
            families.setdefault(family(name), []).append(one)
        for label, points in families.items():
            points = sorted(points, key=lambda one: one["forward_passes"])
            passes, values = ([one[key] for one in points] for key in ("forward_passes", "value"))
            errors = [2 * one["standard_error"] for one in points]
            panel.errorbar(passes, values, yerr=errors, marker="o", capsize=2, label=label)
        panel.set(
            xlabel="forward passes", ylabel=record["unit"], title=record["task"], xscale="log"
        )
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.output, dpi=120)
    print(f"picture: {options.output}")


def family(name: str) -> str:
    """The name of a setting without its numbers."""
    words = [word for word in name.split() if not word.replace(".", "").isdigit()]
    return " ".join(words).removesuffix(" steps")


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        options.run(options)


if __name__ == "__main__":
    main()
