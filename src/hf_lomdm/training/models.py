"""The configuration of a model to train, and its start from a trained one."""

from dataclasses import asdict, fields
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from ..modeling.checkpoint_lomdm import read_tokenizer
from ..modeling.configuration_lomdm import LoMDMConfig
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from .arguments import ModelArguments

# Fields that a start from a trained model copies: shapes and meaning of its weights.
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "tie_word_embeddings",
)
NOT_OF_THE_CONFIGURATION = (
    "objective",
    "init_from",
    "logit_shift",
    "lora_rank",
    "lora_alpha",
    "lora_modules",
)
# Placeholder ids, to check a configuration before the tokenizer is known.
NO_TOKENIZER = {
    "vocab_size": 5,
    "mask_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
TRUNK = {
    "lomdm": (*SIZES, "rope_theta", "layer_norm_eps"),
    "gpt_neox": (*SIZES, "rope_parameters", "layer_norm_eps"),
}


def diffusion_config(
    arguments: ModelArguments, max_length: int, token_ids: dict[str, int | None]
) -> LoMDMConfig:
    """A member of the family for `max_length` tokens; with `init_from`, of its sizes.

    Args:
        token_ids: `vocab_size` and the special tokens, from `hf_lomdm.data.splits.model_token_ids`;
            `NO_TOKENIZER` to check the rest before the text is read.
    Raises:
        ValueError: settings that contradict each other, the model of `init_from` or are out of
            range.
    """
    settings = asdict(arguments)
    for name in NOT_OF_THE_CONFIGURATION:
        del settings[name]
    settings["max_position_embeddings"] = arguments.max_position_embeddings or max_length
    settings |= _start(arguments, max_length, token_ids, "lomdm")
    config = LoMDMConfig(**settings, **token_ids)
    if config.block_size is None:  # with blocks texts may be longer than the context of a block
        _check_positions(config, max_length)
    return config


def causal_config(
    arguments: ModelArguments, max_length: int, token_ids: dict[str, int | None]
) -> GPTNeoXConfig:
    """The autoregressive baseline: GPT-NeoX with the trunk of `LoMDMModel`.

    It has dropout of the embeddings besides.

    `bos_token_id` is the start token, here the mask token, so that `generate()` without a prompt
    starts from it. An EOS that is also the BOS of the texts (GPT-2) is left out: it would end every
    text at its first token. Those of the rows are kept as `text_bos_token_id` and
    `text_eos_token_id`. With `init_from` the sizes are that model's.

    Raises:
        ValueError: as `diffusion_config`.
    """
    eos, settings = token_ids["eos_token_id"], _trunk(arguments, max_length)
    settings |= _start(arguments, max_length, token_ids, "gpt_neox")
    sizes = {name: settings[name] for name in (*SIZES, "max_position_embeddings")}
    # the trunk is the same, so the family's checks of sizes apply
    _check_positions(LoMDMConfig(**sizes, **token_ids, dropout=arguments.dropout), max_length)
    return GPTNeoXConfig(
        vocab_size=token_ids["vocab_size"],
        bos_token_id=token_ids["mask_token_id"],
        eos_token_id=None if eos == token_ids["bos_token_id"] else eos,
        text_bos_token_id=token_ids["bos_token_id"],
        text_eos_token_id=eos,
        pad_token_id=token_ids["pad_token_id"],
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout=arguments.dropout,
        attention_dropout=0.0,
        attention_bias=False,
        use_parallel_residual=False,
        initializer_range=(3 * settings["hidden_size"]) ** -0.5,
        **settings,
    )


def _trunk(arguments: ModelArguments, max_length: int) -> dict[str, Any]:
    """The settings of GPT-NeoX that give it the trunk of `LoMDMModel`."""
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    return {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 4 * arguments.hidden_size,
        "max_position_embeddings": arguments.max_position_embeddings or max_length,
        "rope_parameters": rotary,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": arguments.tie_word_embeddings,
        "attn_implementation": arguments.attn_implementation,
    }


# ------------------------------------------------------------------- a backbone of transformers


def is_foreign(arguments: ModelArguments) -> bool:
    """Whether a diffusion model is to be made of another kind of language model.

    Raises:
        ValueError: `init_from` has no configuration that can be read.
    """
    if not arguments.init_from or arguments.objective == "ar":
        return False
    return _read_config(arguments.init_from).model_type != "lomdm"


def foreign_model(
    arguments: ModelArguments,
    max_length: int | None,
    token_ids: dict[str, int | None],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
) -> LoMDMForMaskedDiffusion:
    """The causal or masked language model of `init_from` as a diffusion model, in training mode.

    Args:
        max_length: of the run's rows; `None` = what the model takes.
        token_ids: of the run's rows, from `hf_lomdm.data.splits.model_token_ids`.
        dtype: of the backbone.
    Raises:
        ValueError: a model that cannot be read so, as `LoMDMForMaskedDiffusion.from_causal_lm`.
    """
    own = ("intermediate_size", "c1", "c2", "log_rate_range", "position_log_rates")
    own += ("bound", "time_epsilon", "time_range", "num_views")
    settings = {name: getattr(arguments, name) for name in own}
    settings |= {name: token_ids[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if longest := arguments.max_position_embeddings or max_length:
        settings["max_position_embeddings"] = longest
    how = {"block_size": arguments.block_size, "rate_type": arguments.rate_type}
    how |= {"tokenizer": tokenizer, "settings": settings, "dtype": dtype}
    if arguments.attn_implementation is not None:
        how["attn_implementation"] = arguments.attn_implementation
    if type(_read_config(arguments.init_from)) in MODEL_FOR_MASKED_LM_MAPPING:
        model = LoMDMForMaskedDiffusion.from_masked_lm(arguments.init_from, **how)
    else:
        shift = arguments.logit_shift
        model = LoMDMForMaskedDiffusion.from_causal_lm(
            arguments.init_from, logit_shift=shift, **how
        )
    return model.train()


# ------------------------------------------------------------- the start from a trained model


def copy_trunk(model: PreTrainedModel, init_from: str) -> None:
    """Copies trunk and LM head of `init_from` into `model`, in place; the rest stays.

    Args:
        model: from `diffusion_config` or `causal_config` with the same `init_from`.
        init_from: a folder or Hub name. A checkpoint's weights are those in training, not their
            moving average.
    Raises:
        ValueError: weights that are missing, or that do not fit.
    """
    source = type(model).from_pretrained(init_from, dtype=model.dtype)
    trunk = model.base_model_prefix
    getattr(model, trunk).load_state_dict(getattr(source, trunk).state_dict())
    model.get_output_embeddings().load_state_dict(source.get_output_embeddings().state_dict())
    fresh = sorted(
        {name.split(".")[0] for name, _ in model.named_parameters()}
        - {trunk, "lm_head", "embed_out"}
    )
    print(
        f"init_from {init_from}: trunk and LM head copied; fresh: {', '.join(fresh) or 'nothing'}",
        flush=True,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, init_from: str) -> None:
    """Raises `ValueError` if the tokenizer of `init_from` has other tokens than the run's."""
    if not _has_tokenizer(init_from):
        return  # without a tokenizer only ids can be compared
    try:
        theirs = read_tokenizer(init_from).get_vocab()
    except Exception as error:  # tokenizers raises nothing narrower for a broken file
        problem = (
            f"the tokenizer of init_from={init_from!r} cannot be read: "
            f"{' '.join(str(error).split())}"
        )
        raise ValueError(f"{problem}. Export or download it again.") from error
    # special tokens may have been added behind the last one
    last, special = max(theirs.values(), default=-1), set(tokenizer.all_special_tokens)
    ours = tokenizer.get_vocab().items()
    added = {(token, index) for token, index in ours if index > last and token in special}
    differ = sorted((theirs.items() ^ ours) - added, key=lambda item: item[1])
    if differ:
        raise ValueError(
            f"the tokenizer of the run is not that of init_from={init_from!r}: {len(differ)} "
            f"entries differ, the first is {differ[0]}. Pass --tokenizer {init_from} "
            "--train_tokenizer ''."
        )


def _has_tokenizer(name: str) -> bool:
    options = {"_raise_exceptions_for_missing_entries": False}  # missing entries become None
    return any(
        cached_file(name, file, **options) for file in ("tokenizer_config.json", "tokenizer.json")
    )


def _start(
    arguments: ModelArguments, max_length: int, token_ids: dict[str, int | None], model_type: str
) -> dict:
    """What the configuration takes over from the model of `init_from`; nothing without one."""
    if not arguments.init_from:
        return {}
    config = _load_config(arguments.init_from, model_type)
    if token_ids is not NO_TOKENIZER:
        _check_ids(config, token_ids, arguments.init_from)
    taken = {name: getattr(config, name) for name in TRUNK[model_type]}
    given = {argument.name for argument in fields(arguments)}
    changed = [
        f"{name} {taken[name]}"
        for name in SIZES
        if name in given and getattr(arguments, name) not in (None, taken[name])
    ]
    if changed and token_ids is not NO_TOKENIZER:
        print(
            f"init_from {arguments.init_from}: {', '.join(changed)}, other than this run says",
            flush=True,
        )
    positions = arguments.max_position_embeddings or config.max_position_embeddings
    if positions < max_length:
        raise ValueError(
            f"max_length={max_length} is more than the {positions} positions of "
            f"init_from={arguments.init_from!r}. Lower it, or pass --max_position_embeddings "
            f"{max_length} to train on longer texts than the model knows."
        )
    return {**taken, "max_position_embeddings": positions}


def _check_positions(config: LoMDMConfig, max_length: int) -> None:
    if config.max_position_embeddings < max_length:
        raise ValueError(
            f"max_position_embeddings={config.max_position_embeddings} is less than "
            f"max_length={max_length}, the tokens of a row. Leave it out, or lower max_length."
        )


def _read_config(init_from: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(init_from, trust_remote_code=False)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"init_from={init_from!r} has no config.json that can be read: {error}"
        ) from error


def _load_config(init_from: str, model_type: str) -> PreTrainedConfig:
    config = _read_config(init_from)
    if config.model_type != model_type:
        kinds = {"lomdm": "diffusion", "gpt_neox": "ar"}
        raise ValueError(
            f"init_from={init_from!r} is a {config.model_type!r} model, this objective trains "
            f"{model_type!r}. Pass a folder of --objective {kinds[model_type]}; a public MDLM or "
            "BD3-LM goes through convert_checkpoint.py."
        )
    return config


def _check_ids(config: PreTrainedConfig, token_ids: dict[str, int | None], init_from: str) -> None:
    """Vocabulary, mask and padding must agree; BOS and EOS only where both have one."""
    theirs = {name: getattr(config, name, None) for name in token_ids}
    # its BOS is the start token, and its EOS is left out where it is the BOS
    if config.model_type == "gpt_neox":
        theirs |= {"mask_token_id": config.bos_token_id, "bos_token_id": None}
    differ = {
        name: (theirs[name], value)
        for name, value in token_ids.items()
        if theirs[name] != value and None not in (theirs[name], value)
    }
    if differ:
        raise ValueError(
            f"the tokenizer of the run does not fit init_from={init_from!r}, (there, here): "
            f"{differ}. Pass --tokenizer {init_from} --train_tokenizer ''."
        )
