r"""Fine-tune on prompts and answers, with LoRA or in full: prompts are given.

On a GPU:

    lomdm finetune --model org/lomdm-owt \
        --train_file chat.jsonl --output_dir outputs/chat \
        --num_train_epochs 3 --per_device_train_batch_size 32 --bf16

On a laptop, in a minute:

    lomdm finetune --model checkpoints/lomdm-enwiki \
        --train_file pairs.jsonl --output_dir outputs/pairs --max_steps 50

A line of the jsonl holds `prompt` and `completion`, or `messages` (`role` and `content`, the last
by the assistant), which go through the chat template of the tokenizer; one without a template gets
a plain one, saved with it. Special tokens that texts spell out are text. Answers are
filled up with EOS to `--completion_length` tokens, which is the `max_new_tokens` to sample with.
The same command started again continues from the newest complete checkpoint.

With LoRA the order heads are trained in full. `OUTPUT_DIR/adapter` holds what was trained alone and
names its base; `peft` reads it, and `export_to_hub.py` makes a Hub folder of it. `--lora_rank 0`
trains all weights, by default at a tenth of the learning rate, and writes no adapter.
`OUTPUT_DIR/merged` holds the whole model as a Hub folder. All are averaged weights with
`--ema_decay` (the default is 0: runs are short).
"""

import copy
from pathlib import Path

import torch
from transformers import HfArgumentParser, set_seed

from hf_lomdm.cli.errors import FROM_OUTSIDE, loading, user_errors
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.examples import CHAT_TEMPLATE, make_rows, read_examples, split_examples
from hf_lomdm.data.splits import data_fingerprint
from hf_lomdm.data.tokenizers import load_tokenizer
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.pipelines.hub_folder_lomdm import check_target
from hf_lomdm.training.checkpointing import RunError
from hf_lomdm.training.finetuning import (
    FULL_LEARNING_RATE,
    FinetuningArguments,
    FinetuningTrainingArguments,
    add_lora,
    load_finetuned,
    merge_adapter,
    write_base_config,
)
from hf_lomdm.training.model_card import TrainingRecord, describe_diffusion, model_card, say_value
from hf_lomdm.training.trainer import LoMDMTrainer, make_pipeline
from hf_lomdm.visualization import visible


def main(arguments: list[str] | None = None) -> None:
    with user_errors():
        options, trainer, length = prepare(arguments)
    with user_errors(*FROM_OUTSIDE, RunError):  # of training itself the traceback is wanted
        train(options, trainer, length)


def parse(
    arguments: list[str] | None,
) -> tuple[FinetuningArguments, FinetuningTrainingArguments]:
    """The arguments; the default of the learning rate depends on `lora_rank`."""
    kinds = (FinetuningArguments, FinetuningTrainingArguments)
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    if not parser.parse_args(arguments).lora_rank:
        parser.set_defaults(learning_rate=FULL_LEARNING_RATE)
    return parser.parse_args_into_dataclasses(arguments)


def prepare(arguments: list[str] | None) -> tuple[FinetuningArguments, LoMDMTrainer, int]:
    """What the command line asks for, the trainer with its rows, and the tokens of an answer.

    Raises:
        ValueError: an argument, a file or the model cannot be used; says which and what to do.
    """
    options, args = parse(arguments)
    check(args)
    check_target(Path(args.output_dir) / "merged", "lomdm")
    set_seed(args.seed)
    with loading("--model", options.model):
        tokenizer = load_tokenizer(options.model)
        base = load_finetuned(options, tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    rows, length = load_rows(options, tokenizer, base.config)
    model = base
    if options.lora_rank:
        model = add_lora(base, options.lora_rank, options.lora_alpha, options.lora_dropout)
        model.print_trainable_parameters()
    longest = max(len(row["input_ids"]) for split in rows.values() for row in split)
    trainer = LoMDMTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=LoMDMDataCollator(base.config.pad_token_id, longest),
        processing_class=tokenizer,
    )
    trainer.data_fingerprint = data_fingerprint({"train": rows["train"]}, tokenizer)
    return options, trainer, length


