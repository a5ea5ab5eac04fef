"""The backbone of LoMDM models, and what it asks of its input. This file travels to the Hub."""

import os
from copy import deepcopy
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import can_return_tuple

from .attention_lomdm import LoMDMAttention, attention_inputs
from .checkpoint_lomdm import check_checkpoint, code_map
from .configuration_lomdm import LoMDMConfig

GIVEN = -100  # the label of a given position
# rows that a CPU takes through the layers together, so that their states stay in its caches
CPU_POSITIONS = 2048
# Standard arguments of transformers that these models do not read, and what to do instead.
UNREAD = {
    "position_ids": "Positions are counted from the first 1 of attention_mask.",
    "token_type_ids": (
        "There are no token types: call the tokenizer with return_token_type_ids=False."
    ),
    "output_attentions": (
        "Attention weights are not kept: leave it and config.output_attentions at False."
    ),
    "use_cache": "With blocks, pass past_key_values=DynamicCache().",
}
UNKNOWN = "Leave it out. Of the task types of peft None, CAUSAL_LM and FEATURE_EXTRACTION fit."


class LoMDMMLP(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = nn.GELU(approximate="tanh")
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, L, D] -> [B, L, D]`."""
        return self.down_proj(self.act(self.up_proj(hidden)))


class LoMDMLayer(GradientCheckpointingLayer):
    """A pre-LN transformer block; `dropout` acts on both residual branches."""

    def __init__(self, config: LoMDMConfig, layer_index: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LoMDMAttention(config, layer_index)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LoMDMMLP(config)
        # the sum over 2 * num_hidden_layers residual branches starts with the variance of one
        residual_std = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
        self.attention.o_proj.init_std = self.mlp.down_proj.init_std = residual_std

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        dropout: float = 0.0,
        past_key_values: Cache | None = None,
        first_output: int = 0,
    ) -> Tensor:
        """Attention and MLP, each with its residual; arguments as in `LoMDMAttention.forward`."""
        branch = self.attention(
            self.attention_norm(hidden), attention_mask, rotary, past_key_values, first_output
        )
        hidden = hidden[:, first_output:] + (
            nn.functional.dropout(branch, dropout) if dropout else branch
        )
        branch = self.mlp(self.mlp_norm(hidden))
        return hidden + (nn.functional.dropout(branch, dropout) if dropout else branch)


class LoMDMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of these models."""

    config: LoMDMConfig
    config_class = LoMDMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The Trainer may divide the loss by the accumulation steps: it is a mean, not a sum over
    # `num_items_in_batch`.
    accepts_loss_kwargs = False
    _no_split_modules = ["LoMDMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LoMDMConfig, *args, **kwargs):
        config.validate_fields()  # fields may have been set one by one
        super().__init__(config, *args, **kwargs)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "_auto_class" not in vars(cls):
            # a subclass's code travels after `register_for_auto_class`
            cls._auto_class = None

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; `config.json` names the code that goes along, if any does."""
        self.config.auto_map = code_map(self)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """As in transformers, but `check_checkpoint` sees the files before a model is built.

        With `output_loading_info=True` it returns `(model, info)` as in transformers and leaves the
        judgement of `info["missing_keys"]`, which got random values, to the caller.

        Raises:
            ValueError: as `check_checkpoint`, and unexpected weights.
            OSError: if there are none in safetensors (`use_safetensors=False` reads the tensors of
                a pickle).
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        name = pretrained_model_name_or_path
        if name is not None and kwargs["use_safetensors"]:
            check_checkpoint(cls, name, *args, complete=not output_loading_info, **kwargs)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = leave_heads(kwargs["quantization_config"])
        loaded: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if output_loading_info:
            return model, info
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise ValueError(
                f"{name} does not fit {cls.__name__}: missing {missing[:5]}, unexpected "
                f"{unexpected[:5]}. Check config.json, or pass output_loading_info=True to accept "
                "random values for missing weights."
            )
        return model

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args, **kwargs
    ) -> nn.Embedding:
        """As in transformers; a special token that would go is a `ValueError`."""
        for name in ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self.config, name)
            if new_num_tokens is not None and token is not None and new_num_tokens <= token:
                raise ValueError(
                    f"new_num_tokens must be above {name}={token}, got {new_num_tokens}. To make "
                    "the vocabulary smaller, train a tokenizer and a model anew."
                )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Of custom code transformers passes leaf modules only: layers say on the leaf what is
        # special (`init_std`).
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(
                module.weight, std=getattr(module, "init_std", self.config.initializer_range)
            )
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def leave_heads(quantization_config):
    """The configuration of a quantizer that by default leaves out LM head and rates.

    These are small, and trained in full beside adapters. It is saved with the model, which so is
    loaded as it was made.
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = deepcopy(quantization_config)
    # the name in torchao and most others; the one in bitsandbytes
    for name in ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules"):
        if getattr(quantization_config, name, ()) is None:
            setattr(quantization_config, name, ["lm_head", "phi", "psi", "omega"])
    return quantization_config


class LoMDMModel(LoMDMPreTrainedModel):
    """The backbone alone: token ids to hidden states. It sees neither the time nor the rates."""

    # keys of a checkpoint with all heads
    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|phi|psi|omega)\."]

    def __init__(self, config: LoMDMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LoMDMLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replaces the token embeddings."""
        self.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        views: Tensor | None = None,
        past_key_values: Cache | None = None,
        deterministic: bool = False,
        views_only: bool = False,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unread,
    ) -> BaseModelOutput:
        """Hidden states of partly masked or clean texts.

        With blocks a position sees its own block and the blocks before it.

        Args:
            input_ids: `[B, L]` int64.
            attention_mask: `[B, L]`, 1 = real, 0 = padding on either side; `None` = nothing padded.
                With a cache of `P` positions `[B, P + L]`; longer if positions in front of these
                have left it again.
            views: `[K * B, L]`, only with blocks: partly masked views of the clean texts
                `input_ids`, view after view (with `inputs_embeds` their embeddings). A block of a
                view sees itself and the clean blocks before it.
            past_key_values: only with blocks: a cache of whole blocks, to which whole blocks of
                texts are added (a last one may be short); `crop` it to forget a block that is still
                partly masked.
            deterministic: no dropout, in training mode too (the clean pass of the forward rates).
            views_only: no output of the clean text; it is then left out where nothing but the
                output depends on it.
            inputs_embeds: `[B, L, D]`, embeddings instead of `input_ids`.
            output_hidden_states: also what each layer reads; default of the configuration.
            unread: the other standard arguments of transformers, all `None` or `False`.
        Returns:
            `last_hidden_state` `[B, L, D]`; with views `[B, (1 + K) L, D]`, the clean text and then
            its views, or `[B, K L, D]`, the views alone. `hidden_states`: `num_hidden_layers + 1`
            of `[B, L, D]`, or `None`.
        """
        check_unread(self.config, unread)
        _, text = check_text(
            self.config, input_ids, attention_mask, views, past_key_values, inputs_embeds
        )
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        num_copies, first_output = 1, text.shape[1] if views_only else 0
        if views is not None:
            num_copies += len(views) // len(text)
            text = torch.cat((text, *views.chunk(num_copies - 1)), dim=1)  # [B, (1 + K) L]
        keep = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )

        def read(text: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
            hidden, states = self.embed_tokens(text) if text.dim() == 2 else text, []
            mask, rotary = attention_inputs(
                self.config, hidden, attention_mask, num_copies, past_length
            )
            dropout = self.config.dropout if self.training and not deterministic else 0.0
            for layer in self.layers:
                states += [hidden] if keep else []
                first = first_output if layer is self.layers[-1] else 0
                hidden = layer(
                    hidden,
                    mask,
                    rotary,
                    dropout,
                    past_key_values=past_key_values,
                    first_output=first,
                )
            return [*states, self.norm(hidden)]

        if past_key_values is None and reads_few_rows(text):
            rows = max(1, CPU_POSITIONS // text.shape[1])
            masks = repeat(None) if attention_mask is None else attention_mask.split(rows)
            states = [
                torch.cat(parts) for parts in zip(*map(read, text.split(rows), masks), strict=True)
            ]
        else:
            states = read(text, attention_mask)
        return BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if keep else None
        )


def reads_few_rows(text: Tensor) -> bool:
    """Whether few rows at a time go through the layers: on a CPU, no gradients, not compiled."""
    return text.device.type == "cpu" and not (
        torch.is_grad_enabled() or torch.compiler.is_compiling()
    )


def check_unread(config: LoMDMConfig, arguments: dict) -> None:
    """Raises `ValueError` for standard arguments of transformers that are not read."""
    if config.output_attentions:
        arguments = {**arguments, "output_attentions": True}
    for name, value in arguments.items():
        if name not in UNREAD or not (value is None or value is False):
            raise ValueError(f"{name} is not read by these models. {UNREAD.get(name, UNKNOWN)}")


def check_text(
    config: LoMDMConfig,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    views: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    **_,
) -> tuple[str, Tensor]:
    """The text `[B, L]` or `[B, L, D]` that a trunk is to read, and its name.

    Raises:
        ValueError: arguments of `LoMDMModel.forward` that do not fit each other or `config`.
    """
    if config.block_size is None and (views is not None or past_key_values is not None):
        raise ValueError(
            "views and past_key_values need blocks: with block_size=None every reveal changes all. "
            "Leave them out (by peft, tune prompts instead of prefixes)."
        )
    name, text = one_text(input_ids, inputs_embeds)
    past_length = None if past_key_values is None else past_key_values.get_seq_length()
    check_inputs(text, attention_mask, config, past_length, name)
    return name, text


def one_text(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[str, Tensor]:
    """Token ids `[B, L]` or embeddings `[B, L, D]`, the one that is given, and its name."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"exactly one of input_ids and inputs_embeds must be given, got {given}.")
    return ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)


def check_inputs(
    text: Tensor,
    attention_mask: Tensor | None,
    config: LoMDMConfig,
    past_length: int | None = None,
    name: str = "input_ids",
) -> None:
    """Raises `ValueError` for shapes that do not agree and, on the CPU, for unknown ids.

    Args:
        text: `[B, L]`, token ids, or `[B, L, D]`, their embeddings, for `name="inputs_embeds"`.
    """
    width = [] if name == "input_ids" else [config.hidden_size]
    if text.dim() != 2 + len(width) or 0 in text.shape or list(text.shape[2:]) != width:
        shape = ", ".join(["batch", "length", *map(str, width)])
        raise ValueError(
            f"{name} must have the shape [{shape}], not empty, got {list(text.shape)}."
        )
    if not width and text.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be token ids of dtype int64, got {text.dtype}.")
    if config.block_size is None and text.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"{name} has length {text.shape[1]}, more than max_position_embeddings="
            f"{config.max_position_embeddings}. Cut or split the texts."
        )
    # `len` would be one batch size for torch.export
    expected = [text.shape[0], (past_length or 0) + text.shape[1]]
    given = expected if attention_mask is None else list(attention_mask.shape)
    has_cache = past_length is not None
    # the first positions have left the cache
    if has_cache and len(given) == 2 and given[1] > expected[1]:
        given[1] = expected[1]
    if given != expected:
        raise ValueError(
            f"attention_mask must have the shape of {name} (with a cache: of all positions), "
            f"{expected}, got {list(attention_mask.shape)}. Pass 1 for real tokens and 0 for "
            "padding."
        )
    if past_length:
        check_cache(attention_mask, config.block_size, past_length, text.shape[1])
    if not width:
        check_ids("input_ids", text, config.vocab_size)


def check_cache(
    attention_mask: Tensor | None, block_size: int, past_length: int, new_length: int
) -> None:
    """Raises `ValueError` for a cache that ends within a block; with padding on the CPU only."""
    if attention_mask is None:
        lengths = [past_length]
    elif torch.compiler.is_compiling() or attention_mask.device.type != "cpu":
        return
    else:
        # a finished text may end within a block
        goes_on = attention_mask[:, -new_length:].bool().any(-1)
        lengths = attention_mask[goes_on, :-new_length].long().sum(-1).tolist()
    if any(length % block_size for length in lengths):
        raise ValueError(
            f"past_key_values must hold whole blocks of block_size={block_size}, got texts of "
            f"{lengths} positions. Add whole blocks, or crop it to the last whole one."
        )


def check_labels(
    text: Tensor,
    labels: Tensor,
    quantiles: Tensor | None,
    config: LoMDMConfig,
    name: str = "input_ids",
) -> None:
    """Raises `ValueError` for labels or quantiles that do not fit; reads values on the CPU only."""
    if labels.shape != text.shape[:2]:
        raise ValueError(
            f"labels must have the shape of {name}, {list(text.shape[:2])}, got "
            f"{list(labels.shape)}. Pass the clean token ids, -100 at given positions (prompt "
            "tuning by peft does so with CAUSAL_LM)."
        )
    if quantiles is not None and quantiles.shape != text.shape[:1]:
        raise ValueError(
            f"quantiles must have the shape [batch={len(text)}], got {list(quantiles.shape)}."
        )
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    if quantiles is not None and not ((quantiles > 0) & (quantiles < 1)).all():
        raise ValueError(f"quantiles must be in (0, 1), got {quantiles.tolist()}.")
    given = labels == GIVEN
    if name == "inputs_embeds":
        clean = labels[~given]
    elif (wrong := ~given & (labels != text)).any():
        raise ValueError(
            f"labels differ from input_ids at {int(wrong.sum())} positions. With labels, input_ids "
            "are clean texts, which the model masks by itself: no "
            "DataCollatorForLanguageModeling(mlm=True) and the like."
        )
    else:
        clean = torch.where(given, text, labels)
    check_ids("labels", clean, config.vocab_size)
    if (clean == config.mask_token_id).any():
        raise ValueError(
            f"labels or given positions contain the mask token ({config.mask_token_id}). "
            "Pass clean texts: the model masks them."
        )


def check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    """Raises `ValueError` for ids outside the vocabulary, on the CPU only: a GPU would wait."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} must be in [0, vocab_size={vocab_size}), got {low if low < 0 else high}. "
            "Use the tokenizer that the model was trained with."
        )
