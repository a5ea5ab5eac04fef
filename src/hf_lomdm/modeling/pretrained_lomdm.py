"""From a causal or a masked language model to a masked diffusion model.

Its mask token, its configuration, and what it must be able to do. This file travels to the Hub.
"""

import copy
import inspect
import os
import re
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from .backbone_hub_lomdm import FULL, SLIDING, first_position, read_backbone
from .checkpoint_lomdm import read_tokenizer
from .configuration_lomdm import LoMDMConfig

MASK = "<|mask|>"  # the name of a mask token that a tokenizer did not have
UNUSED = re.compile(r"reserved|unused", re.IGNORECASE)  # names of entries that no text uses
DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
TOLERANCE = 0.05  # of hidden states that should be equal, relative to their size: bfloat16


class Conversion:
    """The part of a model that makes one of a causal or a masked language model."""

    config_class: Any

    @classmethod
    def from_causal_lm(
        cls,
        source: str | os.PathLike | PreTrainedModel,
        *,
        block_size: int | None = None,
        rate_type: str = "learned",
        logit_shift: bool = True,
        mask_token: int | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: dict[str, Any] | None = None,
        **options,
    ) -> Any:
        """Converts a causal language model to a masked diffusion model, in eval mode.

        With `block_size=1`, `rate_type="uniform"` and `logit_shift=True` it has the likelihood of
        the causal model (docs/backbones.md). `with_mask_token(tokenizer, model.config)` adds the
        mask token to the tokenizer.

        Args:
            source: Hub name or folder; or a model, whose modules the new model takes over.
            block_size, rate_type, logit_shift: as in `LoMDMConfig`.
            mask_token: an id or a token; default: the tokenizer's mask token, else a row of the
                embedding that no text uses, else a new row.
            tokenizer: default: the tokenizer of `source`.
            settings: further fields of `LoMDMConfig`.
            options: arguments of `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`,
                `revision`, `attn_implementation`, `quantization_config`, ...).
        Raises:
            ValueError: a model, tokenizer or mask token that does not fit, with the reason.
        """
        given = {"block_size": block_size, "rate_type": rate_type, "logit_shift": logit_shift}
        settings = {**given, **(settings or {})}
        return cls._convert(AutoModelForCausalLM, source, mask_token, tokenizer, settings, options)

    @classmethod
    def from_masked_lm(
        cls,
        source: str | os.PathLike | PreTrainedModel,
        *,
        block_size: int | None = None,
        rate_type: str = "learned",
        mask_token: int | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: dict[str, Any] | None = None,
        **options,
    ) -> Any:
        """Converts a masked language model (BERT, ModernBERT) to a masked diffusion model.

        The model is in eval mode. Arguments and errors are those of `from_causal_lm`, except
        `logit_shift`: each token is predicted at its own position.
        """
        settings = {"block_size": block_size, "rate_type": rate_type, **(settings or {})}
        return cls._convert(AutoModelForMaskedLM, source, mask_token, tokenizer, settings, options)

    @classmethod
    def _convert(cls, auto_class, source, mask_token, tokenizer, settings, options) -> Any:
        fields = inspect.signature(cls.config_class).parameters
        unknown = sorted(settings.keys() - fields)
        if unknown:
            raise ValueError(f"settings has {unknown}, which {cls.config_class.__name__} has not.")
        whole = load_pretrained(auto_class, source, options)
        tokenizer = load_tokenizer(source, options) if tokenizer is None else tokenizer
        rows = len(cast(nn.Embedding, whole.get_input_embeddings()).weight)
        mask_token_id = choose_mask_token(tokenizer, rows, mask_token)
        add_rows(whole, max(mask_token_id + 1, 0 if tokenizer is None else len(tokenizer)))
        config = converted_config(cls.config_class, whole, tokenizer, mask_token_id, settings)
        model = cls.of_base(config, whole)
        check_backbone(model.model, config)
        return model

    @classmethod
    def of_base(cls, config: LoMDMConfig, whole: PreTrainedModel) -> Any:
        """A model of `config` with the weights of `whole`, which is used up, and fresh heads."""
        add_rows(whole, config.vocab_size)
        whole.config.name_or_path = ""  # it would be saved, and may be a path of this machine
        build: Any = cls  # of the model whose part this is
        model = build(config, whole).eval()
        device = model.get_output_embeddings().weight.device
        for name in ("phi", "psi", "omega"):
            head = getattr(model, name)
            setattr(model, name, None if head is None else head.to(device))
        return model


