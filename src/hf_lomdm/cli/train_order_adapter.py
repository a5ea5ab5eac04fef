r"""Train order heads on a frozen masked language model, which stays as it is.

On a GPU:

    python training_scripts/train_order_adapter.py --base answerdotai/ModernBERT-base \
        --train_file text.txt --output_dir outputs/order-adapter \
        --max_length 128 --max_steps 2000 --bf16 True

`--base` is a Hub name or folder (`AutoModelForMaskedLM` with its tokenizer, or a converted MDLM).
The same command started again continues from the newest complete checkpoint of `output_dir`, which
in the end holds the heads alone.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import HfArgumentParser, set_seed

from hf_lomdm.adapters import OrderAdapter
from hf_lomdm.cli.errors import FROM_OUTSIDE, loading, user_errors
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.splits import data_fingerprint, load_data
from hf_lomdm.evaluation.compare import comparison_table
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.records import write_record
from hf_lomdm.training.arguments import LoMDMTrainingArguments, check_stream
from hf_lomdm.training.checkpointing import RunError
from hf_lomdm.training.trainer import LoMDMTrainer
from hf_lomdm.visualization import visible


@dataclass
class AdapterArguments:
    """The base and the range of the rates."""

    base: str = field(metadata={"help": "Hub name or folder of the frozen masked language model."})
    base_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    c1: float = field(default=0.7, metadata={"help": "Level of the rates."})
    c2: float = field(default=0.65, metadata={"help": "Range of the rates; 0 <= c2 < c1."})


def main(arguments: list[str] | None = None) -> None:
    with user_errors():
        trainer = prepare(arguments)
    with user_errors(*FROM_OUTSIDE, RunError):  # of training itself the traceback is wanted
        train(trainer)


def prepare(arguments: list[str] | None) -> LoMDMTrainer:
    """The trainer that the command line asks for, with its data and fresh heads on the base.

    Raises:
        ValueError: an argument, a file, the base or the text cannot be used; says which and what to
            do.
    """
    adapter_args, data_args, args = HfArgumentParser(
        (AdapterArguments, DataArguments, LoMDMTrainingArguments), allow_abbrev=False
    ).parse_args_into_dataclasses(arguments)
    if data_args.streaming:
        check_stream(args)
    set_seed(args.seed)
    settings = {"c1": adapter_args.c1, "c2": adapter_args.c2}
    with loading("--base", adapter_args.base):
        model = OrderAdapter.from_pretrained(
            adapter_args.base, revision=adapter_args.base_revision, **settings
        )
    data_args.tokenizer = data_args.tokenizer or adapter_args.base
    # else the adapter puts them there itself
    data_args.insert_special_tokens = model.config.bos_token_id is not None
    with args.main_process_first(desc="tokenisation"):
        texts, tokenizer = load_data(data_args, args.output_dir, args.data_seed)
    pad = LoMDMDataCollator(tokenizer.pad_token_id, data_args.max_length)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = pad(rows)
        # tokens that are never revealed are given
        never = model.labels_for(batch["input_ids"]) == -100
        return {**batch, "labels": batch["labels"].masked_fill(never, -100)}

    trainer = LoMDMTrainer(
        model=model,
        args=args,
        train_dataset=texts["train"],
        eval_dataset=texts["validation"],
        data_collator=collate,
        processing_class=tokenizer,
    )
    trainer.data_fingerprint = data_fingerprint({"train": texts["train"]}, tokenizer)
    return trainer


def train(trainer: LoMDMTrainer) -> None:
    """Trains, saves, and compares the order bound without and with the learned order."""
    args = trainer.args
    trainer.train(args.resume_from_checkpoint)
    with trainer.averaged_weights():
        records = evaluate_orders(trainer.model, trainer.eval_dataset, args)
    trainer.save_model()
    if trainer.is_world_process_zero():
        for name, record in records.items():
            write_record(Path(args.output_dir) / f"{name.replace(' ', '_')}.json", record)
        print(visible(comparison_table(records)), flush=True)


def evaluate_orders(
    model: OrderAdapter, rows: Dataset, args: LoMDMTrainingArguments
) -> dict[str, dict]:
    """Records of the order bound without and with the learned order, on the same draws."""
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    rows = [{"input_ids": text, "labels": model.labels_for(text)} for text in ids]
    batch_tokens = args.per_device_eval_batch_size * max(map(len, ids))
    records = {}
    for name, order in (("random order", model.without_order()), ("learned order", nullcontext())):
        with order:
            likelihood = evaluate_corpus(
                model, rows, num_samples=args.eval_num_samples, batch_tokens=batch_tokens
            )
        records[name] = {"task": "likelihood", "model": args.output_dir, **likelihood}
    return records
