"""When to stop early: on a signal, or when the job's time is up.

In:  SIGTERM, SIGINT, SIGHUP (a closed terminal), SIGUSR1 (Slurm, before a job's end), SIGBREAK (Windows), `max_time`.
Out: `requested()`, the same answer on every process at the same step.

The first signal lets the current step finish. The same signal again ends the process at once, which is harmless: a
checkpoint is never half-written. One request may arrive twice: a launcher forwards a SIGTERM that its whole group
received, and sends one after a Ctrl-C. So a different signal, or one within a second, changes nothing. A signal that
the process was started to ignore (nohup) stays ignored.
"""

import os
import signal
import time
from types import FrameType
from typing import Any, Self

import torch

from hfgpt.base.language import _
from hfgpt.train.collective import gather, processes

TIME_IS_UP = 1000  # beyond every signal number

SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
]

BETWEEN_QUESTIONS = 0.5  # seconds, roughly, between two checks of several processes for a reason to stop
_ECHO = 1.0  # a signal within so many seconds is a launcher's echo of the first


class Stop:
    """Watches for a reason to stop; a context manager, which restores the signal handlers.

    Args:
        deadline: stop at this time, by time.monotonic; None: never.
        device: the device on which the communication backend expects its tensors.
    """

    def __init__(self, deadline: float | None, device: torch.device) -> None:
        self._deadline = float("inf") if deadline is None else deadline
        self._device = device
        self._received, self._when = 0, 0.0
        self._previous: dict[int, Any] = {}
        self._last_exchange = 0, time.monotonic()  # the step and the time at which processes last asked each other
        self._next: int | None = None  # the step at which they ask again; None: at once

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_rest: object) -> None:
        if failure is not None and processes() > 1:
            return  # if a process is lost, the launcher sends the others a SIGTERM: let them report first
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received == number and time.monotonic() - self._when > _ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self._received:
            self._received, self._when = number, time.monotonic()

    def signalled(self) -> int:
        """Return the number of the signal that any process received, or 0. Collective."""
        number = int(gather(self._device, self._received).max())
        if number:
            self._next = None  # they ask each other at once
        return number

    def asks(self, step: int) -> bool:
        """Whether :meth:`requested` asks the other processes at this step; the same on every process."""
        return processes() == 1 or self._next is None or step >= self._next

    def requested(self, step: int, needed: float = 0.0) -> int:
        """Return 0, the signal's number, or TIME_IS_UP. Collective: call it at every step.

        Several processes synchronise about every half second, so that a short step does not wait for an all-gather.

        Args:
            step: the number of finished steps, the same on every process.
            needed: seconds that the end takes (an evaluation, a checkpoint); the time is up that much earlier.
        """
        if not self.asks(step):
            return 0
        now, (last_step, last_time) = time.monotonic(), self._last_exchange
        local = self._received or (TIME_IS_UP if now + needed >= self._deadline else 0)
        answers = gather(self._device, local, (now - last_time) / max(1, step - last_step))
        slowest = float(answers[:, 1].max())
        self._next = step + (max(1, min(100, int(BETWEEN_QUESTIONS / slowest))) if step > last_step > 0 else 1)
        self._last_exchange = step, now
        return int(answers[:, 0].max())


def describe(reason: int) -> str:
    """Describe a reason returned by :meth:`Stop.requested`."""
    if reason == TIME_IS_UP:
        return _("max_time is reached")
    return _("{signal} received", signal=signal.Signals(reason).name)
