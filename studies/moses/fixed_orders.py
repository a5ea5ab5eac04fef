r"""What molecules cost a trained network in fixed orders, some of them by the kind of character.

    python studies/moses/fixed_orders.py --model checkpoints/lomdm-moses --file moses.test.txt

The orders of `studies/word_orders/text_orders.py`, and four that know the molecule: all rings,
atoms, branches or the end of the row first, drawn at random within and behind. What such an order
tells by the next position (that a ring digit is there) is not charged: its sum is the cost of the
characters alone, and no bound on `-log P`. Nats per molecule, errors over molecules.
"""

import argparse
import sys
from pathlib import Path

import torch

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.evaluation.molecule_reference import read_smiles
from hf_lomdm.evaluation.molecules import molecule_rows
from hf_lomdm.evaluation.records import environment, write_record
from hf_lomdm.evaluation.token_classes import SmilesClasses
from hf_lomdm.modeling.checkpoint_lomdm import read_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "word_orders"))

import text_orders

FIRST = {"rings_first": "ring digit", "atoms_first": "atom", "branches_first": "branch"}
FIRST |= {"end_first": "end"}  # the length of the molecule before it
PLAIN = ("random", "learned", "left_to_right", "right_to_left", "certain")


def orders_of(classes: SmilesClasses) -> text_orders.Orders:
    """The orders that are measured, by name; `classes` tell the kinds of the characters."""
    orders = {name: text_orders.ORDERS[name] for name in PLAIN}
    for name, kind in FIRST.items():
        index = classes.names.index(kind)
        orders[name] = lambda state, index=index: state.noise + (classes(state.texts) == index)
    return orders


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True)
    parser.add_argument("--file", type=nonempty, required=True, help="molecules to measure")
    parser.add_argument("--max_rows", type=whole(2), default=256)
    output = "outputs/studies/fixed_orders.json"
    parser.add_argument("--output", type=nonempty, default=output)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        with loading("--model", options.model):
            tokenizer = read_tokenizer(options.model)
            model = LoMDMForMaskedDiffusion.from_pretrained(options.model, dtype=torch.float32)
        smiles = read_smiles(options.file)[: options.max_rows]
        rows = molecule_rows(smiles, tokenizer, model)
        texts = torch.stack([torch.as_tensor(row["input_ids"]) for row in rows])
        orders = orders_of(SmilesClasses(tokenizer, model.config.vocab_size))
        drawn = text_orders.DRAWN | dict.fromkeys(FIRST, text_orders.DRAWN["random"])
        by_order, length = {}, texts.shape[1]
        for order in orders:
            by_order[order] = text_orders.measure(model.eval(), texts, order, orders, drawn)
            found = text_orders.summary(by_order)[order]
            own, less = (
                f"{part['value'] * length:.2f} +- {part['standard_error'] * length:.2f}"
                for part in (found, found["minus_first"])
            )
            print(f"{order:15s} {own:>16s} nats per molecule, minus random {less:>16s}", flush=True)
        record = {"task": "fixed_orders", "model": options.model, "n": len(texts)}
        record |= {"length": length, "orders": text_orders.summary(by_order)}
        record |= {"environment": environment("cpu", torch.float32, seed=0)}
        write_record(options.output, record)
    print(f"record: {options.output}")


if __name__ == "__main__":
    main()
