"""Signals that end a run after the current step is finished and saved."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

_ECHO_SECONDS = 2.0
# Ctrl-C; kill and preemption; what schedulers send some time before a job's end (Slurm's --signal, submitit).
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def leave_to_the_main_process(_: int = 0) -> None:
    """In a data worker: a signal to the whole process group must not end it before the step at hand is saved."""
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)


class Interrupted(Exception):
    """A signal came while ``StopSignal.interrupting`` was open."""


class StopSignal:
    """Records SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 while it is open, so that a step is finished and saved.

    ``received``: the first signal's number, 0 for none. A second Ctrl-C interrupts at once, but for those of the first
    seconds: a Ctrl-C reaches a process from the terminal and again from torchrun.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._interrupts = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in _HANDLED:
            with contextlib.suppress(ValueError):  # not the main thread: leave signals as they are
                self._former[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted at once: for long work that can be dropped anywhere."""
        self._interrupts = True
        try:
            if self.received:
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def pass_on(self) -> None:
        """Raise the signal again for its former handler, once the work is saved: submitit then requeues the job."""
        former = self._former.get(self.received)
        if callable(former) and former is not signal.default_int_handler:
            signal.raise_signal(self.received)

    def _set(self, number: int, _: Any) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if self._interrupts:
                raise Interrupted
        elif number == signal.SIGINT and time.monotonic() - self._since > _ECHO_SECONDS:
            raise KeyboardInterrupt