def load_pretrained(
    auto_class: Any, source: str | os.PathLike | PreTrainedModel, options: dict[str, Any]
) -> PreTrainedModel:
    """The model of a Hub name or folder, with all its weights, or the model that is given.

    Raises:
        ValueError: there is none of the kind of `auto_class`, or weights are missing.
    """
    if isinstance(source, PreTrainedModel):
        if options:
            raise ValueError(f"{sorted(options)} are for loading by name. Leave them out.")
        check_kind(source, auto_class)
        return source
    kind = auto_class.__name__.removeprefix("AutoModelFor")
    try:
        options = {"trust_remote_code": False, **options}
        model, info = auto_class.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{str(source)!r} could not be loaded as {kind}: {reason}") from error
    check_kind(model, auto_class)
    if info["missing_keys"]:
        raise ValueError(
            f"{str(source)!r} lacks the weights {sorted(info['missing_keys'])[:3]}, which would be "
            f"random. Give a checkpoint that was trained as {kind}."
        )
    if options.get("gguf_file") is not None and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # its weights are de-quantised
    return model


def check_kind(model: PreTrainedModel, auto_class: Any) -> None:
    """Raises `ValueError` for a model of another kind; BERT can be loaded as a causal one, too."""
    masked = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    mapping = MODEL_FOR_MASKED_LM_MAPPING if masked else MODEL_FOR_CAUSAL_LM_MAPPING
    fits = type(model.config) in mapping and isinstance(model, mapping[type(model.config)])
    if not fits or masked != (auto_class is AutoModelForMaskedLM):
        kind = "from_masked_lm" if masked else "from_causal_lm"
        raise ValueError(
            f"the model is a {type(model).__name__}. Give a language model with its prediction "
            f"head; one of {model.config.model_type} goes to {kind}."
        )


def load_tokenizer(
    source: str | os.PathLike | PreTrainedModel, options: dict[str, Any]
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model; `None` for a model in memory, and where there are no files."""
    if isinstance(source, PreTrainedModel):
        return None
    download = {name: options[name] for name in DOWNLOAD if name in options}
    quiet = {"_raise_exceptions_for_missing_entries": False, **download}
    if options.get("gguf_file") is not None:
        download["gguf_file"] = options["gguf_file"]
    elif not any(cached_file(source, name, **quiet) for name in TOKENIZER_FILES):
        return None
    return read_tokenizer(source, **download)


def choose_mask_token(
    tokenizer: PreTrainedTokenizerBase | None, rows: int, mask_token: int | str | None = None
) -> int:
    """The id of the mask token.

    It is the given one, the tokenizer's, a row of the embedding that no text uses, or a new row.

    Args:
        rows: of the embedding.
    Raises:
        ValueError: a token that is not there, or a tokenizer with more tokens than rows.
    """
    if tokenizer is not None:
        most = max(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
        if most >= rows:
            raise ValueError(
                f"tokenizer has the token {most}, the model {rows} rows: it is not the model's. "
                "Pass the tokenizer that the model was trained with."
            )
    if isinstance(mask_token, str):
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        if mask_token not in vocabulary:
            raise ValueError(
                f"mask_token={mask_token!r} is no token of the tokenizer. Pass one of its tokens, "
                "an id, or leave it out."
            )
        return vocabulary[mask_token]
    if mask_token is not None:
        if isinstance(mask_token, bool) or not 0 <= mask_token <= rows:
            raise ValueError(
                f"mask_token must be a token or an id in [0, {rows}], got {mask_token!r}. "
                f"{rows} is a new one."
            )
        return mask_token
    if tokenizer is None:
        return rows
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    if len(tokenizer) < rows:
        return len(tokenizer)
    special = tokenizer.added_tokens_decoder.items()
    unused = [index for index, token in special if UNUSED.search(token.content)]
    return min(unused, default=rows)


def with_mask_token(
    tokenizer: PreTrainedTokenizerBase, config: LoMDMConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer, changed in place, with the mask and padding tokens of a converted model.

    Raises:
        ValueError: a tokenizer that is not the model's.
    """
    mask = config.mask_token_id
    if tokenizer.mask_token_id is None:
        known = tokenizer.convert_ids_to_tokens(mask) if mask < len(tokenizer) else MASK
        tokenizer.add_special_tokens({"mask_token": known})
    if tokenizer.mask_token_id != mask or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"tokenizer has the mask token {tokenizer.mask_token_id} and {len(tokenizer)} tokens, "
            f"the model {mask} and {config.vocab_size}: it is not the model's."
        )
    if tokenizer.pad_token_id is None and config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    return tokenizer


