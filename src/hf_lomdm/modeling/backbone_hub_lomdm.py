"""Any transformer of transformers as the backbone: a causal model read openly, or an encoder.

Nothing here knows the name of an architecture. What a model cannot do is found by what its
`forward` takes and gives (`check_backbone`). This file travels to the Hub.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)

from .attention_lomdm import added_mask, block_rule, flex_mask, is_flex
from .blocks_lomdm import position_ids
from .configuration_lomdm import LoMDMConfig

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them


def new_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal or a masked language model of the given configuration, with random weights.

    Raises:
        ValueError: a configuration of neither.
    """
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if not masked and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"backbone_config is of {config.model_type}, which transformers has neither as a "
            "causal nor as a masked language model. Give one of these."
        )
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return kind.from_config(config, trust_remote_code=False)


class HubHead:
    """The prediction head of a model: hidden states of its backbone to logits.

    transformers names the parts of heads differently and applies some of them in `forward` (a
    scale, a soft cap). What all share is that the model with the head hands `inputs_embeds` to its
    backbone. So that `forward` runs with a backbone that returns what it is given. The modules of
    the head stay those of the model that owns them; this object holds none.

    Args:
        whole: the model with its head.
    """

    def __init__(self, whole: PreTrainedModel):
        self.backbone = whole.base_model_prefix
        self.children = [name for name, _ in whole.named_children() if name != self.backbone]
        output = whole.get_output_embeddings()
        self.output = next(name for name, module in whole.named_modules() if module is output)
        self.tied = {
            self._own_name(key): self._own_name(source)
            for key, source in (whole._tied_weights_keys or {}).items()
        }
        # a copy without modules and weights
        self.shell = copy.copy(whole)
        self.shell._modules = {}

    def _own_name(self, key: str) -> str:
        """The name of a weight of the whole model in the model that has its backbone as `model`."""
        prefix = f"{self.backbone}."
        return f"model.{key.removeprefix(prefix)}" if key.startswith(prefix) else key

    def project(self, owner: Any, hidden: Tensor) -> Tensor:
        """Logits `[..., V]` of hidden states `[..., D]` by the head's modules in `owner`."""
        shell = copy.copy(self.shell)
        modules = {name: owner._modules[name] for name in self.children}
        shell._modules = {**modules, self.backbone: _Given(owner.model.config)}
        states = hidden.reshape(1, -1, hidden.shape[-1])
        weight = owner.get_submodule(self.output).weight
        states = states.to(weight.dtype) if weight.is_floating_point() else states  # quantised
        logits = type(shell).forward(shell, inputs_embeds=states, return_dict=True).logits
        return logits.reshape(*hidden.shape[:-1], -1)


