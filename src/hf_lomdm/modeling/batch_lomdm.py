"""A batch of texts as loss, rates and evaluations see it. This file travels to the Hub."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks_lomdm import Blocks, make_blocks, position_ids


class Batch(NamedTuple):
    """Texts of `L` positions and what follows from their padding; made once, then passed on.

    Attributes:
        ids: `[B, L]` int64, clean texts in the loss, partly masked ones without labels; -100 where
            `inputs_embeds` are read instead. `None` if there are only embeddings.
        attention_mask: `[B, L]`, 1 = real (with a cache `[B, P + L]`); `None` = nothing padded.
        position: `[B, L]` int64, counted from the first real token.
        blocks: the blocks of these positions; `None` with one window.
        maskable: `[B, L]` bool, positions that are neither given nor padding; `None` = not asked
            for.
        inputs_embeds: `[B, L, D]`, read at positions of the id -100; `None` = there are none.
    """

    ids: Tensor | None
    attention_mask: Tensor | None
    position: Tensor
    blocks: Blocks | None
    maskable: Tensor | None = None
    inputs_embeds: Tensor | None = None

    @property
    def real(self) -> Tensor | None:
        """`[B, L]` bool, positions that are not padding; `None` = all."""
        return (
            None
            if self.attention_mask is None
            else self.attention_mask[:, -self.position.shape[1] :].bool()
        )

    @property
    def block(self) -> Tensor:
        """`[B, L]` int64, the block of each position; 0 with one window."""
        return torch.zeros_like(self.position) if self.blocks is None else self.blocks.of_position

    def stack(self, num_views: int) -> "Batch":
        """`num_views` copies of each text, view after view: `[num_views * B, L]`."""
        return self if num_views == 1 else self._map(lambda values: stack_views(values, num_views))

    def rows(self, chosen: slice | Tensor) -> "Batch":
        """Some of the texts."""
        return self._map(lambda values: values[chosen])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        fields = self._asdict()
        blocks = fields.pop("blocks")
        blocks = None if blocks is None else blocks._replace(of_position=change(blocks.of_position))
        tensors = {
            name: None if values is None else change(values) for name, values in fields.items()
        }
        return Batch(**tensors, blocks=blocks)


def make_batch(
    ids: Tensor | None,
    attention_mask: Tensor | None = None,
    block_size: int | None = None,
    maskable: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Batch:
    """The batch of `ids` `[B, L]`, or of `inputs_embeds` `[B, L, D]`; arguments as in `Batch`."""
    batch_size, length = (inputs_embeds if ids is None else ids).shape[:2]
    device = (inputs_embeds if ids is None else ids).device
    total = length if attention_mask is None else attention_mask.shape[1]
    position = position_ids(attention_mask, total, device)[:, -length:].expand(batch_size, -1)
    blocks = make_blocks(position, block_size)
    return Batch(ids, attention_mask, position, blocks, maskable, inputs_embeds)


def stack_views(values: Tensor | None, num_views: int) -> Tensor | None:
    """`[B, ...] -> [num_views * B, ...]`, view after view."""
    return None if values is None else values.repeat(num_views, *[1] * (values.dim() - 1))


def stack_copies(values: Tensor, num_copies: int) -> Tensor:
    """`[B, C * L, ...] -> [C * B, L, ...]`, copy after copy."""
    # the compiler knows the length of chunks
    return values if num_copies == 1 else torch.cat(values.chunk(num_copies, dim=1))
