"""Signals that end training at the next step instead of at once."""

import mmap
import os
import signal
import threading
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """Within this context Ctrl-C, SIGTERM and SIGHUP are noted in `signal` instead of ending the process.

    What is ignored stays ignored (`nohup`), and other threads than the main one note nothing.

    Args:
        once: whether the second signal acts as it did before: whoever insists does not want to wait. Not where a
            launcher passes on what the terminal has sent already.
    """

    def __init__(self, once: bool):
        self.signal: signal.Signals | None = None
        self._once = once
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self._training = mmap.mmap(-1, 1)  # shared with the workers that fetch rows
        if threading.current_thread() is threading.main_thread():
            known = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {number: handler for number, handler in known.items() if handler is not signal.SIG_IGN}
            self._process, self._training[0] = os.getpid(), 1
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        self._training[0] = 0
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if os.getpid() != self._process:  # a worker: the last step needs its rows, the end of the process its end
            if not self._training[0]:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        # not by print: what is interrupted may be printing
        os.write(
            2,
            f"\n{self.signal.name}: training stops after this step and saves a checkpoint.\n".encode(),
        )
        if self._once:
            self._restore()
