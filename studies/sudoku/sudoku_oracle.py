r"""What an order by certainty gives on Sudoku: oracles in place of the order heads.

    python studies/sudoku/sudoku_oracle.py \
        --model checkpoints/lomdm-sudoku --file sudoku17_solved.csv --start 43000

In a minute, with `--max_rows 16 --laws uniform "normsig 20"` besides.

The token law is the model's. Rates come from its entropy at each cell, in nats (0 at cells that are
known): forward rates from the state in which the clues alone are known, reverse rates from the
state that is filled. A learned phi may do better, for it reads the solution, and can tell more of
the later states than the first one shows. Laws:

- `uniform`: all rates 1;
- `normsig SLOPE [C2]`: LoMDM's `c1 + c2 NormSig(g)`, `g = -SLOPE entropy` centred as in the model,
  with its c1 and c2;
- `exp SLOPE`: `exp(-SLOPE entropy)`, without bounds on the ratio of two rates.

For each: the main part of the order bound, to which the heads would come if psi could follow phi
exactly; the whole bound with these reverse rates, which do not know the clues from the rest, and
what it is over that of the first law, paired; and the share of puzzles that `sequential` solves, a
cell at a time. Record: outputs/studies/.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.sudoku import CELLS, Puzzle, add_clues, load_puzzles, training_rows
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.records import write_record
from hf_lomdm.evaluation.sudoku import evaluate_sudoku
from hf_lomdm.modeling.batch_lomdm import Batch
from hf_lomdm.modeling.process_lomdm import centre, learned_rates
from hf_lomdm.modeling.rates_lomdm import RateLaw

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from measuring import record_place

NARROW = tuple(f"normsig 20 {c2}" for c2 in (0.05, 0.1, 0.2, 0.4))
LAWS = ("uniform", *NARROW, "normsig 5", "normsig 20", "normsig 100", "exp 3", "exp 10", "exp 30")
LEAST_RATE = 1e-12


@dataclass(frozen=True)
class OracleRates(RateLaw):
    """Rates that are a law `[B, L] -> [B, L]` of the entropies of the model's own token law."""

    law: Callable[[Tensor], Tensor]

    def forward_rates(self, model: LoMDMForMaskedDiffusion, batch: Batch) -> Tensor:
        start = batch.ids.masked_fill(batch.maskable, model.config.mask_token_id)
        hidden = model.model(start, batch.attention_mask).last_hidden_state
        return self.law(token_entropy(model, hidden) * batch.maskable)

    def reverse_rates(
        self, model: LoMDMForMaskedDiffusion, hidden: Tensor, batch: Batch, *_, **__
    ) -> Tensor:
        return self.law(token_entropy(model, hidden) * (batch.ids == model.config.mask_token_id))


def token_entropy(model: LoMDMForMaskedDiffusion, hidden: Tensor) -> Tensor:
    """Entropy of the token law of hidden states `[..., D]`, in nats, at unknown tokens."""
    log_law = model.token_logits(hidden).float().log_softmax(-1)
    return torch.special.entr(log_law.exp()).sum(-1)


def make_law(words: str, c1: float, c2: float) -> Callable[[Tensor], Tensor]:
    """The law that `words` name, see above.

    Raises:
        ValueError: there is none of that name, or its numbers are not those it takes.
    """
    name, *numbers = words.split()
    values = [float(number) for number in numbers]
    if (name, len(values)) == ("uniform", 0):
        return torch.ones_like
    if name == "normsig" and len(values) in (1, 2):
        slope, c2 = values if len(values) == 2 else (values[0], c2)
        return lambda entropy: learned_rates(centre(-slope * entropy), c1, c2)
    if (name, len(values)) == ("exp", 1):
        return lambda entropy: (-values[0] * entropy).exp().clamp(min=LEAST_RATE)
    raise ValueError(f"laws must be 'uniform', 'normsig SLOPE [C2]' or 'exp SLOPE', got {words!r}.")


