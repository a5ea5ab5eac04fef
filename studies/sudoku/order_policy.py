r"""Trains the order in which a LoMDM fills in Sudokus, and nothing else of it.

First by imitation of certainty, with rates that may differ by a factor of e^40; then by the
probability of the solution that each order gives (docs/method.md, "an order by policy gradient"):

    python studies/sudoku/order_policy.py --model checkpoints/lomdm-sudoku \
        --train_file sudoku17_solved.csv --output_dir outputs/sudoku-certainty \
        --credit certainty --log_rate_range 40 --max_steps 1600 \
        --per_device_train_batch_size 16 --bf16 True
    python studies/sudoku/order_policy.py --model outputs/sudoku-certainty \
        --train_file sudoku17_solved.csv --output_dir outputs/sudoku-policy \
        --credit likelihood --sure 0.999 --clues 26 36 --num_orders 4 \
        --head_learning_rate 1e-4 --max_steps 60 --per_device_train_batch_size 16 --bf16 True

Each takes minutes on a core; in a minute, to see them run, with `--max_steps 2
--per_device_train_batch_size 2 --max_validation_rows 2` each. The same command started again
continues from the newest checkpoint. Puzzles are those that the model was trained on (`train.py
--task sudoku` keeps the last tenth of the file for validation), in any guise, with as many clues as
`--clues` says. Evaluation gives what the order costs: `-log p` of the solutions revealed in orders
of psi. `output_dir` then holds the model, to be measured by `evaluate.py sudoku --sampler
sequential`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, set_seed

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import FROM_OUTSIDE, loading, user_errors
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.splits import data_fingerprint
from hf_lomdm.data.sudoku import CELLS, PAD, VARIANTS, VOCABULARY, Puzzle, SudokuRows, load_sudoku
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.checkpointing import RunError
from hf_lomdm.training.order_policy import CREDITS, OrderPolicyTrainer


@dataclass
class PolicyArguments:
    """The model, its puzzles, and what its orders are paid for."""

    model: str = field(metadata={"help": "Folder of a LoMDM of --task sudoku."})
    train_file: str = field(metadata={"help": "A .csv file with the columns puzzle and solution."})
    credit: str = field(
        default="log_likelihood",
        metadata={
            "help": "What psi is paid for, see OrderPolicyTrainer.",
            "choices": list(CREDITS),
        },
    )
    num_orders: int = field(default=8, metadata={"help": "Orders of each puzzle, 2 or more."})
    sure: float = field(
        default=1.0, metadata={"help": "Cells surer than this are revealed at once in training."}
    )
    log_rate_range: float | None = field(
        default=None,
        metadata={
            "help": (
                "Give the model rates exp(r NormSig(g)) of this r, all equal at first; default: "
                "its own law of rates."
            )
        },
    )
    clues: list[int] = field(
        default_factory=lambda: [26, 44], metadata={"help": "Fewest and most clues of a puzzle."}
    )
    max_validation_rows: int = field(default=32, metadata={"help": "Puzzles of the evaluation."})


@dataclass
class PolicyTrainingArguments(LoMDMTrainingArguments):
    """Defaults for a short run on a CPU."""

    head_learning_rate: float = 3e-3
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 32
    warmup_steps: float = 10
    adam_beta2: float = 0.98
    ema_decay: float = 0.0
    logging_steps: float = 10
    save_steps: float = 50
    seed: int = 1


class EasierPuzzles(SudokuRows):
    """Rows of puzzles in any guise, with `fewest` to `most` clues, or their own if these are more.

    Row `i` is the same whenever it is read.
    """

    def __init__(self, puzzles: Sequence[Puzzle], fewest: int, most: int, variants: int):
        super().__init__(puzzles, variants)
        self.fewest, self.most = fewest, most
        contents = json.dumps([puzzles, fewest, most, variants])
        self._fingerprint = hashlib.sha256(contents.encode()).hexdigest()

    def draw_clues(self, own: int, generator: torch.Generator) -> int:
        total = int(torch.randint(self.fewest, self.most + 1, (), generator=generator))
        return max(own, total)


def load_model(policy: PolicyArguments) -> LoMDMForMaskedDiffusion:
    """The model, with another law of rates where one is asked for: all equal at first."""
    options = {} if policy.log_rate_range is None else {"log_rate_range": policy.log_rate_range}
    with loading("--model", policy.model):
        model = LoMDMForMaskedDiffusion.from_pretrained(
            policy.model,
            dtype=torch.float32,
            attn_implementation="eager",  # on a CPU in bfloat16 the faster one for 81 cells
            **options,
        )
    found = model.config.vocab_size, model.config.max_position_embeddings
    if found != (VOCABULARY, CELLS):
        raise ValueError(
            f"--model {policy.model} has {found[0]} tokens and {found[1]} positions, a model of "
            f"Sudokus {VOCABULARY} and {CELLS}. Pass one of --task sudoku."
        )
    if options:
        for head in (model.phi, model.psi):
            torch.nn.init.zeros_(head.out.weight)
    return model


def prepare(arguments: list[str] | None) -> OrderPolicyTrainer:
    """The trainer that the command line asks for.

    Raises:
        ValueError: an argument, the model or the file cannot be used; says which and what to do.
    """
    parser = HfArgumentParser((PolicyArguments, PolicyTrainingArguments), allow_abbrev=False)
    policy, args = parser.parse_args_into_dataclasses(arguments)
    if len(policy.clues) != 2 or not 17 <= policy.clues[0] <= policy.clues[1] < CELLS:
        raise ValueError(f"--clues must be two numbers, 17 to 80, got {policy.clues}.")
    set_seed(args.seed)
    model = load_model(policy)
    data = DataArguments(
        task="sudoku",
        train_file=policy.train_file,
        max_length=CELLS,
        max_validation_rows=policy.max_validation_rows,
    )
    rows, tokenizer = load_sudoku(data)
    rows = {
        split: EasierPuzzles(rows[split].puzzles, *policy.clues, variants)
        for split, variants in (("train", VARIANTS), ("validation", 1))
    }
    trainer = OrderPolicyTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=LoMDMDataCollator(PAD, CELLS),
        processing_class=tokenizer,
        num_orders=policy.num_orders,
        credit=policy.credit,
        sure=policy.sure,
    )
    trainer.data_fingerprint = data_fingerprint({"train": rows["train"]}, tokenizer)
    return trainer


def main(arguments: list[str] | None = None) -> None:
    with user_errors():
        trainer = prepare(arguments)
    with user_errors(*FROM_OUTSIDE, RunError):  # of training itself the traceback is wanted
        trainer.train(trainer.args.resume_from_checkpoint)
        trainer.save_metrics("eval", trainer.evaluate())
        trainer.save_model()


if __name__ == "__main__":
    main()
