r"""How much of phi's gradient is signal, and how much of the noise is the score term's.

    python studies/score_noise/score_noise.py --model MODEL --file enwiki.train.txt
    python studies/score_noise/score_noise.py \
        --model outputs/sudoku --file sudoku17_solved.csv --clues 40

In seconds:

    python studies/score_noise/score_noise.py \
        --model checkpoints/lomdm-sudoku --file sudoku17_solved.csv --batches 8 --rows 4 --views 2

The gradient of the loss in the weights of phi has two parts (docs/method.md): `path`, through the
rates in the bound, and `score`, through the law of the masks, which RLOO estimates from the views
of a text. Both are taken from the same batches, of other texts and draws each, without an update
between them. Reported for each part and for both:

- `signal`: length of the mean gradient, from products of gradients of different batches, which are
  not biased upwards (0 where their mean is negative), and its square with a jackknife error;
- `noise`: root mean square distance of one batch's gradient from the mean;
- `batches`: `(noise / signal)^2`, how many must be averaged until the mean shows (none where there
  is no signal).

A file that ends in .csv holds puzzles, any other text. Record:
outputs/studies/score_noise-MODEL-FILE.json.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, refuse_unused, whole
from hf_lomdm.data.sudoku import CELLS, add_clues, load_puzzles, training_rows
from hf_lomdm.evaluation.records import environment, write_record

STUDIES = Path(__file__).resolve().parents[1]
sys.path += [str(STUDIES.parent / "benchmarks"), str(STUDIES / "word_orders")]

from measuring import record_place
from text_orders import load_texts

PARTS = ("path", "score", "both")
CLUES = 40


def phi_gradients(
    model: LoMDMForMaskedDiffusion, rows: dict[str, Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Gradients `[P]` in phi of a batch, nats per token: of the bound and of the score alone."""
    totals = []
    for training in (False, True):  # the score is in the loss of training alone
        generator = torch.Generator().manual_seed(seed)
        loss = model.train(training)(**rows, generator=generator).loss
        gradients = torch.autograd.grad(loss, list(model.phi.parameters()), allow_unused=True)
        totals.append(
            torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        )
    return totals[0], totals[1] - totals[0]


def signal_and_noise(gradients: Tensor) -> dict[str, float | None]:
    """Length of the mean of gradients `[N, P]`, `N >= 3`, error of its square, noise."""
    count = len(gradients)
    products = gradients.double() @ gradients.double().T  # [N, N]
    total, own, row = products.sum(), products.trace(), products.sum(1) - products.diagonal()
    square = (total - own) / (count * (count - 1))  # of the mean: no batch meets itself
    without = (total - own - 2 * row) / ((count - 1) * (count - 2))  # [N], each batch left out
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    signal, noise = square.clamp(min=0).sqrt(), (own / count - square).clamp(min=0).sqrt()
    statistics = {
        "signal": signal,
        "signal_squared": square,
        "signal_squared_error": error,
        "noise": noise,
    }
    batches = float((noise / signal).square()) if signal > 0 else None
    return {name: float(value) for name, value in statistics.items()} | {"batches": batches}


def load_rows(
    options: argparse.Namespace, model: LoMDMForMaskedDiffusion
) -> list[dict[str, Tensor]]:
    """`--batches` batches of `--rows` texts or puzzles each, as the model takes them.

    Raises:
        ValueError: the file has fewer.
    """
    options.max_rows = options.rows * options.batches
    if options.file.endswith(".csv"):
        if model.config.max_position_embeddings < CELLS:
            raise ValueError(
                f"{options.file} holds puzzles of {CELLS} cells, --model {options.model} takes "
                f"{model.config.max_position_embeddings} tokens. Pass a model of --task sudoku, or "
                "a text."
            )
        puzzles = load_puzzles(options.file, 0, options.max_rows)
        generator = torch.Generator().manual_seed(0)
        rows = training_rows(add_clues(puzzle, options.clues, generator) for puzzle in puzzles)
        ids, labels = (
            torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")
        )
    else:
        ids = labels = load_texts(options, model)
    if len(ids) < options.max_rows:
        raise ValueError(
            f"--rows times --batches are {options.max_rows}, {options.file} gives {len(ids)}. "
            "Lower one of them."
        )
    parts = zip(ids.split(options.rows), labels.split(options.rows), strict=True)
    return [{"input_ids": tokens, "labels": wanted} for tokens, wanted in parts]


def measure(
    model: LoMDMForMaskedDiffusion, batches: list[dict[str, Tensor]], num_views: int
) -> dict:
    """`signal_and_noise` of each of `PARTS`."""
    model.config.num_views = num_views
    pairs = [
        phi_gradients(model, rows, seed)
        for seed, rows in enumerate(tqdm(batches, desc=f"{num_views} views"))
    ]
    path, score = (torch.stack(part) for part in zip(*pairs, strict=True))
    return {
        name: signal_and_noise(part)
        for name, part in zip(PARTS, (path, score, path + score), strict=True)
    }


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True, help="folder of a LoMDM")
    parser.add_argument(
        "--file",
        type=nonempty,
        required=True,
        help="text, or a .csv file with the columns puzzle and solution",
    )
    parser.add_argument(
        "--clues", type=whole(0, CELLS), default=CLUES, help="cells given of each puzzle"
    )
    parser.add_argument("--rows", type=whole(1), default=32, help="texts in a batch")
    parser.add_argument("--batches", type=whole(3), default=64, help="3 or more, for an error")
    parser.add_argument(
        "--views",
        type=whole(2),
        nargs="+",
        default=[2, 4, 8],
        help="2 or more, which RLOO compares",
    )
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/studies/score_noise-MODEL-FILE.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        if not options.file.endswith(".csv") and options.clues != CLUES:
            refuse_unused({"clues": options.clues}, {"clues": "is for puzzles, a .csv file"})
        measured = {"task": "score_noise", "source": options.file, "numbers": options.views}
        measured |= {name: getattr(options, name) for name in ("model", "rows", "batches", "clues")}
        path = record_place(options.output, measured, "studies")
        with loading("--model", options.model):
            model = LoMDMForMaskedDiffusion.from_pretrained(options.model, dtype=torch.float32)
        if model.phi is None:
            raise ValueError(
                f"--model {options.model} has no phi: its rate_type is {model.config.rate_type!r}."
            )
        batches = load_rows(options, model)
    model.requires_grad_(False).phi.requires_grad_(True)
    print(
        f"{'views':>5s} {'part':6s} {'signal':>10s} {'its square':>22s} {'noise':>10s} "
        f"{'batches':>10s}"
    )
    measured_parts = {}
    for num_views in options.views:
        measured_parts[num_views] = measure(model, batches, num_views)
        for part, noise in measured_parts[num_views].items():
            square = f"{noise['signal_squared']:.2e} +- {noise['signal_squared_error']:.1e}"
            needed = "none" if noise["batches"] is None else f"{noise['batches']:.3g}"
            numbers = f"{noise['signal']:10.2e} {square:>22s} {noise['noise']:10.2e} {needed:>10s}"
            print(f"{num_views:5d} {part:6s} {numbers}", flush=True)
    where = environment("cpu", torch.float32, seed=0)
    write_record(path, measured | {"views": measured_parts, "environment": where})
    print(f"record: {path}")


if __name__ == "__main__":
    main()
