"""A text while it is being written: the state after each step, and a state as HTML.

The pipeline runs in a thread of its own; nothing here needs a user interface.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import Any, Literal

import torch

from ..modeling.settings_lomdm import check_setting
from ..pipelines.canvas_lomdm import windows
from .html import colour_ramp, colour_style, escape, token_span
from .terminal import token_texts

# seconds that a run waits for somebody to take its next state; then nobody is there any more
PATIENCE = 30.0
BLANK = "\u00a0\u00a0"
STYLE = (  # nested, so that it stays within
    ".live {"
    + colour_style()
    + "i { display: inline-block; width: .8em; height: 1em; vertical-align: -.1em; }\n"
    ".text .masked { margin-right: .15rem; }\n}"
)


@dataclass(frozen=True)
class LiveState:
    """A text of `L` tokens after `step` of at most `num_steps` steps.

    tokens: `L` texts, which joined are the text; that of a masked token says nothing.
    order: `L` steps of reveal, 0-based; -1 = given, `None` = still masked.
    rates: `L` rates `v`, those by which the positions of this step were drawn; `None` where nothing
        was to be drawn.
    highest_rate: the highest rate of the run so far, 0 before the first step.
    text: the finished text as the pipeline gives it; `None` while it is being written.
    """

    step: int
    num_steps: int
    tokens: list[str]
    order: list[int | None]
    rates: list[float | None]
    highest_rate: float = 0.0
    text: str | None = None


class _Stopped(Exception):
    """Ends a run from within its callback."""


class _Follower:
    """The callback of one run: hands the state after each step to whoever reads `states`."""

    def __init__(
        self, pipe: Any, prompt: Any, max_length: int | None, most_steps: int, sampler: str | None
    ):
        # laid out as the pipeline will do it, so that bad input is refused before a thread starts
        self.row = pipe.make_canvas(prompt, max_length, None, 1).rows[0]
        self.windows = [
            (firsts[0], width) for firsts, width in windows([self.row], pipe.model.config)
        ]
        self.tokenizer, self.mask = pipe.tokenizer, pipe.model.config.mask_token_id
        changes = {} if sampler is None else {"sampler": sampler}
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
        self.steps = scheduler.num_useful_steps(most_steps, self.row.count(self.mask))
        self.window_steps = self.steps + scheduler.num_corrector_steps
        self.order = [None if token == self.mask else -1 for token in self.row]
        self.highest, self.states, self.stop, self.place = 0.0, SimpleQueue(), Event(), Semaphore(1)

    def state(self, step: int, rates: list[float | None]) -> LiveState:
        tokens = token_texts(self.tokenizer, self.row)
        return LiveState(
            step,
            self.window_steps * len(self.windows),
            tokens,
            list(self.order),
            rates,
            self.highest,
        )

    def __call__(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]
    ) -> None:
        if self.stop.is_set():
            raise _Stopped
        first, _ = self.windows[step // self.window_steps]
        rates, busy = [None] * len(self.row), False
        columns = (tensors[name][0].tolist() for name in ("sample", "revealed", "rates"))
        for i, (token, revealed, rate) in enumerate(zip(*columns, strict=True), start=first):
            self.row[i] = token
            if revealed or token == self.mask:  # which may be masked again
                self.order[i] = step if revealed else None
                rates[i], busy = rate, True
        if busy:  # else the window is full, and its last steps do nothing
            self.highest = max(self.highest, *(rate for rate in rates if rate is not None))
            self._hand_over(self.state(step + 1, rates))

    def _hand_over(self, state: LiveState) -> None:
        """Gives a state to the reader; the run is at most one state ahead of it."""
        if not self.place.acquire(timeout=PATIENCE):
            raise TimeoutError(
                f"nobody took the text's state for {PATIENCE} s, so writing was ended. Start again."
            )
        self.states.put(state)


def stream(
    pipe: Any,
    prompt: str | list[int] | None = None,
    num_inference_steps: int = 64,
    max_length: int | None = None,
    sampler: str | None = None,
    temperature: float | None = None,
    seed: int = 0,
    allowed_tokens: dict[int, list[int]] | None = None,
) -> Iterator[LiveState]:
    """Writes one text and yields its state before the first step, after every step, and finished.

    Calls may run at the same time on one pipeline: each has its own generator and scheduler, the
    model is only read. The text is that of `pipe(prompt, ...,
    generator=[torch.Generator().manual_seed(seed)])`. To stop early, close the iterator.

    Args:
        pipe: a `LoMDMPipeline` in eval mode, with a tokenizer.
        prompt: a prefix, a template with mask tokens, or the token ids of one, or `None`.
        num_inference_steps, max_length, sampler, temperature, allowed_tokens: as in the
            pipeline's call. Steps beyond one per masked position are left out where they change
            nothing (`LoMDMScheduler.num_useful_steps`).
        seed: of the generator, 0 or more.
    Raises:
        ValueError: input that cannot be used, at once or with the first state, with its name, value
            and the remedy.
    """
    _check(pipe, num_inference_steps, seed)
    prompt = [prompt] if isinstance(prompt, list) else prompt
    # the same model; what a call writes on its pipeline is not shared
    own = type(pipe)(**pipe.components)
    own.set_progress_bar_config(disable=True)
    follower = _Follower(own, prompt, max_length, num_inference_steps, sampler)
    options = {
        "num_inference_steps": follower.steps,
        "max_length": max_length,
        "sampler": sampler,
        "temperature": temperature,
        "allowed_tokens": allowed_tokens,
        "generator": [torch.Generator().manual_seed(seed)],
        "callback_on_step_end": follower,
        "callback_on_step_end_tensor_inputs": ["sample", "rates", "revealed"],
    }
    return _states(own, prompt, follower, options)


def _check(pipe: Any, num_inference_steps: int, seed: int) -> None:
    if pipe.tokenizer is None:
        raise ValueError(
            "pipe has no tokenizer (None), so there is no text to show. Load a folder that has one."
        )
    check_setting("num_inference_steps", num_inference_steps)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(
            f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}. Pass for example 0."
        )


def _states(
    pipe: Any, prompt: Any, follower: _Follower, options: dict[str, Any]
) -> Iterator[LiveState]:
    """Runs the pipeline in a thread; a reader who leaves ends the run within a step."""
    state = follower.state(0, [None] * len(follower.row))
    yield state
    thread = ThreadPoolExecutor(1, "live")
    run = thread.submit(pipe, prompt, **options)
    run.add_done_callback(lambda _: follower.states.put(None))
    # ends with the run; nobody waits here, where the loop may be that serves everybody
    thread.shutdown(wait=False)
    try:
        while (following := follower.states.get()) is not None:
            state = following
            yield state
            follower.place.release()
        yield _finished(follower, run.result(), state.step)
    finally:
        follower.stop.set()
        follower.place.release()


def _finished(follower: _Follower, output: Any, step: int) -> LiveState:
    """The state of the whole text; an EOS may have cut it."""
    follower.row, follower.order = output.sequences[0].tolist(), output.order[0].tolist()
    return replace(follower.state(step, [None] * len(follower.row)), text=output.texts[0])


def live_html(state: LiveState, title: str = "", kind: Literal["text", "grid"] = "text") -> str:
    """A state as HTML: the text, and boxes for masked tokens, with bars for their rates.

    The colours of revealed tokens are those of `write_order_html`, dark blue early and yellow late,
    over all steps planned; what this step revealed has a red frame. All text is escaped.
    """
    masked = sum(step is None for step in state.order)
    written = sum(step is not None and step >= 0 for step in state.order)
    status = (
        f"step {state.step} of {state.num_steps}: {written} of {written + masked} tokens revealed"
    )
    spans = "".join(_span(state, i) for i in range(len(state.order)))
    return (
        f'<div class="live"><style>{STYLE}</style><p role="status">{escape(title)} {status}</p>'
        f'<div class="{kind}" dir="auto">{spans}</div>'
        f'<p>revealed first <span role="img" aria-label="colours from early to late">'
        f'{colour_ramp()}</span> revealed last, <span class="given">given</span>, '
        f'<span class="masked">{BLANK}</span> masked, its bar the rate</p></div>'
    )


def _span(state: LiveState, position: int) -> str:
    step, rate = state.order[position], state.rates[position]
    if step is None:
        share = 0.0 if rate is None else rate / state.highest_rate
        style = f'style="--rate: {share:.2f}"'
        return f'<span class="t masked" {style} aria-hidden="true">{BLANK}</span>'
    span = token_span(state.tokens[position], step, state.num_steps - 1)
    now = step == state.step - 1 and state.text is None
    return span.replace('class="t ', 'class="t now ', 1) if now else span
