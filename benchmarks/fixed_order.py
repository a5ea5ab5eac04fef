"""Trains a masked diffusion model in an order from left to right that is given, not learned: what such an order gives.

    python benchmarks/fixed_order.py --law "normsig 0.1" --output results/fixed_order_normsig.json \\
        --config training_scripts/configs/enwiki.yaml --train_file enwiki.train.txt \\
        --validation_file enwiki.valid.txt --max_steps 4101 --eval_strategy no

Forward and reverse rates are the same function of the position `i = 0, 1, ..`, so nothing of the order has to be
learned and the velocity part is zero. Laws as in `sudoku_oracle.py`, with the position in place of the entropy:

- `uniform`: MDLM;
- `normsig SLOPE`: LoMDM's `c1 + c2 NormSig(g)`, `g = -SLOPE i` centred, with its c1 and c2;
- `exp SLOPE`: `exp(-SLOPE i)`, without bounds on the ratio of two rates.

All other words are for `training_scripts/train.py`. One view per text unless `--num_views` says otherwise. The model
that is saved is an MDLM: it does not know its order. The record holds the order bound in the order of training, of the
same rows and draws as `compare_systems.py`.
"""

import argparse
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from compare_systems import EVALUATION_SEED
from sudoku_oracle import make_law
from torch import Tensor

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.records import write_record
from hf_lomdm.modeling.backbone_lomdm import position_ids
from hf_lomdm.training.arguments import parse_arguments
from hf_lomdm.training.data import load_data

TRAIN = Path(__file__).parents[1] / "training_scripts" / "train.py"


def fix_order(law: Callable[[Tensor], Tensor]) -> None:
    """Gives the models of this process, which have neither heads nor blocks, the rates `law(i)` of positions `i`."""

    def forward_rates(self, x: Tensor, attention_mask: Tensor | None = None, given: Tensor | None = None) -> Tensor:
        position = position_ids(attention_mask, x.shape[1], x.device)
        return law(position.expand_as(x).float())

    def reverse_rates(self, hidden: Tensor, attention_mask: Tensor | None, **_) -> Tensor:
        return forward_rates(self, hidden[..., 0], attention_mask)

    LoMDMForMaskedDiffusion.forward_rates = forward_rates
    LoMDMForMaskedDiffusion._reverse_rates = reverse_rates


def parse_options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the words for `train.py`, among them those of MDLM.

    Raises:
        ValueError: an order that does not exist, or a system with an order or blocks of its own.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--law", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the record")
    options, words = parser.parse_known_args(arguments)
    words = [*words, "--rate_type", "uniform"]
    _, model, _ = parse_arguments(words)
    if model.objective != "diffusion" or model.block_size is not None:
        raise ValueError("a fixed order is for --objective diffusion without --block_size. Leave them out.")
    options.law_of_position = make_law(options.law, model.c1, model.c2)
    return options, words


def evaluate(words: list[str]) -> dict:
    """The record of the trained model on the validation text."""
    data, _, training = parse_arguments(words)
    texts, _ = load_data(data, training.output_dir)
    model = LoMDMForMaskedDiffusion.from_pretrained(training.output_dir, dtype=torch.float32).eval()
    setting = {"num_samples": training.eval_num_samples, "seed": EVALUATION_SEED}
    batch_tokens = training.per_device_eval_batch_size * data.max_length
    return evaluate_corpus(model, texts["validation"], **setting, batch_tokens=batch_tokens)


def main(arguments: list[str] | None = None) -> None:
    try:
        options, words = parse_options(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    fix_order(options.law_of_position)
    sys.argv = [str(TRAIN), *words]
    runpy.run_path(str(TRAIN), run_name="__main__")
    record = {"task": "likelihood", "model": f"fixed order, {options.law}", "law": options.law, "words": words}
    record |= evaluate(words)
    write_record(options.output, record)
    print(f"order bound in its order: {record['value']:.4f} +- {record['standard_error']:.4f} nats per token")
    print(f"record: {options.output}")


if __name__ == "__main__":
    main()
