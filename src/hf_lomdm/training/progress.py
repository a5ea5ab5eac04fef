"""What a run tells its user: loss, perplexity, speed and time left, and a text now and then."""

import math
import sys
import time

from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer

from ..visualization.terminal import visible

LONGEST_WAIT = 30.0  # seconds between two lines, in the end
SHOWN = 64  # tokens of a text that is written during training


class Progress(ProgressCallback):
    """A bar on a terminal, lines elsewhere: after each step or so at first, then more rarely.

    All other terms of the loss go to the loggers of `report_to` alone.
    """

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.trainer = trainer
        self.on_terminal = sys.stderr.isatty() and not trainer.args.disable_tqdm
        self._begin()

    def on_train_begin(self, args, state, control, **kwargs):
        """Begins the bar."""
        self._begin()
        self._first = state.global_step
        if self.on_terminal:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar, or prints a line if there was none for a while."""
        if not state.is_world_process_zero:
            return
        self._loss = self._loss + self.trainer.step_loss
        self._tokens = self._tokens + self.trainer.step_tokens
        self._steps += 1
        if self.on_terminal:
            super().on_step_end(args, state, control, **kwargs)
        now = time.monotonic()
        wait = min(max(1.0, (now - self._started) / 10), LONGEST_WAIT)
        if now - self._told >= wait or state.global_step in (self._first + 1, state.max_steps):
            self._tell(self._line(state, now - self._told))
            self._told, self._loss, self._tokens, self._steps = now, 0.0, 0, 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Moves the bar of an evaluation."""
        if self.on_terminal:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Prints nothing: loggers have it."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Prints the measures of the validation text, and a text that the model writes now."""
        super().on_evaluate(args, state, control, **kwargs)
        if not (self.trainer.is_in_train and state.is_world_process_zero):
            return
        loss, error = metrics.get("eval_nelbo"), metrics.get("eval_nelbo_standard_error", math.nan)
        if loss is not None:
            range_ = "" if math.isnan(error) else f" +- {error:.4f}"
            self._print(f"step {state.global_step}: validation {loss:.4f}{range_} nats per token")
        if self.trainer.can_sample:
            text = self.trainer.sample_texts(1, SHOWN, state.global_step)[0]
            self._print(f"step {state.global_step} writes: {visible(text)}")

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar."""
        if self.on_terminal:
            super().on_train_end(args, state, control, **kwargs)

    def _begin(self) -> None:
        self._started = self._told = time.monotonic()
        self._loss: Tensor | float = 0.0
        self._tokens: Tensor | int = 0
        self._steps, self._first = 0, 0

    def _line(self, state, seconds: float) -> str:
        """Means over the steps since the last line; with several processes of the first one."""
        loss, tokens = float(self._loss) / self._steps, int(self._tokens)
        done = state.global_step - self._first
        left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return (
            f"step {state.global_step}/{state.max_steps}: loss {loss:.4f} nats per token "
            f"(perplexity {perplexity:.4g}), {tokens / max(seconds, 1e-9):,.0f} tokens/s, "
            f"{say_time(left)} left"
        )

    def _tell(self, line: str) -> None:
        if self.on_terminal:
            self.training_bar.set_postfix_str(line.partition(": ")[2].rpartition(", ")[0])
        else:
            print(line, flush=True)

    def _print(self, line: str) -> None:
        if self.on_terminal and self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)


def say_time(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def tell_progress(trainer: Trainer) -> None:
    """Puts `Progress` in the place of what transformers prints."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Progress(trainer))
