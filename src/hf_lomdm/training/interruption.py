"""Signals that end training at the next step instead of at once."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interruption:
    """Within this context Ctrl-C, SIGTERM and SIGHUP are noted and do not end the process.

    What is ignored stays ignored (`nohup`), and other threads than the main one note nothing.

    Args:
        once: whether the second signal has its usual effect: a user who insists does not want to
            wait. Not where a launcher passes on what the terminal has sent already.
    """

    def __init__(self, once: bool):
        self.signal: signal.Signals | None = None
        self._once = once
        self._before: dict[int, object] = {}
        self._training = torch.zeros((), dtype=torch.bool).share_memory_()  # workers read it

    def __enter__(self) -> "Interruption":
        self._training.fill_(True)
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {
                number: handler
                for number, handler in handlers.items()
                if handler is not signal.SIG_IGN
            }
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        self._training.fill_(False)
        self._restore()

    def shield(self, loader: DataLoader) -> None:
        """Keeps the workers of `loader` at work until training ends; its last step needs them."""
        own = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader
        if getattr(own.worker_init_fn, "func", None) is not _stay:  # not shielded yet
            own.worker_init_fn = partial(_stay, self._training, own.worker_init_fn)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        message = f"\n{self.signal.name}: training stops after this step and saves a checkpoint.\n"
        os.write(2, message.encode())  # not by print: what is interrupted may be printing
        if self._once:
            self._restore()


def _stay(training: Tensor, initialise: Callable[[int], None] | None, worker: int) -> None:
    """The `worker_init_fn`: what is sent to all processes of a group ends no worker in training."""
    if initialise is not None:
        initialise(worker)

    def end(number: int, frame: FrameType | None) -> None:
        if not training:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in SIGNALS:  # here: torch sets SIGTERM's handler in a new worker
        signal.signal(number, end)