@torch.no_grad()
def add_rows(whole: Any, total: int) -> None:
    """More tokens, up to `total`: the embeddings of new ones are the mean of the others."""
    rows = len(whole.get_input_embeddings().weight)
    if total <= rows:
        return
    whole.resize_token_embeddings(total, mean_resizing=False)
    for module in (whole.get_input_embeddings(), whole.get_output_embeddings()):
        table = module.weight
        table[rows:] = table[:rows].float().mean(0).to(table.dtype)


def converted_config(
    config_class: type[LoMDMConfig],
    whole: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    mask_token_id: int,
    settings: dict[str, Any],
) -> LoMDMConfig:
    """The configuration of a converted model; `settings` win over model and tokenizer."""
    special = {"mask_token_id": mask_token_id}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        token = getattr(whole.config, name, None) if token is None else token
        token = token[0] if isinstance(token, list) else token
        # defaults of a configuration may lie outside of a smaller vocabulary
        special[name] = token if token is not None and token < whole.config.vocab_size else None
    if special["pad_token_id"] in (None, mask_token_id):
        special["pad_token_id"] = special["eos_token_id"]
    limit = getattr(whole.config, "max_position_embeddings", None)
    if limit is not None:
        settings.setdefault("max_position_embeddings", limit - first_position(whole.base_model))
    heads = getattr(whole.config, "num_attention_heads", 1)  # a model without attention has none
    settings.setdefault("num_attention_heads", heads)
    return config_class(backbone_config=whole.config, **{**special, **settings})


def check_backbone(backbone: PreTrainedModel, config: LoMDMConfig) -> None:
    """Refuses a backbone that cannot be read as `config` says, by its layers and by short passes.

    Raises:
        ValueError: layers that forget or that see a window alone, attention that cannot be opened
            or masked.
    """
    kind = backbone.config.model_type
    layers = set(getattr(backbone.config, "layer_types", None) or (FULL,))
    window = getattr(backbone.config, "sliding_window", None)
    if layers - {FULL, SLIDING}:
        raise ValueError(
            f"{kind} has layers of the kinds {sorted(layers - {FULL, SLIDING})}, which cannot see "
            "what comes later. Give a model of attention layers."
        )
    slides = SLIDING in layers or (window is not None and layers == {FULL})
    if slides and config.block_size and window and config.max_position_embeddings > window:
        raise ValueError(
            f"{kind} has layers that see {window} positions, less than max_position_embeddings="
            f"{config.max_position_embeddings} with blocks. Pass max_position_embeddings={window}."
        )
    probe = copy.copy(config)
    probe.block_size = None if config.block_size is None else min(config.block_size, 2)
    try:
        with torch.no_grad():
            fits = _follows_masks(backbone, probe)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{kind} cannot be read with open attention, explicit positions and a mask of blocks: "
            f"{reason}. Give another model."
        ) from error
    if not fits:
        raise ValueError(
            f"{kind} does not follow the mask of attention that is needed "
            f"(block_size={config.block_size}). Give a model whose attention can be opened."
        )


def _follows_masks(backbone: PreTrainedModel, config: LoMDMConfig) -> bool:
    """Whether short passes show what they should, and nothing else."""
    size = config.block_size or 1
    device = cast(nn.Embedding, backbone.get_input_embeddings()).weight.device
    ids = (torch.arange(3 * size, device=device)[None] + 1) % config.vocab_size
    moved = torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % config.vocab_size), 1)

    def read(text: Tensor, **options) -> Tensor:
        out = read_backbone(backbone, config, text, deterministic=True, **options)
        return out.last_hidden_state

    clean, after = read(ids), read(moved)
    if config.block_size is None:
        return bool((clean[:, 0] != after[:, 0]).any())
    # 1. The first position of the last block sees its last one, the blocks before do not
    opened = bool((clean[:, -size] != after[:, -size]).any())
    leaks = _differ(clean[:, :-size], after[:, :-size])
    # 2. A block sees what comes before it
    later = slice(size, None)
    other = read(torch.cat((moved[:, -size:], ids[:, later]), 1))
    blind = bool((clean[:, later] == other[:, later]).all())
    # 3. A clean copy and a view side by side are as each of them alone
    view, at = ids.flip(1), slice(size, 2 * size)
    packed = read(ids, views=view)
    alone = read(torch.cat((ids[:, :size], view[:, at]), 1))
    beside = packed[:, ids.shape[1] :]
    mixed = _differ(clean, packed[:, : ids.shape[1]]) or _differ(alone[:, at], beside[:, at])
    return opened and not (leaks or blind or mixed)


def _differ(states: Tensor, others: Tensor) -> bool:
    """Whether hidden states differ by more than rounding."""
    difference = (states.float() - others.float()).abs().max()
    return bool(difference > TOLERANCE * states.float().abs().max())
