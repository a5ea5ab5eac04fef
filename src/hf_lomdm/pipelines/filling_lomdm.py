"""The loop of a call: window after window, step by step. This file travels to the Hub."""

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
from .guidance_lomdm import Guidance, prompt_of
from .prompts_lomdm import StopStrings


@dataclass
class Step:
    """One step, before the next.

    `number` and `timestep`, the `window` that it was made in, `revealed` `[B, S]` bool and
    `rates` `[B, S]` of the latest forward pass.
    """

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
        guidance: what shapes the token law.
        stopped: whether a row, whose text begins at a position, has come to its end.
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
        guidance: Guidance,
        stopped: StopStrings,
        watched: bool = False,
        rewritten: bool = False,
    ):
        self.model, self.scheduler, self.canvas, self.device = model, scheduler, canvas, device
        self.use_cache, self.watched, self.rewritten = use_cache, watched, rewritten
        self.guidance, self.stopped = guidance, stopped
        self.seeds = row_seeds(generator, len(canvas.rows))
        self.windows = windows(canvas.rows, model.config)
        # of a window, with its corrections
        self.steps = len(scheduler.timesteps) + scheduler.num_corrector_steps
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
            self.guidance.open(firsts)
            self.prompt = prompt_of(self.canvas, firsts, window.given)
            read = partial(self.model, return_dict=True) if context is None else context.read
            yield from self._fill(window, read, self.scheduler, (index, 0), bar)
            if self.scheduler.num_corrector_steps:
                yield from self._correct(window, read, index, bar)
            close_window(self.canvas, window, config, self.stopped)
            rows = zip(self.canvas.rows, firsts, strict=True)
            if self.interrupted or all(len(row) <= first + width for row, first in rows):
                break
            if context is not None:
                context.extend(*self._both(window))

    def _open_context(self):
        """The blocks before the first window, read with the first pass."""
        spans = zip(self.canvas.rows, self.windows[0][0], strict=True)
        before = [row[:first] for row, first in spans]
        if self.guidance.doubled:  # blocks that are given are not there without the prompt
            before += [[] for _ in before]
        tokens, mask = to_tensor(before, padding_token(self.model.config), self.device, left=True)
        context = self.model.open_context(tokens, mask, self.use_cache)
        context.model = self.model  # as it is here: compiled, or wrapped
        return context

    def _both(self, window: Window) -> tuple[Tensor, Tensor | None]:
        """Sample and attention mask of a window, with guidance a second time without the prompt."""
        sample = self.guidance.without_prompt(window.sample, self.prompt)
        return sample, self.guidance.twice(window.attention_mask)

    def _generators(self, window: int, part: int) -> list[torch.Generator]:
        """One for each row, whose draws do not depend on other rows, windows and parts of one."""
        # the generator of a CPU reads the lowest 32 bits of its seed
        each = (seed + window + 2**16 * part for seed in self.seeds)
        return [torch.Generator().manual_seed(seed) for seed in each]

    def _correct(self, window: Window, read, index: int, bar) -> Iterator[Step]:
        """Corrections of a window: each masks some positions and reveals them again."""
        mask_token_id, again = self.model.config.mask_token_id, self.scheduler.for_correction()
        for correction in range(1, self.scheduler.config.corrector_steps + 1):
            if self.interrupted:
                return
            generator = self._generators(index, 2 * correction - 1)
            known = {"attention_mask": window.attention_mask, "certainties": window.certainties}
            chosen = self.scheduler.correct(window.sample, window.given, generator, **known)
            window.sample = window.sample.masked_fill(chosen, mask_token_id)
            window.num_masked = [min(len(again.timesteps), count) for count in window.num_free]
            if self.rewritten:
                window.num_masked = (window.sample == mask_token_id).sum(1).tolist()
            yield from self._fill(window, read, again, (index, correction), bar)

    def _fill(self, window: Window, read, scheduler, place: tuple[int, int], bar) -> Iterator[Step]:
        """Fills in a window; `place` is its index and the number of the correction, 0 = none.

        Where the scheduler tells on the host how many positions a step reveals, nothing waits for
        the device, and steps with nothing left are skipped. Elsewhere a step waits once, for its
        counts. Who may change the sample costs a count of its masks.
        """
        index, correction = place
        generator = self._generators(index, 2 * correction)
        begin = self._first_step(place, len(scheduler.timesteps))
        finite: bool | Tensor = True
        out, stale = None, True
        remasks = scheduler.config.remasking is not None
        plain = scheduler.position_draw_needs_logits or self.model.rates_need_logits
        for step, timestep in enumerate(scheduler.timesteps):
            left, revealed = window.num_masked, torch.zeros_like(window.given)
            if any(left) or remasks:
                # else nothing was revealed, and the model's output does not depend on the time
                if stale:
                    sample, mask = self._both(window)
                    out = read(input_ids=sample, attention_mask=mask, output_logits=plain)
                    self.passes += 1
                    active = [n > 0 or remasks for n in left]
                    self.row_passes = [sum(n) for n in zip(self.row_passes, active, strict=True)]
                revealed, gone, back, sane = self._reveal(
                    window, out, scheduler, timestep, generator
                )
                window.order = torch.where(revealed, begin + step, window.order)
                window.reveals = window.reveals + revealed
                stale = any(gone) or any(back)
                left = [sum(counts) for counts in zip(left, [-n for n in gone], back, strict=True)]
                finite = finite & sane
                if step == 0:
                    check_finite(finite)
            elif not self.watched or out is None:
                bar.update(len(scheduler.timesteps) - step)
                break
            yield Step(begin + step, timestep, window, revealed, out.rates[: len(revealed)])
            if self.rewritten:
                left = (window.sample == self.model.config.mask_token_id).sum(1).tolist()
            stale, window.num_masked = stale or self.rewritten, left
            bar.update()
            if self.interrupted:
                break
        check_finite(finite)

    def _first_step(self, place: tuple[int, int], correction_steps: int) -> int:
        """The number of the first step of a window, or of a correction of it, among all steps."""
        index, correction = place
        begin = index * self.steps
        if correction:
            begin += len(self.scheduler.timesteps) + (correction - 1) * correction_steps
        return begin

    def _reveal(
        self, window: Window, out, scheduler, timestep, generator
    ) -> tuple[Tensor, list[int], list[int], Tensor]:
        """One step from the model's output.

        Returns `revealed` `[B, S]`, how many positions of each row were revealed and how
        many masked again, and whether all that was used is finite.

        Positions come first. Unless their draw or the rates need logits, the revealed ones alone
        are projected to the vocabulary.
        """
        sample, mask_token_id = window.sample, self.model.config.mask_token_id
        known = {"attention_mask": window.attention_mask}
        if scheduler.config.remasking is not None:
            known |= {"given": window.given, "certainties": window.certainties}
        rates, needed = out.rates[: len(sample)], None
        if scheduler.position_draw_needs_logits:
            needed = out.logits[: len(sample)]
        changed = scheduler.select(rates, timestep, sample, generator, logits=needed, **known)
        masked = sample == mask_token_id
        revealed, again = changed & masked, changed & ~masked
        if scheduler.num_reveals_is_random:
            gone, back = torch.stack((revealed.sum(1), again.sum(1))).tolist()
        else:
            gone, back = scheduler.num_reveals(window.num_masked, timestep), [0] * len(sample)
        rows = torch.arange(len(sample), device=sample.device)[:, None]
        # rows are right-padded, so a column is a position
        columns = scheduler.revealed_columns(revealed, timestep)[:, : max(gone)]
        here = revealed[rows, columns]
        logits = self._logits(out, rows, columns)
        shaped = logits
        if self.guidance.active:
            shaped = self._shape(out, logits, window, (rows, columns)).masked_fill(
                ~here[..., None], 0.0
            )
        tokens = scheduler.draw_tokens(shaped, rows, columns, len(sample), generator)
        tokens = torch.where(here, tokens, sample[rows, columns])
        window.sample = sample.index_put((rows, columns), tokens)
        window.sample = window.sample.masked_fill(again, mask_token_id)
        if self.scheduler.needs_certainties:
            self._note_certainties(window, logits, tokens, (rows, columns), here)
        broken = torch.isnan(logits.amax(-1)) & here
        return revealed, gone, back, torch.isfinite(rates).all() & ~broken.any()

    def _logits(self, out, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits `[B, W, V]` of some places of the model's output."""
        if out.logits is None:
            return self.model.token_logits(out.last_hidden_state[rows, columns])
        return out.logits[rows, columns]

    def _shape(self, out, logits: Tensor, window: Window, places) -> Tensor:
        """The logits of a step as guidance shapes them."""
        if self.guidance.doubled:
            rows, columns = places
            plain = self._logits(out, rows + len(window.sample), columns)
            logits = self.scheduler.guide(logits, plain, self.guidance.scale)
        return self.guidance.shape(logits, window, places)

    def _note_certainties(self, window: Window, logits, tokens, places, here) -> None:
        """Keeps the probability of the tokens of this step, in the model's own law."""
        found = self.scheduler.probability(logits, tokens).to(window.certainties)
        found = torch.where(here, found, window.certainties[places])
        window.certainties = window.certainties.index_put(places, found)


def row_seeds(generator, num_rows: int) -> list[int]:
    """A seed for each row: the next one of its generator (`None` = the global one)."""
    each = generator if isinstance(generator, (list, tuple)) else [generator] * num_rows
    require(
        len(each) == num_rows,
        f"generator has {len(each)} entries for {num_rows} results. Pass one for each.",
    )
    known = all(one is None or isinstance(one, torch.Generator) for one in each)
    wrong = f"generator must be a torch.Generator, a list of them or None, got {generator!r}. "
    require(known, wrong + "Pass torch.Generator().manual_seed(0).")
    return [int(torch.randint(2**62, (), generator=one, device=one and one.device)) for one in each]


def check_finite(finite: bool | Tensor) -> None:
    """Raises `ValueError` if something was not finite."""
    require(
        bool(finite),
        "the model gave NaN or infinite rates or logits. Check its weights and its dtype.",
    )
