"""The blocks before the one that is being written. This file travels to the Hub."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput


@dataclass
class BlockContext:
    """The finished blocks of a batch of texts: read once, then kept as keys and values.

    Blocks that the next one cannot attend to are dropped, so that a step costs the same however
    long the text is.

    Args:
        model: `LoMDMForMaskedDiffusion` with blocks.
        tokens: `[B, P]`, tokens that are not in the cache yet.
        attention_mask: `[B, D + C + P]`, 1 = real, of all positions, padded on the left; `None` =
            nothing padded.
        cache: keys and values of `C` positions; `None` = no cache, every pass reads all tokens.
        dropped: `D`, number of positions that have left the cache.
    """

    model: PreTrainedModel
    tokens: Tensor
    attention_mask: Tensor | None
    cache: DynamicCache | None
    dropped: int = 0

    def read(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_logits: bool = True
    ) -> ModelOutput:
        """The model's output for the next, partly masked block of each text `[B, S]`."""
        width = input_ids.shape[1]
        if self.cache is None:
            tokens, mask = (
                torch.cat((self.tokens, input_ids), dim=1),
                self._join(input_ids, attention_mask),
            )
            return self.model(
                tokens, mask, output_logits=output_logits, logits_to_keep=width, return_dict=True
            )
        reach = -(-self.model.config.max_position_embeddings // self.model.config.block_size)
        size = reach * self.model.config.block_size
        # a long prompt: each pass takes as many tokens as a block may attend to
        while self.tokens.shape[1] > size:
            mask, behind = (
                self._join(input_ids, attention_mask),
                self.tokens.shape[1] - size + width,
            )
            options = {
                "attention_mask": None if mask is None else mask[:, :-behind],
                "logits_to_keep": 1,
            }
            self.model(
                self.tokens[:, :size], output_logits=False, past_key_values=self.cache, **options
            )
            self.tokens = self.tokens[:, size:]
            self._drop(size - self.model.config.block_size)
        # join only now: once positions have left the cache, only the mask says where the text is
        tokens, mask = (
            torch.cat((self.tokens, input_ids), dim=1),
            self._join(input_ids, attention_mask),
        )
        options = {"output_logits": output_logits, "logits_to_keep": width, "return_dict": True}
        out = self.model(tokens, mask, past_key_values=self.cache, **options)
        # the block is still being written; those before it are final
        self._cut(slice(None, -width))
        self.tokens = self.tokens[:, :0]
        self._drop(size - self.model.config.block_size)
        return out

    def extend(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Appends a finished block `[B, S]`; the next pass reads it."""
        self.attention_mask = self._join(input_ids, attention_mask)
        self.tokens = torch.cat((self.tokens, input_ids), dim=1)

    def _drop(self, keep: int) -> None:
        """Keeps the last `keep` positions of the cache."""
        surplus = self.cache.get_seq_length() - keep
        if surplus <= 0:
            return
        self.dropped += surplus
        self._cut(slice(surplus, None))

    def _cut(self, kept: slice) -> None:
        """Keeps these positions of the cache; `DynamicCache.crop` differs between versions."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

    def _join(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if self.attention_mask is None and attention_mask is None and not self.dropped:
            return None
        before = self.attention_mask
        if before is None:
            cached = 0 if self.cache is None else self.cache.get_seq_length()
            before = input_ids.new_ones(
                len(input_ids), self.dropped + cached + self.tokens.shape[1]
            )
        return torch.cat(
            (before, torch.ones_like(input_ids) if attention_mask is None else attention_mask),
            dim=1,
        )
