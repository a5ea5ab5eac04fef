"""What shapes the token law of a call. This file travels to the Hub.

Guidance by the prompt, processors of transformers and allowed tokens move no position.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .canvas_lomdm import GIVEN, Canvas, Window, padding_token, require, to_tensor


class Guidance:
    """Shapes the logits of what is revealed in a call.

    Args:
        canvas: of the call. config: of the model. device: where the model will run.
        scale: the law is proportional to `p^scale * q^(1 - scale)`, `p` with and `q` without the
            prompt; 1 is `p` itself.
        processor: called with the canvas `[M, L]` of each of `M` places and its scores `[M, V]`.
        allowed_tokens: token ids by position of a row, one mapping for all or one for each row.
    Raises:
        ValueError: what cannot be used.
    """

    def __init__(self, canvas: Canvas, config, device, scale=1.0, processor=None, allowed=None):
        number = isinstance(scale, Real) and not isinstance(scale, bool)
        require(
            number and math.isfinite(scale) and scale >= 0,
            f"guidance_scale must be a number of at least 0, got {scale!r}. Pass 1.0 for none.",
        )
        prompted = any(token != config.mask_token_id for row in canvas.rows for token in row)
        require(
            scale == 1 or prompted,
            f"guidance_scale={scale} needs a prompt: without one both laws are one. Leave it out.",
        )
        require(
            processor is None or callable(processor),
            f"logits_processor must be callable, got {processor!r}. Pass a LogitsProcessorList.",
        )
        self.canvas, self.config, self.device = canvas, config, device
        self.scale, self.processor = float(scale), processor
        # whether every row is read twice, the second time without the prompt
        self.doubled = self.scale != 1
        self.sets: Tensor | None = None
        self.set_of: Tensor | None = None
        if allowed is not None:
            self._take_allowed(allowed)

    @property
    def active(self) -> bool:
        """Whether the token law is not the model's."""
        return self.doubled or self.processor is not None or self.sets is not None

    def without_prompt(self, sample: Tensor, prompt: Tensor) -> Tensor:
        """`sample` `[B, S]`; with guidance `[2B, S]`, the second half without the prompt."""
        if not self.doubled:
            return sample
        return torch.cat((sample, sample.masked_fill(prompt, self.config.mask_token_id)))

    def twice(self, values: Tensor | None) -> Tensor | None:
        """`values` `[B, ...]`, with guidance `[2B, ...]`."""
        return torch.cat((values, values)) if self.doubled and values is not None else values

    def open(self, firsts: list[int]) -> None:
        """Begins a window of each row at `firsts`."""
        self.firsts = torch.tensor(firsts, device=self.device)[:, None]
        if self.processor is not None:
            padding = padding_token(self.config)
            self.ids, _ = to_tensor(self.canvas.rows, padding, self.device)

    def shape(self, logits: Tensor, window: Window, places: tuple[Tensor, Tensor]) -> Tensor:
        """Logits `[B, W, V]`, guided already, by the processor and the allowed tokens.

        Args:
            places: rows `[B, 1]` and columns `[B, W]` of the window.
        """
        rows, columns = places
        if self.processor is not None:
            canvas = self._whole(window.sample)
            each = canvas[rows.expand_as(columns).reshape(-1)]
            scores = logits.reshape(-1, logits.shape[-1]).to(torch.float32)
            logits = self.processor(each, scores).reshape(logits.shape)
        if self.sets is not None:
            length = self.set_of.shape[1]
            position = (self.firsts + columns).clamp(max=length - 1)
            logits = logits.masked_fill(~self.sets[self.set_of[rows, position]], -torch.inf)
        return logits

    def _whole(self, sample: Tensor) -> Tensor:
        """The canvas `[B, L]` with the present state of its window."""
        columns = self.firsts + torch.arange(sample.shape[1], device=sample.device)
        inside = columns < self.ids.shape[1]
        columns = columns.clamp(max=self.ids.shape[1] - 1)
        kept = torch.where(inside, sample, self.ids.gather(1, columns))
        return self.ids.scatter(1, columns, kept)

    def _take_allowed(self, allowed: Any) -> None:
        rows = self.canvas.rows
        each = [allowed] * len(rows) if isinstance(allowed, Mapping) else allowed
        listed = isinstance(each, (list, tuple)) and all(isinstance(one, Mapping) for one in each)
        require(
            listed and len(each) == len(rows),
            "allowed_tokens must map positions to token ids, or be a list of "
            f"{len(rows)} mappings, got {allowed!r}. Pass for example {{3: [7, 8]}}.",
        )
        longest = max(map(len, rows))
        sets = [torch.ones(self.config.vocab_size, dtype=torch.bool)]
        index = torch.zeros(len(rows), longest, dtype=torch.int64)
        known: dict[frozenset, int] = {}
        for row, mapping in enumerate(each):
            for position, ids in mapping.items():
                chosen = self._check_allowed(position, ids, longest)
                if chosen not in known:
                    known[chosen] = len(sets)
                    one = torch.zeros(self.config.vocab_size, dtype=torch.bool)
                    sets.append(one.index_fill(0, torch.tensor(sorted(chosen)), True))
                index[row, position] = known[chosen]
        self.sets, self.set_of = torch.stack(sets).to(self.device), index.to(self.device)

    def _check_allowed(self, position: Any, ids: Any, longest: int) -> frozenset:
        whole = isinstance(position, Integral) and 0 <= int(position) < longest
        require(
            whole,
            f"allowed_tokens has the position {position!r}, rows have 0 to {longest - 1}. Leave it "
            "out.",
        )
        config = self.config
        fine = isinstance(ids, (list, tuple, set, frozenset)) and len(ids) > 0
        fine = fine and all(
            isinstance(i, Integral) and i != config.mask_token_id and i in range(config.vocab_size)
            for i in ids
        )
        require(
            fine,
            f"allowed_tokens at position {position} must be token ids below {config.vocab_size} "
            f"but the mask token's, got {ids!r}. Pass at least one.",
        )
        return frozenset(int(i) for i in ids)


def prompt_of(canvas: Canvas, firsts: list[int], given: Tensor) -> Tensor:
    """Which positions `[B, S]` of a window the prompt gave, not an earlier window."""
    width = given.shape[1]
    spans = zip(canvas.order, firsts, strict=True)
    orders = [order[first : first + width] for order, first in spans]
    values, _ = to_tensor(orders, GIVEN, given.device)
    missing = width - values.shape[1]
    return given & (torch.nn.functional.pad(values, (0, missing), value=GIVEN) == GIVEN)
