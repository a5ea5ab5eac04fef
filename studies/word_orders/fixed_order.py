r"""Trains in a given order that leans to the left, to learn what that order is worth.

    python studies/word_orders/fixed_order.py \
        --law "exp 0.05" --output outputs/fixed_order_exp.json \
        --config training_scripts/configs/enwiki.yaml \
        --train_file enwiki.train.txt --validation_file enwiki.valid.txt \
        --max_steps 4101 --eval_strategy no

On a laptop, in two minutes:

    python studies/word_orders/fixed_order.py \
        --law "exp 0.05" --output outputs/fixed_order_tiny.json \
        --config training_scripts/configs/tiny.yaml --max_steps 200 --eval_strategy no

Forward and reverse rates are the same function of the position `i = 0, 1, ..`, so nothing of the
order has to be learned and the velocity part is zero. Laws:

- `uniform`: MDLM;
- `normsig SLOPE`: LoMDM's `c1 + c2 NormSig(g)`, `g = -SLOPE i` centred, with its c1 and c2. Such
  scores are high in one half and low in the other: with 0.7 and 0.65 two rates differ by a factor
  of 2.7 at most, where the law allows 14;
- `exp SLOPE`: `exp(-SLOPE i)`. Neighbours are in order with probability `1 / (1 + exp(-SLOPE))`.

All other words are for `training_scripts/train.py`, whose `rate_type` is `uniform` here; one
process. One view per text unless `--num_views` says otherwise. The model in `output_dir` is an MDLM
that does not know its order, though the bound on its card is that of its order. The record holds
this bound, of the same rows and draws as `compare_systems.py`.
"""

import argparse
import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.data.splits import load_data
from hf_lomdm.evaluation.parts import PartsFile
from hf_lomdm.evaluation.records import check_output, write_record
from hf_lomdm.modeling.batch_lomdm import Batch
from hf_lomdm.modeling.process_lomdm import centre, learned_rates
from hf_lomdm.modeling.rates_lomdm import RATE_LAWS, RateLaw
from hf_lomdm.training.parsing import parse_arguments

STUDIES = Path(__file__).resolve().parents[1]
sys.path += [str(STUDIES.parent / "benchmarks"), str(STUDIES / "family")]

from compare_systems import TRAIN, Run, evaluate

STEEPEST = 80.0  # of `exp`, over all positions: float32 holds the last rate


def rates_by_position(law: str, length: int, c1: float, c2: float) -> Tensor:
    """The rates `[L]` of positions `0 .. length - 1` under a law, see above.

    Raises:
        ValueError: there is none of that name, or its slope is not a number that it can take.
    """
    name, *words = law.split()
    position = torch.arange(length, dtype=torch.float32)
    try:
        slopes = [float(word) for word in words]
    except ValueError:
        slopes = None
    if (name, slopes) == ("uniform", []):
        return torch.ones(length)
    if (
        name in ("normsig", "exp")
        and slopes
        and len(slopes) == 1
        and abs(slopes[0]) * (length - 1) <= STEEPEST
    ):
        scores = -slopes[0] * position
        return scores.exp() if name == "exp" else learned_rates(centre(scores[None]), c1, c2)[0]
    raise ValueError(
        "--law must be 'uniform', 'normsig SLOPE' or 'exp SLOPE', a slope of at most "
        f"{STEEPEST / (length - 1):.3g} for rows of {length} tokens, got {law!r}."
    )


class PositionRates(RateLaw):
    """Forward and reverse rates are `rates` `[L]` of the positions."""

    def __init__(self, rates: Tensor):
        self.rates = rates

    def forward_rates(self, model: LoMDMForMaskedDiffusion, batch: Batch) -> Tensor:
        return self.rates.to(batch.position.device)[batch.position]

    def reverse_rates(
        self, model: LoMDMForMaskedDiffusion, hidden: Tensor, batch: Batch, *_, **__
    ) -> Tensor:
        return self.forward_rates(model, batch)


def parse_options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Run, Tensor]:
    """The options of this script, the run that they describe, and the rates of its positions `[L]`.

    Raises:
        ValueError: a law that does not exist; a system with blocks or without masks, or a task with
            given positions.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--law", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the record")
    parser.add_argument(
        "--output_dir", help="of the run; default outputs/fixed-<law>: a folder for each law"
    )
    options, words = parser.parse_known_args(arguments)
    folder = options.output_dir or f"outputs/fixed-{options.law.replace(' ', '-')}"
    words = [*words, "--rate_type", "uniform", "--output_dir", folder]
    run = Run("fixed_order", words, {}, *parse_arguments(words))
    if (
        run.model.objective != "diffusion"
        or run.model.block_size is not None
        or run.data.task != "text"
    ):
        raise ValueError(
            "a fixed order is for --objective diffusion and --task text, without --block_size."
        )
    return (
        options,
        run,
        rates_by_position(options.law, run.data.max_length, run.model.c1, run.model.c2),
    )


def main(arguments: list[str] | None = None) -> None:
    try:
        options, run, rates = parse_options(arguments)
        measured = {"task": "likelihood", "law": options.law, "words": run.words}
        check_output(options.output, measured)
    except ValueError as error:
        sys.exit(f"error: {error}")
    # of the models that train.py makes and that are loaded here
    RATE_LAWS["uniform"] = PositionRates(rates)
    sys.argv = [str(TRAIN), *run.words]
    runpy.run_path(str(TRAIN), run_name="__main__")
    folder = Path(run.training.output_dir)
    texts, _ = load_data(run.data, folder)
    parts = folder / "evaluation.parts.jsonl"
    likelihood = evaluate(run, folder, texts["validation"], parts)
    write_record(options.output, measured | likelihood)
    PartsFile(parts, {}).delete()
    print(
        f"order bound in its order: {likelihood['value']:.4f} +- "
        f"{likelihood['standard_error']:.4f} nats per token"
    )
    print(f"record: {options.output}")


if __name__ == "__main__":
    main()
