"""The loop of a call: fills in a canvas, window after window, step by step. This file travels to
the Hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .canvas_lomdm import (
    Canvas,
    Window,
    close_window,
    open_window,
    padding_token,
    require,
    to_tensor,
    windows,
)


@dataclass
class Step:
    """One step, before the next: `number` and `timestep`, the `window` that it was made in,
    `revealed` `[B, S]` bool and `rates` `[B, S]` of the latest forward pass."""

    number: int
    timestep: Tensor
    window: Window
    revealed: Tensor
    rates: Tensor


class Filling:
    """Fills in the canvas of a call.

    Args:
        model, scheduler: with the timesteps of the call, on the host.
        canvas: is filled in place.
        generator: as in the call.
        device: where the model will run.
        use_cache: keep keys and values of finished blocks.
        watched: give out steps with nothing left to reveal too.
        rewritten: who is given a step may write into its window.

    Attributes:
        passes: forward passes so far. row_passes: those in which a row had masks.
        interrupted: set it to end after the present step.
    """

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        canvas: Canvas,
        generator,
        device,
        use_cache: bool,
        watched: bool = False,
        rewritten: bool = False,
    ):
        self.model, self.scheduler, self.canvas, self.device = model, scheduler, canvas, device
        self.use_cache, self.watched, self.rewritten = use_cache, watched, rewritten
        self.seeds = row_seeds(generator, len(canvas.rows))
        self.windows, self.steps = windows(canvas.rows, model.config), len(scheduler.timesteps)
        self.passes, self.row_passes, self.interrupted = 0, [0] * len(canvas.rows), False

    @property
    def num_timesteps(self) -> int:
        """Steps over all windows, no-ops included."""
        return self.steps * len(self.windows)

    def run(self, bar) -> Iterator[Step]:
        """Fills in the canvas and gives out each step; `bar.update` counts them."""
        config, context = self.model.config, None
        if config.block_size is not None:
            context = self._open_context()
        for index, (firsts, width) in enumerate(self.windows):
            window = open_window(self.canvas, firsts, width, config, self.device)
            # one generator per row: its draws do not depend on the other rows
            draws = [torch.Generator().manual_seed(seed + index) for seed in self.seeds]
            read = partial(self.model, return_dict=True) if context is None else context.read
            yield from self._fill(window, read, draws, index * self.steps, bar)
            close_window(self.canvas, window, firsts, config)
            rows = zip(self.canvas.rows, firsts, strict=True)
            if self.interrupted or all(len(row) <= first + width for row, first in rows):
                break
            if context is not None:
                context.extend(window.sample, window.attention_mask)

    def _open_context(self):
        """The blocks before the first window, read with the first pass."""
        spans = zip(self.canvas.rows, self.windows[0][0], strict=True)
        before = [row[:first] for row, first in spans]
        tokens, mask = to_tensor(before, padding_token(self.model.config), self.device, left=True)
        context = self.model.open_context(tokens, mask, self.use_cache)
        context.model = self.model  # as it is here: compiled, or wrapped
        return context

    def _fill(self, window: Window, read, generator, begin: int, bar) -> Iterator[Step]:
        """Fills in a window, steps counted from `begin`.

        Where the scheduler tells on the host how many positions a step reveals, nothing waits for
        the device, and steps with nothing left are skipped. Elsewhere a step waits once, for its
        counts. Who may change the sample costs a count of its masks.
        """
        scheduler, finite, out, stale = self.scheduler, True, None, True
        plain = scheduler.position_draw_needs_logits or self.model.rates_need_logits
        for step, timestep in enumerate(scheduler.timesteps):
            left, revealed = window.num_masked, torch.zeros_like(window.sample, dtype=torch.bool)
            if any(left):
                # else nothing was revealed, and the model's output does not depend on the time
                if stale:
                    out = read(
                        input_ids=window.sample,
                        attention_mask=window.attention_mask,
                        output_logits=plain,
                    )
                    self._count_pass(left)
                revealed, counts, sane = self._reveal(window, out, timestep, generator)
                window.order = torch.where(revealed, begin + step, window.order)
                left = [n - count for n, count in zip(left, counts, strict=True)]
                finite = finite & sane
                if step == 0:
                    check_finite(finite)
            elif not self.watched or out is None:
                bar.update(self.steps - step)
                break
            yield Step(begin + step, timestep, window, revealed, out.rates)
            if self.rewritten:
                left = (window.sample == self.model.config.mask_token_id).sum(1).tolist()
            stale, window.num_masked = left != window.num_masked or self.rewritten, left
            bar.update()
            if self.interrupted:
                break
        check_finite(finite)

    def _count_pass(self, num_masked: list[int]) -> None:
        self.passes += 1
        rows = zip(self.row_passes, num_masked, strict=True)
        self.row_passes = [passes + (count > 0) for passes, count in rows]

    def _reveal(self, window: Window, out, timestep, generator) -> tuple[Tensor, list[int], Tensor]:
        """One step from the model's output: `revealed` `[B, S]`, their number in each row, and
        whether all that was used is finite.

        Positions come first. Unless their draw or the rates need logits, the revealed ones alone
        are projected to the vocabulary.
        """
        sample, mask, scheduler = window.sample, window.attention_mask, self.scheduler
        needed = out.logits if scheduler.position_draw_needs_logits else None
        revealed = scheduler.select(
            out.rates, timestep, sample, generator, attention_mask=mask, logits=needed
        )
        counts = (
            revealed.sum(1).tolist()
            if scheduler.num_reveals_is_random
            else scheduler.num_reveals(window.num_masked, timestep)
        )
        rows = torch.arange(len(sample), device=sample.device)[:, None]
        # rows are right-padded, so a column is a position
        columns = scheduler.revealed_columns(revealed, timestep)[:, : max(counts)]
        here = revealed[rows, columns]
        logits = (
            self.model.token_logits(out.last_hidden_state[rows, columns])
            if out.logits is None
            else out.logits[rows, columns]
        )
        tokens = scheduler.draw_tokens(logits, rows, columns, len(sample), generator)
        tokens = torch.where(here, tokens, sample[rows, columns])
        window.sample = sample.index_put((rows, columns), tokens)
        broken = torch.isnan(logits.amax(-1)) & here
        return revealed, counts, torch.isfinite(out.rates).all() & ~broken.any()


def row_seeds(generator, num_rows: int) -> list[int]:
    """A seed for each row: the next one of its own generator, or of one for all (`None` = the
    global one)."""
    each = generator if isinstance(generator, (list, tuple)) else [generator] * num_rows
    require(
        len(each) == num_rows,
        f"generator has {len(each)} entries for {num_rows} results. Pass one for each.",
    )
    known = all(one is None or isinstance(one, torch.Generator) for one in each)
    wrong = f"generator must be a torch.Generator, a list of them or None, got {generator!r}. "
    require(known, wrong + "Pass torch.Generator().manual_seed(0).")
    return [
        torch.randint(2**62, (), generator=one, device=one and one.device).item() for one in each
    ]


def check_finite(finite: Tensor) -> None:
    require(
        bool(finite),
        "the model gave NaN or infinite rates or logits. Check its weights and its dtype.",
    )
