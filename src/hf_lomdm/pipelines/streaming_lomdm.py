"""A call step by step, for `stream` and for streamers. This file travels to the Hub."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from .canvas_lomdm import (
    PADDING,
    Canvas,
    Window,
    end_of_row,
    padding_token,
    require,
    to_tensor,
    write,
)
from .filling_lomdm import Filling, Step


@dataclass
class LoMDMStepOutput(BaseOutput):
    """The canvas of a call after a step.

    sequences: `[B, L]` int64, masks where nothing is revealed yet, padding at the far right.
    order: `[B, L]` int64, as in `LoMDMPipelineOutput`; -1 also where nothing is revealed yet.
    step: number of the step, from 0 on. num_forward_passes: so far.
    """

    sequences: Tensor
    order: Tensor
    step: int
    num_forward_passes: int


def state_after(step: Step, filling: Filling) -> LoMDMStepOutput:
    """The whole canvas after a step, on the CPU."""
    canvas = filling.canvas
    parts = canvas.rows, canvas.order, canvas.reveals
    rows, orders, reveals = ([list(row) for row in part] for part in parts)
    copy = Canvas(rows, orders, reveals, canvas.starts)
    write(copy, step.window)
    sequences, _ = to_tensor(copy.rows, padding_token(filling.model.config), "cpu")
    order, _ = to_tensor(copy.order, PADDING, "cpu")
    return LoMDMStepOutput(sequences, order, step.number, filling.passes)


class Feed:
    """Tells a streamer what is written.

    `put` is given the prompt and finished windows, `put_draft` the present window, if the
    streamer has that (`transformers.TextDiffusionStreamer`).

    Raises:
        ValueError: for more texts than one, and for what has no `put` and `end`.
    """

    def __init__(self, streamer: Any, filling: Filling):
        known = callable(getattr(streamer, "put", None)) and callable(
            getattr(streamer, "end", None)
        )
        require(
            known,
            f"streamer must have put and end, got {streamer!r}. Pass a TextDiffusionStreamer.",
        )
        rows = filling.canvas.rows
        require(
            len(rows) == 1,
            f"streamer takes one text, got {len(rows)}. Pass one prompt, or use stream().",
        )
        self.streamer, self.filling = streamer, filling
        self.window: Window | None = None
        config = filling.model.config
        self.shown = (rows[0] + [config.mask_token_id]).index(config.mask_token_id)
        streamer.put(torch.tensor([rows[0][: self.shown]], dtype=torch.int64))

    def draft(self, step: Step) -> None:
        """After a step: the window before it is finished if this is another."""
        if self.window is not None and step.window is not self.window:
            self._put(self.window.firsts[0] + self.window.sample.shape[1])
        self.window = step.window
        if hasattr(self.streamer, "put_draft"):
            skipped = max(0, self.shown - step.window.firsts[0])
            self.streamer.put_draft(step.window.sample[:, skipped:].cpu())

    def end(self) -> None:
        """All windows are finished."""
        self._put(len(self.filling.canvas.rows[0]))
        self.streamer.end()

    def _put(self, last: int) -> None:
        canvas, config = self.filling.canvas, self.filling.model.config
        row = canvas.rows[0]
        end = min(last, end_of_row(row, canvas.starts[0], config))
        if end > self.shown:
            self.streamer.put(torch.tensor([row[self.shown : end]], dtype=torch.int64))
            self.shown = end
