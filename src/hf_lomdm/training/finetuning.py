"""Fine-tuning: its arguments, LoRA on the backbone, order heads in full."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..data.tokenizers import special_token_ids
from ..modeling.adapted_lomdm import describe_base
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from .arguments import LoMDMTrainingArguments, ModelArguments
from .models import foreign_model, is_foreign

# The default of `learning_rate` where all weights are trained.
FULL_LEARNING_RATE = 1e-4
# Modules that are trained in full where the model has them.
RATE_MODULES = ("phi", "psi", "omega")


@dataclass
class FinetuningArguments:
    """What `training_scripts/finetune_lora.py` is told beside `LoMDMTrainingArguments`."""

    model: str = field(
        metadata={
            "help": (
                "Folder or Hub name of the model; a causal or masked language model is converted "
                "(docs/backbones.md)."
            )
        }
    )
    train_file: str = field(
        metadata={"help": "jsonl: `messages`, or `prompt` and `completion`, in each line."}
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "jsonl; without one the last tenth of train_file, one line at least."},
    )
    completion_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens per answer, filled up with EOS; default the longest of train_file."
        },
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Of a model that is converted: positions per block; default one window."},
    )
    rate_type: str | None = field(
        default=None,
        metadata={"help": "Of a model that is converted: learned (the default), uniform, ..."},
    )
    lora_rank: int = field(
        default=16,
        metadata={
            "help": "Rank of the updates of the backbone's linear layers, or 0: all weights."
        },
    )
    lora_alpha: int = field(
        default=32, metadata={"help": "Scale of the updates; they are multiplied by alpha / rank."}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout in front of the updates in training."}
    )

    def __post_init__(self):
        for name, least in (("completion_length", 1), ("lora_rank", 0), ("lora_alpha", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(
                    f"{name} must be at least {least}, got {value}. Leave it out for the default."
                )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_dropout must be in [0, 1), got {self.lora_dropout}. The default is 0."
            )
        for name in ("lora_alpha", "lora_dropout") if not self.lora_rank else ():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} is of LoRA, and lora_rank=0 trains all weights. "
                    "Leave it out."
                )


@dataclass
class FinetuningTrainingArguments(LoMDMTrainingArguments):
    """`LoMDMTrainingArguments` with the defaults of a short run."""

    learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Peak learning rate; the default is 1e-4 with lora_rank 0."},
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the moving average of the weights; 0 = none."}
    )


def load_finetuned(
    options: FinetuningArguments, tokenizer: PreTrainedTokenizerBase
) -> LoMDMForMaskedDiffusion:
    """The model to fine-tune, in float32: low precision would round updates away.

    Raises:
        ValueError: a model that cannot be read, or settings of its process where it has one.
    """
    process = {"block_size": options.block_size, "rate_type": options.rate_type}
    process = {name: value for name, value in process.items() if value is not None}
    start = ModelArguments(init_from=options.model, **process)
    if is_foreign(start):
        ids = special_token_ids(tokenizer)
        return foreign_model(start, None, ids, tokenizer, torch.float32)
    if process:
        raise ValueError(
            f"{sorted(process)} are those of the model {options.model!r}, which has an order "
            "already. Leave them out."
        )
    return LoMDMForMaskedDiffusion.from_pretrained(options.model, dtype=torch.float32)


def lora_targets(model: LoMDMForMaskedDiffusion, names: Sequence[str] | None = None) -> str:
    """A pattern for peft: the linear layers of the backbone, and not those of the order heads.

    Raises:
        ValueError: `names` that none of these layers has.
    """
    layers = {
        name.rpartition(".")[2]
        for name, module in model.model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    unknown = sorted(set(names or ()) - layers)
    if unknown:
        raise ValueError(
            f"lora_modules names {unknown}, which the backbone lacks. It has {sorted(layers)}."
        )
    return rf"model\.(?:.*\.)?(?:{'|'.join(sorted(names or layers))})"


def add_lora(
    model: LoMDMForMaskedDiffusion,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    modules: Sequence[str] | None = None,
) -> torch.nn.Module:
    """A `peft.PeftModel`: low-rank updates of the backbone, order heads or rates in full.

    Args:
        modules: names of the layers to update; default all linear layers of the backbone.
    Raises:
        ValueError: a rank below 1, layers that are not there, or quantised order heads.
    """
    import peft  # only this function needs it

    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}. The default is 16.")
    full = [name for name in RATE_MODULES if getattr(model, name) is not None]
    for name in full:
        kinds = {
            type(weight.data) if weight.is_floating_point() else weight.dtype
            for weight in getattr(model, name).parameters()
        }
        if kinds - {torch.Tensor}:
            raise ValueError(
                f"{name} is quantised and is to be trained. Quantise the backbone alone, as "
                f"from_pretrained(quantization_config=...) does, which leaves {RATE_MODULES} out."
            )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_targets(model, modules),
        modules_to_save=full or None,
    )
    return peft.get_peft_model(model, config)


def write_base_config(model: torch.nn.Module, folder: str | Path, base_name: str) -> None:
    """Writes `config.json` beside a saved adapter, so that the folder loads by itself.

    Args:
        model: of `add_lora`.
        base_name: Hub name or folder of the base, which has the other weights.
    """
    adapter = model.peft_config["default"]
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32  # as the updates are
    config.architectures = [type(model.get_base_model()).__name__]
    config.base = describe_base(model, base_name, adapter.lora_alpha / adapter.r)
    config.save_pretrained(folder)


def merge_adapter(base: LoMDMForMaskedDiffusion, folder: str | Path) -> LoMDMForMaskedDiffusion:
    """`base` with the adapter of `folder` added to its weights, in eval mode; it is used up."""
    import peft

    return peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