def train(options: FinetuningArguments, trainer: LoMDMTrainer, length: int) -> None:
    """Trains, measures, saves an adapter and the whole model, and answers the first prompt."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    before = trainer.evaluate(metric_key_prefix="before")
    trainer.train(args.resume_from_checkpoint)
    after = trainer.evaluate()
    if options.lora_rank:
        trainer.save_model(str(folder / "adapter"))
    if trainer.is_world_process_zero():
        if options.lora_rank:
            write_base_config(trainer.model, folder / "adapter", options.model)
        trainer.save_metrics("eval", before | after)
        record = describe_run(options, args, trainer, after)
        pipe = save_whole(options, folder, trainer, record)
        report(before, after)
        show_answer(pipe, trainer.eval_dataset[0], length)


def check(args: FinetuningTrainingArguments) -> None:
    """Raises `ValueError` for what this script does not do."""
    if args.fsdp or args.deepspeed:
        raise ValueError(
            "finetune_lora.py trains on one device or with DDP: FSDP and DeepSpeed shard the "
            "adapter."
        )
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub would upload checkpoints of the adapter. Upload the merged folder "
            "afterwards: training_scripts/export_to_hub.py --model OUTPUT_DIR/merged --output "
            "FOLDER --push org/name."
        )


def load_rows(options: FinetuningArguments, tokenizer, config) -> tuple[dict[str, list], int]:
    """Rows of both splits, and the tokens of an answer; prints what there is."""
    bos, eos, longest = config.bos_token_id, config.eos_token_id, config.max_position_embeddings
    if (options.completion_length or 0) > longest:
        wrong = (
            f"completion_length is {options.completion_length}, the model reads {longest} tokens"
        )
        raise ValueError(f"{wrong}. Leave it out for the longest answer of train_file.")
    train = read_examples(options.train_file, tokenizer, bos, eos)
    if options.validation_file:
        validation = read_examples(options.validation_file, tokenizer, bos, eos)
    else:
        train, validation = split_examples(train)
    length = options.completion_length or max(len(example.answer) for example in train)
    rows = {}
    for split, examples in (("train", train), ("validation", validation)):
        rows[split], left_out = make_rows(examples, length, longest, eos)
        note = f"; {left_out} that do not fit are left out" if left_out else ""
        print(f"{split}: {len(rows[split])} examples, answers of {length} tokens{note}", flush=True)
    return rows, length


def report(before: dict[str, float], after: dict[str, float]) -> None:
    """The order bound of the validation answers before and after."""
    for name, metrics, prefix in (("before", before, "before"), ("after", after, "eval")):
        print(
            f"order bound {name}: {say_value(metrics, f'{prefix}_nelbo')} of the answers",
            flush=True,
        )


def describe_run(
    options: FinetuningArguments, args, trainer: LoMDMTrainer, metrics
) -> TrainingRecord:
    """The record of the whole model."""
    data = (
        f"prompts and answers of `{Path(options.train_file).name}`, of which only the answers count"
    )
    record = TrainingRecord.of(args, trainer.state.global_step, metrics, data)
    if options.lora_rank:
        record.settings |= {
            name: getattr(options, name) for name in ("lora_rank", "lora_alpha", "lora_dropout")
        }
    record.base_model = None if Path(options.model).exists() else options.model
    return record


def save_whole(
    options: FinetuningArguments, folder: Path, trainer: LoMDMTrainer, record: TrainingRecord
) -> LoMDMPipeline:
    """Writes the trained model as a Hub folder, and loads it from there."""
    tokenizer = trainer.processing_class
    if options.lora_rank:
        model = merge_adapter(load_finetuned(options, tokenizer), folder / "adapter")
    else:
        with trainer.averaged_weights():
            model = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model)).eval()
    card = model_card("merged", describe_diffusion(model.config), record)
    make_pipeline(model, tokenizer).save_pretrained(folder / "merged", model_card=card)
    record.save(folder / "merged")  # an export makes its card from it
    return LoMDMPipeline.from_pretrained(folder / "merged")


def show_answer(pipe: LoMDMPipeline, row: dict[str, list[int]], length: int) -> None:
    """Prints an answer to the first prompt of the validation text, a token at a time."""
    prompt = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100
    ]
    generator = torch.Generator().manual_seed(0)
    answer = pipe(
        [prompt], num_inference_steps=length, max_new_tokens=length, generator=generator
    ).texts[0]
    print(f"--- an answer, seed 0\n{visible(answer)}", flush=True)
