"""A polite stop of a sweep: a signal goes on to the training in hand, which writes its checkpoint."""

from __future__ import annotations

import signal
import subprocess
from types import FrameType
from typing import Any

PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal ended the sweep politely; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """Passes SIGINT, SIGTERM and SIGHUP on to the training in hand, and remembers the first."""

    def __init__(self) -> None:
        self.received = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.stop_child()

    def stop_child(self) -> None:
        """Ask the training in hand to stop."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def __enter__(self) -> Signals:
        for number in PASSED_ON:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
