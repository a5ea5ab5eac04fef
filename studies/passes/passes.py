r"""Quality against passes: how few forward passes write as well as one token at a time.

    python studies/passes/passes.py sudoku --model checkpoints/lomdm-sudoku \
        --file sudoku17_solved.csv --start 43000
    python studies/passes/passes.py words --model checkpoints/lomdm-enwiki --file enwiki.valid.txt
    python studies/passes/passes.py plot --records studies/passes/records/*.json --output passes.png

Sudoku: puzzles with 40 clues, solved or not. Words: three tokens in a row are masked in held-out
texts, each with the eight tokens that are likeliest there; the law of the three that a setting
writes is enumerated, and compared with that of one token at a time in the learned order. Records:
outputs/studies/.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from hf_lomdm import LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.sudoku import add_clues, load_puzzles
from hf_lomdm.evaluation.records import write_record
from hf_lomdm.evaluation.sudoku import evaluate_sudoku
from hf_lomdm.modeling.process_lomdm import entropy_bound_prefix, threshold_prefix
from hf_lomdm.visualization.colours import spread
from hf_lomdm.visualization.plots import DPI, add_legend, figure_and_axes

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
    "ancestral, 41 steps": UNIFORM,
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


# Order, count and steps of three words.
HOLE, KEPT = 3, 8  # masked tokens in a row; tokens that each may become
WORDS = {
    **{
        f"{order}, {steps} steps": (order, "steps", steps)
        for order in ("learned", "random", "confidence", "entropy")
        for steps in (3, 2, 1)
    },
    **{f"threshold {tau}": ("confidence", tau, HOLE) for tau in (0.99, 0.9, 0.7, 0.5, 0.3)},
    **{f"entropy bound {gamma}": ("entropy", -gamma, HOLE) for gamma in (0.1, 0.5, 1.0, 2.0)},
    **{
        f"{order}, entropy bound {gamma}": (order, -gamma, HOLE)
        for order in ("learned", "random")
        for gamma in (0.1, 0.5, 1.0, 2.0)
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
    words = commands.add_parser("words", help="laws of three tokens, enumerated")
    words.add_argument("--model", type=nonempty, required=True)
    words.add_argument("--file", type=nonempty, required=True, help="held-out text")
    words.add_argument("--max_rows", type=whole(2), default=64, help="texts")
    words.add_argument("--output", type=nonempty)
    words.set_defaults(run=run_words)
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


def run_words(options: argparse.Namespace) -> None:
    measured = {"task": "passes_words", "source": Path(options.file).name}
    measured |= {"model": options.model, "max_rows": options.max_rows}
    path = record_place(options.output, measured, "studies")
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    length, model = pipe.model.config.max_position_embeddings, pipe.model.eval()
    with open(options.file, encoding="utf-8") as file:
        text = file.read(20 * length * options.max_rows)
    ids = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[: length * options.max_rows]).view(-1, length)
    values: dict[str, list] = {name: [] for name in WORDS}
    for row in rows:
        states = tables(model, row, length // 2)
        exact, _ = law_of_setting(states, *WORDS["learned, 3 steps"])
        for name, setting in WORDS.items():
            law, passes = law_of_setting(states, *setting)
            values[name].append([float((law - exact).abs().sum() / 2), passes])
    found = {}
    for name, pairs in values.items():
        distance, passes = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        error = float(distance.std() / math.sqrt(len(distance)))
        found[name] = {"value": float(distance.mean()), "standard_error": error}
        found[name] |= {"forward_passes": float(passes.mean()), "setting": WORDS[name]}
        show(name, found[name])
    unit = "total variation distance to one token at a time in the learned order"
    write_record(path, measured | {"unit": unit, "n": len(rows), "found": found})
    print(f"record: {path}")


@torch.no_grad()
def tables(model, row: Tensor, first: int) -> dict[tuple, tuple[list[Tensor], Tensor]]:
    """For each set of masked positions of the hole the token laws and the rates of its states.

    Its states have the shape `[S, S, S]`, `S = 1` where a position is masked and `KEPT` elsewhere.
    The laws of the three positions are `[S, S, S, KEPT]`, the rates `[S, S, S, 3]`.
    """
    mask, hole = model.config.mask_token_id, slice(first, first + HOLE)
    start = row.clone()
    start[hole] = mask
    kept = model(start[None]).logits[0, hole].topk(KEPT).indices  # [3, KEPT]
    found = {}
    for masked in itertools.product([True, False], repeat=HOLE):
        choices = [[mask] if one else kept[i].tolist() for i, one in enumerate(masked)]
        shape = [len(one) for one in choices]
        texts = start.repeat(math.prod(shape), 1)
        texts[:, hole] = torch.tensor(list(itertools.product(*choices)))
        outs = [model(part) for part in texts.split(128)]
        logits = torch.cat([out.logits[:, hole] for out in outs]).double()
        law = logits.gather(2, kept.expand(len(texts), -1, -1)).softmax(-1)
        rates = torch.cat([out.rates[:, hole] for out in outs]).double()
        laws = [law[:, i].view(*shape, KEPT) for i in range(HOLE)]
        found[masked] = laws, rates.view(*shape, HOLE)
    return found


def law_of_setting(states, order: str, count: str | float, steps: int) -> tuple[Tensor, float]:
    """The law `[KEPT, KEPT, KEPT]` of what a setting writes, and its mean number of passes.

    Args:
        count: `"steps"`, a threshold, or minus an entropy bound.
    """
    mass, passes = {(True,) * HOLE: torch.ones(1, 1, 1, dtype=torch.float64)}, 0.0
    for step in range(steps):
        onward: dict[tuple, Tensor] = {}
        for masked, here in mass.items():
            where = [i for i in range(HOLE) if masked[i]]
            passes += float(here.sum()) if where else 0.0
            for chain in itertools.permutations(where):
                laws, rates = states[masked]
                share = here * chance(chain, order, laws, rates)
                length = prefix(chain, count, laws, -(-len(where) // (steps - step)))
                for n in range(1, len(where) + 1):
                    after = tuple(masked[i] and i not in chain[:n] for i in range(HOLE))
                    written = share * (length == n)
                    for i in chain[:n]:  # the axis of a masked position has one entry
                        written = written * laws[i].squeeze(i).movedim(-1, i)
                    onward[after] = onward.get(after, 0) + written
            if not where:
                onward[masked] = onward.get(masked, 0) + here
        mass = onward
    return mass[(False,) * HOLE], passes


def chance(chain: tuple, order: str, laws: list[Tensor], rates: Tensor) -> Tensor:
    """Probability in each state that the masked positions are revealed in the order `chain`."""
    if order in ("learned", "random"):
        weights = rates if order == "learned" else torch.ones_like(rates)
        found = torch.ones_like(rates[..., 0])
        for k, i in enumerate(chain):
            found = found * weights[..., i] / weights[..., list(chain[k:])].sum(-1)
        return found
    if not chain:
        return torch.ones_like(rates[..., 0])
    sure = [
        laws[i].amax(-1) if order == "confidence" else -torch.special.entr(laws[i]).sum(-1)
        for i in sorted(chain)
    ]
    ranked = torch.stack(sure, -1).argsort(dim=-1, descending=True, stable=True)
    place = torch.tensor([sorted(chain).index(i) for i in chain])
    return (ranked == place).all(-1).double()


def prefix(chain: tuple, count: str | float, laws: list[Tensor], least: int) -> Tensor:
    """How many positions of `chain` each state reveals at once."""
    shape = laws[0].shape[:-1]
    if count == "steps" or not chain:
        return torch.full(shape, least)
    if count > 0:
        certainties = torch.stack([laws[i].amax(-1) for i in chain], -1).flatten(0, -2)
        lengths = threshold_prefix(certainties, count)
    else:
        entropies = [torch.special.entr(laws[i]).sum(-1) for i in chain]
        lengths = entropy_bound_prefix(torch.stack(entropies, -1).flatten(0, -2), -count)
    return lengths.view(shape).clamp(min=least)


def show(name: str, one: dict) -> None:
    quality = f"{one['value']:.4f} +- {one['standard_error']:.4f}"
    print(f"{name:36s} {one['forward_passes']:6.2f} passes {quality}", flush=True)


def run_plot(options: argparse.Namespace) -> None:
    """Quality against passes of each record, one panel each, with two errors."""
    records = [json.loads(Path(name).read_text(encoding="utf-8")) for name in options.records]
    note = (
        "What to see: the further left a curve is at its best, the fewer passes that setting "
        "needs. Of solved puzzles and MAUVE more is better, of a distance less. Bars: two errors."
    )
    figure, panels = figure_and_axes(7 * len(records), 6, note, len(records))
    names = list(dict.fromkeys(family(name) for record in records for name in record["found"]))
    colours = dict(zip(names, spread(len(names)), strict=True))
    markers = dict(zip(names, itertools.cycle("os^vD"), strict=False))
    for panel, record in zip(panels, records, strict=True):
        families: dict[str, list] = {}
        for name, one in record["found"].items():
            families.setdefault(family(name), []).append(one)
        for label, points in families.items():
            points = sorted(points, key=lambda one: one["forward_passes"])
            passes, values = ([one[key] for one in points] for key in ("forward_passes", "value"))
            styles = {"color": colours[label], "marker": markers[label]}
            errors = [2 * one["standard_error"] for one in points]
            panel.errorbar(passes, values, yerr=errors, capsize=2, label=label, **styles)
        title = record["task"].removeprefix("passes_")
        panel.set(xlabel="forward passes", ylabel=record["unit"], title=title)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    add_legend(figure, columns=4)
    figure.savefig(options.output, dpi=DPI)
    print(f"picture: {options.output}")


def family(name: str) -> str:
    """The name of a setting without its numbers."""
    words = [word for word in name.split() if not word.replace(".", "").isdigit()]
    return " ".join(words).removesuffix(" steps").rstrip(",")


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        options.run(options)


if __name__ == "__main__":
    main()