def measure(
    model: LoMDMForMaskedDiffusion, pipe: LoMDMPipeline, puzzles: list[Puzzle], num_samples: int
) -> tuple[dict, Tensor]:
    """Order bound per cell (main part, whole) and share of puzzles solved, with errors.

    Also the bound of each puzzle `[B]`, whose draws are the same for every law.
    """
    rows = training_rows(puzzles)
    ids, labels = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels"))
    bound = nelbo(
        model,
        ids,
        labels=labels,
        num_samples=num_samples,
        generator=torch.Generator().manual_seed(0),
    )
    cells = (labels != -100).sum(-1)
    bounds = bound.nelbo / cells
    parts = describe("main", bound.main / cells) | describe("bound", bounds)
    names = ("value", "standard_error", "forced_first", "forced_at_random", "n")
    solved = evaluate_sudoku(pipe, puzzles, sampler="sequential", progress=False)
    return parts | {name: solved[name] for name in names}, bounds


def describe(name: str, values: Tensor) -> dict[str, float]:
    """Mean and standard error of `values` `[B]`."""
    return {name: float(values.mean()), f"{name}_error": float(values.std() / len(values) ** 0.5)}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=nonempty, required=True, help="folder of a LoMDM of --task sudoku"
    )
    parser.add_argument(
        "--file",
        type=nonempty,
        required=True,
        help="a .csv file with the columns puzzle and solution",
    )
    parser.add_argument("--start", type=whole(0), default=0, help="the first puzzle")
    parser.add_argument("--max_rows", type=whole(2), default=256, help="puzzles, 2 or more")
    parser.add_argument("--clues", type=whole(0, CELLS), default=40, help="cells given of each")
    parser.add_argument(
        "--num_samples", type=whole(1), default=8, help="draws per puzzle for the bound"
    )
    parser.add_argument("--laws", nargs="+", default=list(LAWS))
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/studies/sudoku_oracle-MODEL-FILE.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    names = ("model", "start", "max_rows", "clues", "num_samples")
    measured = {"task": "sudoku_oracle", "source": options.file, "names": options.laws}
    measured |= {name: getattr(options, name) for name in names}
    with user_errors():
        path = record_place(options.output, measured, "studies")
        with loading("--model", options.model):
            model = LoMDMForMaskedDiffusion.from_pretrained(options.model).eval()
        laws = {words: make_law(words, model.config.c1, model.config.c2) for words in options.laws}
        puzzles = load_puzzles(options.file, options.start, options.max_rows)
        generator = torch.Generator().manual_seed(0)
        puzzles = [add_clues(puzzle, options.clues, generator) for puzzle in puzzles]
        if len(puzzles) < 2:
            raise ValueError(
                f"--max_rows must leave at least 2 puzzles for an error, got {len(puzzles)}."
            )
    pipe = LoMDMPipeline.from_pretrained(options.model, model=model)
    pipe.set_progress_bar_config(disable=True)
    print(
        f"{'law':15s} {'main, nats per cell':>19s} {'over the first':>19s} {'solved':>15s} "
        f"{'forced reveals':>15s}"
    )
    by_law, first = {}, None
    for words, law in laws.items():
        with model.with_rates(OracleRates(law)):
            values, bounds = measure(model, pipe, puzzles, options.num_samples)
        first = bounds if first is None else first
        by_law[words] = values = values | describe("over_first", bounds - first)
        parts = (
            f"{values[name]:.4f} +- {values[f'{name}_error']:.4f}"
            for name in ("main", "over_first")
        )
        solved = f"{values['value']:.3f} +- {values['standard_error']:.3f}"
        print(
            f"{words:15s}",
            *(f"{part:>19s}" for part in parts),
            f"{solved:>15s} {values['forced_first']:>15.3f}",
            flush=True,
        )
    write_record(path, measured | {"laws": by_law})
    print(f"record: {path}")


if __name__ == "__main__":
    main()
