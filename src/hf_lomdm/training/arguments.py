"""What a training run can be told: one dataclass per part, for `HfArgumentParser`.

The transformers settings (learning rate, steps, output folder, ...) are the third part, in the same
namespace: no name here may be one of `transformers.TrainingArguments`.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

# What is trained: a masked diffusion model of the family, or the autoregressive baseline.
OBJECTIVES = ("diffusion", "ar")
# Ranges of the numbers of `LoMDMTrainingArguments`: a type, and `low <= number < high`. Those of
# the model are checked by its configuration, those of the data by `hf_lomdm.data`.
RANGES: dict[str, tuple[type, float, float]] = {
    **dict.fromkeys(
        ("learning_rate", "head_learning_rate", "muon_learning_rate"), (float, 0, math.inf)
    ),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "adam_epsilon"), (float, 0, math.inf)),
    **dict.fromkeys(("ema_decay", "adam_beta1", "adam_beta2"), (float, 0, 1)),
    **dict.fromkeys(("num_train_epochs", "warmup_steps", "eval_delay"), (float, 0, math.inf)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (float, 0, math.inf)),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size"), (int, 1, math.inf)
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "eval_num_samples", "ddp_timeout"), (int, 1, math.inf)
    ),
    **dict.fromkeys(("dataloader_prefetch_factor", "torch_empty_cache_steps"), (int, 1, math.inf)),
    **dict.fromkeys(
        ("dataloader_num_workers", "save_total_limit", "order_search"), (int, 0, math.inf)
    ),
    "max_steps": (int, -1, math.inf),
    **dict.fromkeys(("seed", "data_seed"), (int, 0, 2**32)),
}
# Settings of transformers that have no effect here or another one than documented; only their
# defaults are accepted.
REFUSED = {
    "fp16": "rates and their gradients need the range of bf16; pass bf16",
    "fp16_full_eval": "evaluation has the precision of training; pass bf16",
    "bf16_full_eval": "evaluation has the precision of training; pass bf16",
    "label_smoothing_factor": "the loss is the bound on -log P, which a smoothed one is not",
    "neftune_noise_alpha": "the loss is the bound on -log P of the texts, not of noisy embeddings",
    "auto_find_batch_size": (
        "the draws of a step belong to its batch; set per_device_train_batch_size"
    ),
    "average_tokens_across_devices": (
        "the loss is that of the global batch on any number of devices"
    ),
    "ignore_data_skip": "a resumed run goes on with the texts that it has not seen",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint without it",
    "use_liger_kernel": "it has no kernels for these models",
    "batch_eval_metrics": "evaluation measures the bound and keeps no predictions",
    "include_for_metrics": "evaluation measures the bound and keeps no predictions",
}

# Arguments of `transformers.Trainer` that would have no effect.
UNUSED = {
    "compute_loss_func": "the loss is the bound of the model.",
    "compute_metrics": "evaluation measures the bound and keeps no predictions.",
    "preprocess_logits_for_metrics": "evaluation measures the bound and keeps no logits.",
}


@dataclass(frozen=True)
class Mode:
    """A mode in which some settings have no effect.

    Attributes:
        name: the setting and its value that make the mode.
        holds: whether a run, all of its settings in one namespace, is in it.
        idle: the settings; another value than their default is refused.
    """

    name: str
    holds: Callable[[argparse.Namespace], bool]
    idle: tuple[str, ...]


MODES = (
    Mode(
        "objective ar",
        lambda run: run.objective == "ar",
        (
            "rate_type",
            "block_size",
            "c1",
            "c2",
            "bound",
            "num_views",
            "time_epsilon",
            "time_range",
            "eval_num_samples",
            "lora_rank",
            "log_rate_range",
            "position_log_rates",
            "order_search",
        ),
    ),
    Mode("block_size", lambda run: run.block_size is not None, ("order_search",)),
    Mode("lora_rank", lambda run: run.lora_rank is not None, ("order_search",)),
    Mode(
        "a rate_type that takes no order",
        lambda run: run.rate_type not in ("learned", "uniform"),
        ("order_search",),
    ),
    Mode("position_log_rates", lambda run: run.position_log_rates is not None, ("order_search",)),
    Mode("no init_from", lambda run: not run.init_from, ("logit_shift",)),
    Mode("no lora_rank", lambda run: run.lora_rank is None, ("lora_alpha", "lora_modules")),
    Mode(
        "a rate_type that is not learned",
        lambda run: run.rate_type != "learned",
        ("c1", "c2", "log_rate_range"),
    ),
    Mode("log_rate_range", lambda run: run.log_rate_range is not None, ("c1", "c2")),
    Mode("bound order", lambda run: run.bound == "order", ("time_epsilon", "time_range")),
    Mode(
        "task sudoku",
        lambda run: run.task == "sudoku",
        (
            *(
                "dataset_name",
                "dataset_config",
                "dataset_revision",
                "train_split",
                "validation_split",
                "streaming",
                "sample_by",
            ),
            *(
                "text_column",
                "detokenizer",
                "tokenizer",
                "train_tokenizer",
                "packing",
                "insert_special_tokens",
                "fill_with_eos",
            ),
        ),
    ),
    Mode(
        "train_file",
        lambda run: bool(run.train_file),
        ("dataset_config", "dataset_revision", "train_split", "validation_split", "streaming"),
    ),
    Mode(
        "dataset_name pydoc_topics",
        lambda run: run.dataset_name == "pydoc_topics",
        (
            *("dataset_config", "dataset_revision", "train_split", "validation_split"),
            *("text_column", "streaming"),
        ),
    ),
    Mode("streaming", lambda run: run.streaming, ("max_train_rows",)),
    Mode("validation_file", lambda run: bool(run.validation_file), ("validation_split",)),
    Mode("text that is no .txt file", lambda run: not _reads(run, is_txt=True), ("sample_by",)),
    Mode("text in .txt files", lambda run: not _reads(run, is_txt=False), ("text_column",)),
    Mode(
        "lr_scheduler_type constant",
        lambda run: run.lr_scheduler_type == "constant",
        ("warmup_steps", "lr_scheduler_kwargs"),
    ),
)


@dataclass
class ModelArguments:
    """Objective, start, sizes and process of the model; sizes and process as in `LoMDMConfig`."""

    objective: str = field(
        default="diffusion",
        metadata={
            "help": (
                "diffusion, or ar: an autoregressive GPT-NeoX of the same sizes; it does not use "
                "rate_type, block_size, c1, c2, bound, num_views, time_epsilon and time_range."
            ),
            "choices": list(OBJECTIVES),
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": (
                "Start from this trained model of the same objective, a folder or Hub name: its "
                "backbone and LM head are copied, and order heads or token rates start new. All "
                "sizes are those of the folder, except max_position_embeddings if given. The "
                "tokenizer must equal the folder's, which is the default. No effect if training "
                "resumes from a checkpoint."
            )
        },
    )
    logit_shift: bool = field(
        default=True,
        metadata={
            "help": (
                "If init_from is a causal model of transformers: predict a token at the position "
                "before it, as that model does."
            )
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": (
                "Train low-rank updates of this rank for the backbone's linear layers, and all "
                "weights of order heads or token rates; the backbone stays as it is, with bf16 in "
                "bfloat16. Default: train all weights."
            )
        },
    )
    lora_alpha: int = field(
        default=32, metadata={"help": "Scale of the updates; they are multiplied by alpha / rank."}
    )
    lora_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers to update; default all linear ones."},
    )
    hidden_size: int = field(
        default=768, metadata={"help": "Hidden units; a multiple of 2 * num_attention_heads."}
    )
    num_hidden_layers: int = field(
        default=12, metadata={"help": "Transformer blocks of the backbone."}
    )
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads per block."})
    intermediate_size: int | None = field(
        default=None,
        metadata={
            "help": (
                "Width of each MLP; in a converted model, of those of the order heads. Default 4 * "
                "hidden_size."
            )
        },
    )
    max_position_embeddings: int | None = field(
        default=None, metadata={"help": "Tokens of the longest text; default max_length."}
    )
    rate_type: str = field(
        default="learned",
        metadata={
            "help": (
                "Rates of revealing: learned (LoMDM), uniform (MDLM), token (GenMD4) or score "
                "(SEDD)."
            )
        },
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "help": "Positions per block, written left to right (BD3-LM); default no blocks."
        },
    )
    c1: float = field(default=0.7, metadata={"help": "Level of the learned rates."})
    c2: float = field(default=0.65, metadata={"help": "Range of the learned rates; 0 <= c2 < c1."})
    log_rate_range: float | None = field(
        default=None,
        metadata={
            "help": (
                "A number r, for example 5, for the learned rates exp(r NormSig(g)), of which two "
                "differ by a factor of e^r at most; default the paper's c1 + c2 NormSig(g)."
            )
        },
    )
    position_log_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": (
                "A fixed order for learned or uniform rates: a number for each position; the rates "
                "of a position are multiplied by the exponential of its number. Default none."
            )
        },
    )
    bound: str = field(
        default="order", metadata={"help": "What training minimises: order, or time (the paper's)."}
    )
    time_epsilon: float | None = field(
        default=None,
        metadata={"help": "Smallest time in training by the time bound; default no cut."},
    )
    time_range: list[float] | None = field(
        default=None,
        metadata={
            "help": (
                "Two numbers: the range of local times in training by the time bound (BD3-LM "
                "clips them)."
            )
        },
    )
    num_views: int | None = field(
        default=None,
        metadata={
            "help": (
                "Views (random maskings) of each text in the loss; default 2 (the least) with "
                "learned rates, else 1."
            )
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the backbone in training."})
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "The LM head uses the embedding matrix."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": (
                "Attention in training: sdpa (the default), eager, flex_attention, "
                "flash_attention_2, ... On a CPU in bfloat16, eager is faster for rows of at most "
                "128 tokens. The choice is not saved with the model."
            )
        },
    )


@dataclass
class LoMDMTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what LoMDM adds and defaults that suit it.

    Raises:
        ValueError: an option that cannot work here, with the remedy.
    """

    learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate of the backbone and LM head."}
    )
    head_learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate of the order heads, if any."}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": (
                "Peak learning rate of torch.optim.Muon for the matrices of the backbone's layers, "
                "for example 0.01, with the same weight_decay; default: AdamW (or --optim) trains "
                "them too."
            )
        },
    )
    frozen_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules of the model that are not trained, for example psi."},
    )
    ema_decay: float = field(
        default=0.9999, metadata={"help": "Decay of the moving average of the weights; 0 = none."}
    )
    order_search: int = field(
        default=0,
        metadata={
            "help": (
                "Before training, train a copy of the network in each of several orders for this "
                "many steps, continue with the better half for as many more, and so on until one "
                "is left. If it is clearly better than a random order, it becomes "
                "position_log_rates, and training continues from its copy. 0 = no search."
            )
        },
    )
    eval_num_samples: int = field(
        default=2, metadata={"help": "Passes per text at evaluation, 2 or more for an error."}
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": (
                "auto: the newest complete checkpoint of output_dir, if there is one; or the "
                "folder of a checkpoint."
            )
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Hide losses that are not finite. They stop training here: leave it off."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Not needed: every weight takes part in every step."},
    )
    ddp_timeout: int = field(
        default=24 * 3600,
        metadata={
            "help": "Seconds that processes wait for each other: a day, as one makes the rows."
        },
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "end: upload the averaged weights as a Hub folder; for others see transformers."
        },
    )
    report_to: None | str | list[str] = field(
        default=None,
        metadata={"help": "Where logs go; default tensorboard if it is installed, else none."},
    )

    def __post_init__(self):
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        if self.data_seed is None:
            # without it the order of texts depends on the global random state
            self.data_seed = self.seed
        # without it transformers refuses bf16 on a machine with only a CPU
        self.use_cpu |= not torch.accelerator.is_available()
        # pinned memory needs an accelerator
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        defaults = {argument.name: argument.default for argument in fields(TrainingArguments)}
        for name, reason in REFUSED.items():
            if getattr(self, name, None) not in (defaults.get(name), None, []):
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported: {reason}.")
        for name in RANGES:
            check_range(name, getattr(self, name, None))
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # for all metrics of this trainer less is better
            self.greater_is_better = False
        try:
            super().__post_init__()
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{error.doc!r} is no JSON: {error}. Pass {{"name": value}}.'
            ) from error


