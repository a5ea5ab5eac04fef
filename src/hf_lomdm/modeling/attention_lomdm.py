"""Attention of the trunk: who attends to whom, with padding, blocks, copies of a text and a cache.

This file travels to the Hub.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .blocks_lomdm import position_ids
from .configuration_lomdm import LoMDMConfig
from .process_lomdm import at_least_float32

# Attention implementations that take a mask of any shape; flash attention takes padding alone.
BLOCK_ATTENTION = ("eager", "sdpa", "flex_attention")
# queries that attend together with blocks: shorter skips more keys, longer makes fewer calls
QUERY_CHUNK = 256


class QueryChunk(NamedTuple):
    """Neighbouring queries of a row, the range of keys that they may see, and its mask.

    With blocks most pairs of positions do not see each other; a mask over all of them would cost as
    if they did.
    """

    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor  # [B or 1, 1, queries, keys], added to the products of queries and keys


def query_dtype(hidden: Tensor) -> torch.dtype:
    """The precision of queries and keys of these hidden states: autocast's where it is on."""
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else hidden.dtype


def rotary_tables(position: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, 1, L, head_size]` of the half-rotation form, float32.

    Computed in every pass: non-persistent buffers hold garbage after `from_pretrained`.
    """
    exponent = (
        torch.arange(0, head_size, 2, device=position.device, dtype=torch.float32) / head_size
    )
    angle = position[:, None, :, None].float() * theta**-exponent  # [B, 1, L, head_size / 2]
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair `(j, j + head_size / 2)` of `[B, H, L, head_size]` by its angle."""
    cos, sin = rotary
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


def attention_inputs(
    config: LoMDMConfig,
    hidden: Tensor,
    attention_mask: Tensor | None,
    num_copies: int = 1,
    past_length: int = 0,
) -> tuple:
    """The mask in the form that the attention implementation takes, and the rotary tables.

    `None` means no mask. With blocks the mask is a list of `QueryChunk`, or one mask for
    FlexAttention and the compiler.

    Args:
        hidden: `[B, C * L, D]`, one copy of each text after the other (`LoMDMModel.forward`).
        attention_mask: `[B, P + L]`, 1 = real, of the `P` positions in a cache and the `L` new
            ones; longer where positions in front of them have left the cache again.
        num_copies: `C`. past_length: `P`.
    """
    length = hidden.shape[1] // num_copies
    held = past_length + length
    total = held if attention_mask is None else attention_mask.shape[1]
    position = position_ids(attention_mask, total, hidden.device)[:, total - held :]
    # every copy has the positions of its text
    new = position[:, past_length:].repeat(1, num_copies)
    rotary = rotary_tables(new, config.hidden_size // config.num_attention_heads, config.rope_theta)
    if config.block_size is not None:
        attention_mask = None if attention_mask is None else attention_mask[:, total - held :]
        return block_mask(config, hidden, attention_mask, position, num_copies), rotary
    if attention_mask is None:
        return None, rotary
    real, eager = attention_mask.to(torch.bool), config._attn_implementation == "eager"
    if hidden.device.type == "cpu" or not (eager or config._attn_implementation == "sdpa"):
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=real)
        return mask, rotary
    # the same, but transformers looks whether the mask is all ones, for which the host would wait
    mask = real[:, None, None].expand(-1, 1, hidden.shape[1], -1)  # [B, 1, L, L]
    if eager:
        mask = hidden.new_zeros(()).where(mask, torch.finfo(hidden.dtype).min)
    return mask, rotary


def chunk_positions(
    config: LoMDMConfig,
    length: int,
    num_copies: int = 1,
    past_length: int = 0,
    padded: bool = False,
) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Queries and keys of every `QueryChunk`; arguments as in `attention_inputs`.

    Where texts are `padded`, blocks begin anywhere, and there may be up to a block of keys more on
    each side.
    """
    size, total = config.block_size, past_length + length
    reach = -(-config.max_position_embeddings // size) * size
    for copy in range(num_copies):
        for start in range(0, length, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, length)
            # of these in their copy of the keys
            first, last = past_length + start, past_length + stop
            if padded:
                far, before, near, end = first - reach, last, first - size + 1, last + size - 1
            else:
                near, end = first // size * size, -(-last // size) * size
                far, before = near + size - reach, (last - 1) // size * size
            far, end = max(0, far), min(end, total)
            own = slice(copy * total + max(0, near), copy * total + end)
            keys = (slice(far, end),) if copy == 0 else (slice(far, max(far, before)), own)
            yield slice(copy * length + start, copy * length + stop), keys


def take_slices(values: Tensor, wanted: Sequence[tuple[slice, ...]], dim: int) -> list[Tensor]:
    """For each of `wanted` its parts of `values` along a dimension, one behind the other.

    Where gradients are needed, `values` is split once: the gradient of each slice view would be as
    large as `values`. The price is a copy for each of `wanted` that has several parts.
    """
    if not values.requires_grad and len(wanted) > 1:
        return [values_of for parts in wanted for values_of in take_slices(values, [parts], dim)]
    cuts = {edge for parts in wanted for part in parts for edge in (part.start, part.stop)}
    edges = sorted(cuts | {0, values.shape[dim]})
    split = values.split([end - start for start, end in pairwise(edges)], dim)
    pieces = dict(zip(edges[:-1], split, strict=True))
    pieces_of_each = (
        [pieces[at] for part in parts for at in pieces if part.start <= at < part.stop]
        for parts in wanted
    )
    return [held[0] if len(held) == 1 else torch.cat(held, dim) for held in pieces_of_each]


def block_rule(
    config: LoMDMConfig, position: Tensor, num_copies: int, past: int, batch: int = -1
) -> Callable[..., Tensor]:
    """The rule of blocks as a function of indices, as transformers' mask functions take it.

    Its arguments are `(row, head, query, key)`.

    Args:
        position: `[B or 1, P + L]`. num_copies, past: as in `attention_inputs`. batch: rows of the
            rule; -1 = those of `position`.
    """
    size, total = config.block_size, position.shape[1]
    reach = -(-config.max_position_embeddings // size)
    block = (position // size).to(torch.int32).expand(batch, -1)
    key_block, query_block = block.repeat(1, num_copies), block[:, past:].repeat(1, num_copies)
    copy = torch.arange(num_copies, dtype=torch.int32, device=position.device)
    copy = copy.repeat_interleave(total)  # with a cache there is one copy

    def allowed(row, head, query, key):
        distance = query_block[row, query] - key_block[row, key]
        own = (distance == 0) & (copy[query] == copy[key])
        return own | ((distance > 0) & (distance < reach) & (copy[key] == 0))

    return allowed


def added_mask(
    allowed: Callable[..., Tensor],
    real: Tensor | None,
    query: Tensor,
    key: Tensor,
    past: int,
    dtype: torch.dtype,
    rows: int,
) -> Tensor:
    """What is added to the products of queries and keys, `[B or 1, 1, Q, K]`.

    It is 0 where a rule of blocks allows them, and else the least number of `dtype`.

    Made by broadcasting: for a function of ours transformers would use vmap, which costs
    milliseconds per mask. It has the precision of the queries: SDPA would else convert it in each
    layer.

    Args:
        real: `[B, K]` bool, keys that are not padding; `None` = all. query, key: indices of new
            positions `[Q, 1]` and of all positions `[K]`. past: `P`. rows: of the rule.
    """
    row = torch.arange(rows, device=key.device)[:, None, None, None]
    mask = allowed(row, 0, query, key)
    # a padded position sees itself, for a softmax over nothing is NaN
    if real is not None:
        mask = (mask & real[:, None, None, key]) | (key == query + past)
    zero = torch.zeros((), dtype=dtype, device=key.device)
    return zero.where(mask, torch.finfo(dtype).min)


def is_flex(implementation: str | None, block_size: int) -> bool:
    """Whether blocks are masked by FlexAttention; `ValueError` for what cannot mask them."""
    if implementation not in BLOCK_ATTENTION:
        raise ValueError(
            f"attn_implementation={implementation!r} cannot mask blocks "
            f"(block_size={block_size}). Load the model with one of {BLOCK_ATTENTION}."
        )
    return implementation == "flex_attention"


def flex_mask(
    config: Any, embeds: Tensor, allowed: Callable[..., Tensor], real: Tensor | None, keys: int
):
    """A rule of blocks as the block mask of FlexAttention.

    Args:
        config: of the attention. embeds: `[B, Q, ...]`, of which shape, precision and device count.
        real: `[B, keys]` bool, keys that are not padding; `None` = all.
    """
    every = torch.ones((embeds.shape[0], keys), dtype=torch.bool, device=embeds.device)
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=embeds,
        attention_mask=every if real is None else real,
        and_mask_function=allowed,
    )


def block_mask(
    config: LoMDMConfig,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position: Tensor,
    num_copies: int,
):
    """Who attends to whom with blocks: its block in its own copy, earlier ones in the clean copy.

    Copy 0 is clean. Blocks further back than `max_position_embeddings` are out of reach, so that
    long texts see what the model was trained on. Arguments as in `attention_inputs`; `position` is
    `[B or 1, P + L]`.
    """
    size, (batch, width), total = config.block_size, hidden.shape[:2], position.shape[1]
    past, reach = total - width // num_copies, -(-config.max_position_embeddings // size)
    lone = num_copies == 1 and past % size == 0 and total - past <= size and total <= reach * size
    if lone and attention_mask is None:  # one block and all before it
        return None
    flex = is_flex(config._attn_implementation, size)
    allowed = block_rule(config, position, num_copies, past, batch if flex else -1)
    real = None if attention_mask is None else attention_mask.repeat(1, num_copies).to(torch.bool)
    if flex:
        return flex_mask(config, hidden, allowed, real, num_copies * total)
    every = torch.arange(num_copies * total, device=hidden.device)

    def added(query: Tensor, key: Tensor) -> Tensor:  # [B or 1, 1, Q, K]
        return added_mask(allowed, real, query, key, past, query_dtype(hidden), position.shape[0])

    # chunks would need a graph for each length
    if torch.compiler.is_compiling() and num_copies == 1:
        return added(every[: total - past, None], every)
    parts = chunk_positions(config, width // num_copies, num_copies, past, real is not None)
    return [
        QueryChunk(at, seen, added(every[at, None], take_slices(every, [seen], 0)[0]))
        for at, seen in parts
    ]


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Plain attention, transformers' signature: `[B, H, L, head_size] -> [B, L, H, head_size]`."""
    weights = query @ key.transpose(2, 3) * scaling  # [B, H, L, L]
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = at_least_float32(weights).softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LoMDMAttention(nn.Module):
    """Self-attention with rotary positions and no biases; bidirectional but for masks of blocks."""

    is_causal = False

    def __init__(self, config: LoMDMConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index  # in the cache
        self.head_size = config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | list[QueryChunk] | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        first_output: int = 0,
    ) -> Tensor:
        """`[B, L, D] -> [B, L - first_output, D]`: earlier positions are attended to only."""
        batch, length, _ = hidden.shape
        qkv = self.qkv_proj(hidden).view(batch, length, 3, -1, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, L, head_size]
        query, key = rotate(query, rotary), rotate(key, rotary)
        # a view would keep query and key as they were before for the gradient
        value = value.contiguous()
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_index)
        if isinstance(attention_mask, list):
            chunks = [chunk for chunk in attention_mask if chunk.queries.start >= first_output]
            keys = [chunk.keys for chunk in chunks]
            parts = zip(
                take_slices(query, [(chunk.queries,) for chunk in chunks], 2),
                *(take_slices(states, keys, 2) for states in (key, value)),
                (chunk.mask for chunk in chunks),
                strict=True,
            )
            attended = torch.cat([self.attend(*part) for part in parts], dim=1)
        else:
            attended = self.attend(query, key, value, attention_mask)[:, first_output:]
        return self.o_proj(attended.reshape(batch, length - first_output, -1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, H, L, head_size]` to `[B, L, H, head_size]`, by the implementation that is set."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        return attend(self, query, key, value, mask, dropout=0.0, scaling=self.head_size**-0.5)[0]
