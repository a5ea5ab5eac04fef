r"""Train a model of the family on text: LoMDM, MDLM, SEDD, BD3-LM, GenMD4, blocks, or AR.

On GPUs:

    accelerate launch training_scripts/train.py --config training_scripts/configs/owt.yaml

On a laptop, in ten minutes, without a download:

    python training_scripts/train.py --config training_scripts/configs/tiny.yaml

These train LoMDM. A second configuration names another system; `configs/README.md` has a command
for each:

    python training_scripts/train.py --config training_scripts/configs/tiny.yaml \
        --config training_scripts/configs/systems/mdlm.yaml

`--dataset_name org/name --streaming true` reads a data set of the Hub while it trains, in an order
that is drawn through buffers of 1,000 documents and 1,000 rows. A run that resumes reads it anew up
to where it stopped. Of several processes the first reads for all.

With `--order_search 1000` LoMDM first tries orders on copies of its network, each alone for so many
steps, and goes on in the best one (docs/when_an_order_pays.md).

Any of them can start from a trained model, such as one that `convert_checkpoint.py` made of a
public MDLM or BD3-LM:

    accelerate launch training_scripts/train.py --config training_scripts/configs/owt.yaml \
        --init_from converted/mdlm-owt

Every key of a configuration can be given on the command line (`--key value`), where it wins; of two
files the later one wins; `--help` lists the keys. Without `--output_dir` a run writes to `outputs/`
and the names of its files, here `outputs/tiny-mdlm`: every pair has a folder of its own. The same
command started again continues from the newest complete checkpoint of `output_dir`, with the same
result as if it had never stopped. At the end `output_dir` holds the evaluation, the log and the
averaged weights, as a Hub folder that loads as a model and as a pipeline without this package
(under FSDP: once `export_to_hub.py` has added the code; with `--lora_rank` in `merged`, beside the
updates alone), or with `--objective ar` by
`AutoModelForCausalLM`; `--push_to_hub` uploads it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerBase, set_seed

from hf_lomdm.cli.errors import FROM_OUTSIDE, user_errors
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.splits import data_fingerprint, load_data, model_token_ids
from hf_lomdm.data.sudoku import TOKEN_IDS, load_sudoku
from hf_lomdm.modeling.configuration_lomdm import LoMDMConfig
from hf_lomdm.modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.training.arguments import LoMDMTrainingArguments, ModelArguments, check_stream
from hf_lomdm.training.causal import CausalTrainer
from hf_lomdm.training.checkpointing import RunError, choose_checkpoint
from hf_lomdm.training.finetuning import add_lora, write_base_config
from hf_lomdm.training.model_card import describe_data, say_value
from hf_lomdm.training.models import (
    NO_TOKENIZER,
    causal_config,
    check_tokenizer,
    copy_trunk,
    diffusion_config,
    foreign_model,
    is_foreign,
)
from hf_lomdm.training.order_search import search_order
from hf_lomdm.training.parsing import parse_arguments
from hf_lomdm.training.trainer import LoMDMTrainer
from hf_lomdm.visualization import visible

# What `lomdm train my.txt` trains where no configuration is named.
SMALL = Path(__file__).with_name("small.yaml")
# --objective: the configuration of a new model, its class and its trainer.
OBJECTIVES = {
    "diffusion": (diffusion_config, LoMDMForMaskedDiffusion, LoMDMTrainer),
    "ar": (causal_config, GPTNeoXForCausalLM, CausalTrainer),
}


def main(arguments: list[str] | None = None) -> None:
    with user_errors():
        trainer = prepare(arguments)
    with user_errors(*FROM_OUTSIDE, RunError):  # of training itself the traceback is wanted
        train(trainer)


def with_text(arguments: list[str] | None) -> list[str]:
    """The words of a command line, of which the first may be a text: `train my.txt ...`.

    Without a configuration the model is then a small one; the run has a folder named for the text.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-"):
        return words
    text, *words = words
    named = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words}
    if "config" not in named:
        words = ["--config", str(SMALL), *words]
    if "output_dir" not in named:
        words = [*words, "--output_dir", f"outputs/{Path(text).stem}"]
    return ["--train_file", text, *words]


def train(trainer: LoMDMTrainer) -> None:
    """Trains, measures, saves, and writes a few texts."""
    result = trainer.train(trainer.args.resume_from_checkpoint)
    if trainer.num_steps_trained:  # else the record of the run that was finished stays
        trainer.save_metrics("train", result.metrics)
    evaluate(trainer)
    trainer.save_state()
    trainer.save_model()  # and, with --push_to_hub, uploads it
    if trainer.is_world_process_zero() and not trainer.is_fsdp_enabled:
        for text in trainer.sample_texts(3):
            print(f"--- sample\n{visible(text)}", flush=True)
        folder = Path(trainer.args.output_dir)
        if hasattr(trainer.model, "peft_config"):
            if trainer.base_name:
                write_base_config(trainer.model, folder, trainer.base_name)
            trainer.write_merged(folder / "merged")
        print(where_to_go_on(trainer, folder), flush=True)
    trainer.accelerator.end_training()


