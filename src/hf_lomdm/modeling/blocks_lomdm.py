"""Positions of a text and their blocks: which block, sums over it, a quantile for each.

This file travels to the Hub. `[B, L]` are values per position, `[B, N]` per block; without blocks
there is one window (`N = 1`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .random_lomdm import position_exponentials


class Blocks(NamedTuple):
    """The blocks of texts: which of them each position belongs to, `of_position` `[B, L]` int64.

    Values are in `[0, num_blocks)`; a block has at most `size` positions.
    """

    of_position: Tensor
    size: int
    num_blocks: int


def position_ids(attention_mask: Tensor | None, length: int, device) -> Tensor:
    """Positions `[B, L]` (`[1, L]` without a mask) counted from the first real token."""
    if attention_mask is None:
        return torch.arange(length, device=device)[None]
    return (attention_mask.to(torch.int64).cumsum(-1) - 1).clamp(min=0)


def make_blocks(position: Tensor, size: int | None) -> Blocks | None:
    """The blocks of `size` positions; `position` `[B, L]` counts from the first real token.

    They are numbered from the block of the first column on. `None` with one window (`size=None`).
    """
    if size is None:
        return None
    index = position // size
    return Blocks(index - index[:, :1], size, -(-position.shape[1] // size))


def block_sum(values: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Sum of `values` `[B, L]` over the positions of each block: `[B, N]`."""
    if blocks is None:
        return values.sum(-1, keepdim=True)
    return values.new_zeros(values.shape[0], blocks.num_blocks).scatter_add(
        1, blocks.of_position, values
    )


def block_min(values: Tensor, blocks: Blocks | None) -> Tensor:
    """Smallest of `values` `[B, L]` in each block: `[B, N]`; `inf` in a block without positions."""
    if blocks is None:
        return values.amin(-1, keepdim=True)
    start = values.new_full((values.shape[0], blocks.num_blocks), torch.inf)
    return start.scatter_reduce(1, blocks.of_position, values, "amin")


def broadcast_to_positions(values: Tensor, blocks: Blocks | None = None) -> Tensor:
    """The value of its block at each position: `[B, N] -> [B, L]` (`[B, 1]` with one window)."""
    return values if blocks is None else values.gather(1, blocks.of_position)


def block_quantiles(quantiles: Tensor, seeds: Tensor, blocks: Blocks | None = None) -> Tensor:
    """A quantile for each block from that of the text, `frac(q + pi_b / N)`: `[B]` -> `[B, N]`.

    `pi` is a random permutation of the `N` blocks of the text. So each quantile is uniform if `q`
    is, they are stratified within the text, and quantiles that are stratified over texts or draws
    stay so for each block. `pi` depends on the seed alone and is independent of the draws of
    positions.

    Args:
        quantiles: `[B]` in `(0, 1)`. seeds: `[B]` int64.
    """
    if blocks is None:
        return quantiles[:, None]
    block = torch.arange(blocks.num_blocks, device=quantiles.device)[None]
    # a padded text has fewer blocks than the longest one
    in_text = block <= blocks.of_position.amax(-1, keepdim=True)
    keys = position_exponentials(seeds, -1 - block)
    order = (
        keys.masked_fill(~in_text.to(keys.device), torch.inf)
        .argsort(-1)
        .argsort(-1)
        .to(quantiles.device)
    )
    share = order / in_text.sum(-1, keepdim=True)
    return ((quantiles[:, None] + share) % 1).to(quantiles.dtype).clamp(2**-25, 1 - 2**-24)
