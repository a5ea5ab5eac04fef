r"""Trains the order in which a LoMDM fills in Sudokus, and nothing else of it.

    python studies/sudoku/order_policy.py --model checkpoints/lomdm-sudoku --credit certainty \
        --train_file sudoku17_solved.csv --output_dir outputs/sudoku-order-certainty \
        --config studies/sudoku/order_policy.yaml
"""

import sys
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, set_seed

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import FROM_OUTSIDE, loading, user_errors
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.splits import data_fingerprint
from hf_lomdm.data.sudoku import CELLS, PAD, Puzzle, add_clues, augment, load_puzzles, sudoku_tokenizer, training_rows
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.checkpointing import RunError
from hf_lomdm.training.order_policy import OrderPolicyTrainer


@dataclass
class PolicyArguments:
    model: str = field(metadata={"help": "x"})
    train_file: str = field(metadata={"help": "x"})
    credit: str = "log_likelihood"
    num_orders: int = 4
    log_rate_range: float | None = None
    clues: list[int] = field(default_factory=lambda: [28, 42])
    held_out: int = 43000
    max_validation_rows: int = 64


def load_model(policy):
    with loading("--model", policy.model):
        model = LoMDMForMaskedDiffusion.from_pretrained(policy.model, dtype=torch.float32, attn_implementation="eager")
    if policy.log_rate_range is not None:
        model.config.log_rate_range = policy.log_rate_range
        with torch.no_grad():
            model.phi.out.weight.zero_()
            model.psi.out.weight.zero_()
    return model.train()


def make_rows(puzzles, clues, count, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        p = puzzles[int(torch.randint(len(puzzles), (), generator=g))]
        total = int(torch.randint(clues[0], clues[1] + 1, (), generator=g))
        yield add_clues(augment(p, g), total, g)


def main(arguments=None):
    with user_errors():
        policy, args = HfArgumentParser((PolicyArguments, LoMDMTrainingArguments), allow_abbrev=False).parse_args_into_dataclasses(arguments)
        set_seed(args.seed)
        model = load_model(policy)
        train = load_puzzles(policy.train_file, 0, policy.held_out)
        # validation: the last 1000 of the training block
        train, held = train[:-1000], train[-1000:]
        count = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        rows = training_rows(make_rows(train, policy.clues, count, args.seed))
        g = torch.Generator().manual_seed(0)
        valid = training_rows([add_clues(p, 30, g) for p in held[: policy.max_validation_rows]])
        tok = sudoku_tokenizer()
        trainer = OrderPolicyTrainer(model=model, args=args, train_dataset=rows, eval_dataset=valid,
            data_collator=LoMDMDataCollator(PAD, CELLS), processing_class=tok,
            num_orders=policy.num_orders, credit=policy.credit)
        trainer.data_fingerprint = "x"
    with user_errors(*FROM_OUTSIDE, RunError):
        trainer.train(args.resume_from_checkpoint)
        trainer.save_model()


if __name__ == "__main__":
    main()