def prepare(arguments: list[str] | None) -> LoMDMTrainer:
    """The trainer that the command line asks for, with its data and a model to begin with.

    Raises:
        ValueError: an argument, a file or the text cannot be used; says which and what to do.
    """
    data_args, model_args, args = parse_arguments(with_text(arguments))
    if data_args.streaming:
        check_stream(args)
    set_seed(args.seed)
    # what is wrong with it shows before the text is read
    if is_foreign(model_args):
        if args.order_search:
            raise ValueError(
                f"order_search={args.order_search} tries our own trunk, and init_from="
                f"{model_args.init_from!r} has another. Leave it out."
            )
    else:
        make_config, *_ = OBJECTIVES[model_args.objective]
        make_config(model_args, data_args.max_length, NO_TOKENIZER)
    with args.main_process_first(desc="tokenisation"):
        if data_args.task == "sudoku":
            if model_args.objective == "ar":
                raise ValueError(
                    "objective ar reads from left to right and cannot take the clues of task "
                    "sudoku."
                )
            (texts, tokenizer), token_ids = load_sudoku(data_args), TOKEN_IDS
        else:
            texts, tokenizer = load_data(data_args, args.output_dir, args.data_seed)
            token_ids = model_token_ids(tokenizer, data_args)
    make = partial(make_trainer, data_args, texts, tokenizer, token_ids)
    if args.order_search:
        model_args = with_order(model_args, args, data_args.max_length, make)
    return make(model_args, args)


def with_order(
    model_args: ModelArguments,
    args: LoMDMTrainingArguments,
    max_length: int,
    make: Callable[[ModelArguments, LoMDMTrainingArguments], LoMDMTrainer],
) -> ModelArguments:
    """The same with the order that the search finds, or found before training began."""
    checkpoint = choose_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if checkpoint is not None:
        found = LoMDMConfig.from_pretrained(checkpoint).position_log_rates
        return replace(model_args, position_log_rates=found)

    def make_candidate(log_rates, args):
        set_seed(args.seed)  # copies start alike
        order = {"position_log_rates": log_rates, "rate_type": "uniform", "num_views": None}
        return make(replace(model_args, **order), args)

    found = search_order(make_candidate, args, model_args.max_position_embeddings or max_length)
    return replace(model_args, position_log_rates=found.log_rates, init_from=str(found.checkpoint))


def make_trainer(
    data_args: DataArguments,
    texts: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    token_ids: dict[str, int | None],
    model_args: ModelArguments,
    args: LoMDMTrainingArguments,
) -> LoMDMTrainer:
    """The trainer of a model of `make_model`, with its data.

    Raises:
        ValueError: an `init_from` that does not fit.
    """
    *_, trainer_class = OBJECTIVES[model_args.objective]
    trainer = trainer_class(
        model=make_model(data_args.max_length, tokenizer, token_ids, model_args, args),
        args=args,
        train_dataset=texts["train"],
        eval_dataset=texts["validation"],
        data_collator=LoMDMDataCollator(tokenizer.pad_token_id, data_args.max_length),
        processing_class=tokenizer,
    )
    trainer.data = describe_data(data_args)
    trainer.base_name = model_args.init_from
    trainer.data_fingerprint = data_fingerprint({"train": texts["train"]}, tokenizer)
    return trainer


def make_model(
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: dict[str, int | None],
    model_args: ModelArguments,
    args: LoMDMTrainingArguments,
) -> torch.nn.Module:
    """A new model, or one that starts from `init_from`; with `lora_rank` it learns updates."""
    make_config, model_class, _ = OBJECTIVES[model_args.objective]
    if model_args.init_from:
        check_tokenizer(tokenizer, model_args.init_from)
    foreign = is_foreign(model_args)
    if foreign:
        # a frozen backbone has no updates that bfloat16 would round away
        half = args.bf16 and model_args.lora_rank is not None
        dtype = torch.bfloat16 if half else torch.float32
        model = foreign_model(model_args, max_length, token_ids, tokenizer, dtype)
    else:
        model = model_class(make_config(model_args, max_length, token_ids))
    print(
        f"model: {model_class.__name__}, {model.num_parameters() / 1e6:.2f} M parameters",
        flush=True,
    )
    if (
        model_args.init_from
        and not foreign
        and choose_checkpoint(args.resume_from_checkpoint, args.output_dir) is None
    ):
        copy_trunk(model, model_args.init_from)
    if model_args.lora_rank is not None:
        rank, alpha = model_args.lora_rank, model_args.lora_alpha
        model = add_lora(model, rank, alpha, modules=model_args.lora_modules)
        model.print_trainable_parameters()
    return model


def where_to_go_on(trainer: LoMDMTrainer, folder: Path) -> str:
    """Where the model lies, and the next commands."""
    measure = f"lomdm evaluate likelihood {folder} --file TEXT"
    if not trainer.has_order:
        return f"The model is in {folder}, for AutoModelForCausalLM. To go on:\n    {measure}"
    return f"The model is in {folder}. To go on:\n    lomdm sample {folder}\n    {measure}"


def evaluate(trainer: LoMDMTrainer) -> None:
    """The measure of the objective on validation text, and what a learned order adds."""
    metrics = trainer.evaluate()
    if trainer.has_learned_order:
        metrics |= trainer.evaluate_without_order()
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return
    for key, label in trainer.describe().measures.items():
        if key in metrics:
            print(f"{label}: {say_value(metrics, key)}", flush=True)