class _Given(nn.Module):
    """A backbone that returns what it is given."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def forward(self, *_, inputs_embeds: Tensor, **__) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def read_backbone(
    backbone: PreTrainedModel,
    config: LoMDMConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    views: Tensor | None = None,
    past_key_values: Cache | None = None,
    deterministic: bool = False,
    inputs_embeds: Tensor | None = None,
    output_hidden_states: bool = False,
) -> BaseModelOutput:
    """Hidden states of partly masked or clean texts; arguments and result as `LoMDMModel.forward`.

    Without blocks every position attends to every other, with blocks by the rule of blocks. The
    positions are explicit.
    """
    text, num_copies = input_ids if inputs_embeds is None else inputs_embeds, 1
    if views is not None:
        num_copies += len(views) // len(text)
        text = torch.cat((text, *views.chunk(num_copies - 1)), dim=1)  # [B, (1 + K) L]
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    held = past + text.shape[1] // num_copies
    total = held if attention_mask is None else attention_mask.shape[1]
    _check_length(backbone, total)
    position = position_ids(attention_mask, total, text.device)[:, total - held :]  # [B or 1, P+L]
    if config.block_size is not None:
        real = None if attention_mask is None else attention_mask[:, total - held :]
        attention_mask = backbone_mask(backbone, config, text, real, position, num_copies)
    new = position[:, past:].repeat(1, num_copies) + first_position(backbone)
    name = "input_ids" if inputs_embeds is None else "inputs_embeds"
    options = {
        name: text,
        "attention_mask": attention_mask,
        "position_ids": new.expand(len(text), -1),
        "output_hidden_states": output_hidden_states,
        "return_dict": True,
    }
    if takes_cache(backbone):
        options |= {"past_key_values": past_key_values, "use_cache": past_key_values is not None}
    with _eval_mode(backbone, deterministic):
        out = backbone(**options)
    states = out.hidden_states if output_hidden_states else None
    return BaseModelOutput(last_hidden_state=out.last_hidden_state, hidden_states=states)


def _check_length(backbone: PreTrainedModel, length: int) -> None:
    longest = longest_text(backbone)
    if longest is not None and length > longest:
        raise ValueError(
            f"a text has {length} positions, {backbone.config.model_type} has a table of "
            f"{longest}. Cut or split the texts."
        )


def backbone_mask(
    backbone: PreTrainedModel,
    config: LoMDMConfig,
    text: Tensor,
    attention_mask: Tensor | None,
    position: Tensor,
    num_copies: int,
):
    """The rule of blocks in the form that the backbone's attention takes.

    That is a block mask of FlexAttention, or `[B or 1, 1, C L, P + C L]` to be added: eager
    attention would add a boolean mask as zeros and ones.

    Args:
        text: `[B, C * L, ...]`. attention_mask: `[B, P + L]`. position: `[B or 1, P + L]`.
    """
    flex = is_flex(backbone.config._attn_implementation, config.block_size)
    (batch, width), total = text.shape[:2], position.shape[1]
    past = total - width // num_copies
    allowed = block_rule(config, position, num_copies, past, batch if flex else -1)
    real = None if attention_mask is None else attention_mask.repeat(1, num_copies).to(torch.bool)
    if flex:
        embeds = text.new_empty((batch, width, 1), dtype=backbone.dtype)
        return flex_mask(backbone.config, embeds, allowed, real, num_copies * total)
    key = torch.arange(num_copies * total, device=text.device)
    query = key[: num_copies * (total - past), None]
    return added_mask(allowed, real, query, key, past, backbone.dtype, len(position))


def shifted_states(
    hidden: Tensor,
    position: Tensor,
    block_size: int | None,
    num_copies: int = 1,
    previous: Tensor | None = None,
) -> Tensor:
    """The states whose projection is the token law of each position: those of the position before.

    The first position of a text has its own state. With a clean copy, the first position of a block
    has that of the clean copy, as the block before is finished when it is written.

    Args:
        hidden: `[B, C * L, D]`; with `C > 1` the clean copy first. position: `[B, L]`.
        previous: `[B, 1, D]`, the state in front of `hidden`, in a cache.
    Returns:
        `[B, L, D]`, or `[(C - 1) * B, L, D]`, view after view.
    """
    first = hidden[:, :1] if previous is None else previous
    clean, *views = hidden.chunk(num_copies, dim=1)
    start = (position == 0)[..., None]

    def shift(states: Tensor) -> Tensor:
        return torch.cat((first, states[:, :-1]), dim=1)

    if not views:
        return clean.where(start, shift(clean))
    at_edge = (position % block_size == 0)[..., None]
    before = shift(clean)
    parts = [view.where(start, before.where(at_edge, shift(view))) for view in views]
    return torch.cat(parts)


def takes_cache(backbone: PreTrainedModel) -> bool:
    """Whether the backbone can keep keys and values."""
    return "past_key_values" in inspect.signature(backbone.forward).parameters


def first_position(backbone: nn.Module) -> int:
    """The number of the first position, for some tables of positions begin with padding."""
    tables = (
        module for name, module in backbone.named_modules() if name.endswith("position_embeddings")
    )
    padding = (getattr(table, "padding_idx", None) for table in tables)
    return next((index + 1 for index in padding if index is not None), 0)


def longest_text(backbone: PreTrainedModel) -> int | None:
    """Positions in the table of a backbone that learned one; `None` without a table."""
    words = backbone.get_input_embeddings()
    number = getattr(backbone.config, "max_position_embeddings", None)
    if number is None:
        return None
    tables = (
        module.num_embeddings
        for module in backbone.modules()
        if isinstance(module, nn.Embedding) and module is not words
    )
    rows = next((size for size in tables if size >= number), None)
    return None if rows is None else rows - first_position(backbone)


@contextmanager
def _eval_mode(backbone: nn.Module, deterministic: bool) -> Iterator[None]:
    """Within it a `deterministic` backbone has no dropout."""
    was_training = deterministic and backbone.training
    if was_training:
        backbone.eval()
    try:
        yield
    finally:
        if was_training:
            backbone.train()
