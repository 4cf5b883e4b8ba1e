"""A word before NCCL ends a process that waits in vain.

In:  when a step begins and ends, and how long a process may wait for another.
Out: one message, shortly before that time is over: what happened, and how to go on.

gloo raises an error in the step that waits, and the run explains it. NCCL's watchdog aborts the process from its own
thread, without a word that a user could act on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.9  # of the patience, after which the message is due


class Waiting:
    """Watches one action at a time from a thread; use as a context.

    Args:
        patience: seconds that NCCL's watchdog leaves an action.
        tell: says the message; called at most once, from the thread.
    """

    def __init__(self, patience: float, tell: Callable[[], None]) -> None:
        self._patience, self._tell = patience, tell
        self._state = threading.Condition()
        self._began: float | None = None
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        with self._state:
            self._over = True
            self._state.notify()
        self._thread.join()

    @contextmanager
    def action(self) -> Iterator[None]:
        """What is done inside must end in time."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def _watch(self) -> None:
        with self._state:
            while not self._over:
                began = self._began
                left = self._patience * SHARE if began is None else began + self._patience * SHARE - time.monotonic()
                if began is not None and left <= 0:
                    self._tell()
                    return
                self._state.wait(max(left, 0.01))