def check_range(name: str, value: float | None) -> None:
    """Raises `ValueError` if `value` is not what `RANGES` has for `name`; `None` passes."""
    kind, low, high = RANGES[name]
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if value is not None and not (number and low <= value < high):
        expected = "a whole number" if kind is int else "a number"
        below = f" and below {high}" if high < math.inf else ""
        raise ValueError(f"{name} must be {expected}, at least {low}{below}, got {value!r}.")


def check_modes(*parts: Any) -> None:
    """Raises `ValueError` for a setting that was changed and has no effect in this run."""
    run = argparse.Namespace(
        **{name: value for part in parts for name, value in vars(part).items()}
    )
    defaults = {argument.name: argument.default for part in parts for argument in fields(part)}
    for mode in MODES:
        for name in mode.idle if mode.holds(run) else ():
            value = getattr(run, name)
            if value not in (None, "", defaults[name]):  # an empty string switches a setting off
                raise ValueError(f"{name}={value!r} has no effect with {mode.name}. Leave it out.")


def check_stream(args: LoMDMTrainingArguments) -> None:
    """Raises `ValueError` for what does not go with rows that are streamed."""
    if args.max_steps < 1:
        raise ValueError(
            f"streaming has no end, and max_steps={args.max_steps} sets none. Pass max_steps, for "
            "example 10000."
        )
    if args.dataloader_num_workers > 1:
        raise ValueError(
            f"dataloader_num_workers={args.dataloader_num_workers}: a stream is read by one "
            "process. Pass 0 or 1 with streaming."
        )


def _reads(run: argparse.Namespace, is_txt: bool) -> bool:
    """Whether the run may read a text in .txt files, or in others; a folder may hold either."""
    files = [file for file in (run.train_file, run.validation_file) if file]
    kinds = [(Path(file).is_dir(), ".txt" in Path(file.lower()).suffixes) for file in files]
    has_both = bool(run.dataset_name) and not is_txt
    return has_both or any(is_folder or txt == is_txt for is_folder, txt in kinds)
