"""Collectives of a run: gather numbers, act on the main process alone, and set the timeout.

In:  numbers of this process; or an action for the main process.
Out: the numbers of all processes, or their sums, equal on every process; or the action's error on every process.

What waits for another process is inside :func:`in_time`, which :class:`Waiting` watches; what waits for the main
process's own work is inside :func:`patiently`, where neither it nor the timeout counts.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import ClassVar, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from hfgpt.base.errors import InputError

T = TypeVar("T")
UNHURRIED = timedelta(days=1)  # one process may take this long to tokenise a large corpus


def processes() -> int:
    """Return how many processes train this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(device: torch.device, *values: float) -> Tensor:
    """Return every process's numbers: (processes, values) in float64 on the CPU, in rank order. Collective.

    Args:
        device: the device on which the communication backend expects its tensors.
        values: this process's numbers; every process passes equally many.
    """
    local = torch.tensor(values, dtype=torch.float64)
    if processes() == 1:
        return local[None]
    with in_time():
        local = local.to(device)
        everyone = [torch.empty_like(local) for _ in range(processes())]
        dist.all_gather(everyone, local)
        return torch.stack(everyone).cpu()


def total(device: torch.device, *values: float) -> list[float]:
    """Return the sums of the numbers over all processes, in float64. Collective."""
    sums: list[float] = gather(device, *values).sum(0).tolist()
    return sums


def set_patience(timeout: timedelta) -> None:
    """Set how long a process waits for another in the collectives that begin from here on."""
    if dist.is_initialized():
        _set_pg_timeout(timeout)


@contextmanager
def patiently(patience: timedelta) -> Iterator[None]:
    """Wait inside as long as the main process works alone, as on a checkpoint; `patience` is restored afterwards."""
    set_patience(UNHURRIED)
    try:
        with Waiting.active.paused() if Waiting.active else nullcontext():
            yield
    finally:
        set_patience(patience)


@contextmanager
def in_time() -> Iterator[None]:
    """Have the active :class:`Waiting`, if there is one, watch what runs inside: it must end in time."""
    with Waiting.active.action() if Waiting.active else nullcontext():
        yield


def on_main(action: Callable[[], T]) -> T | None:
    """Run an action on the main process; return its result there, None elsewhere. Collective.

    Raises:
        InputError: the action raised it; every process raises it, so that no process waits for another.
    """
    result, problem = None, ""
    if PartialState().is_main_process:
        try:
            result = action()
        except InputError as error:
            problem = error.report()
    if problem := broadcast_object_list([problem])[0]:
        raise InputError(problem)
    return result


SHARE = 0.9  # share of the patience after which the message is due


class Waiting:
    """Watch actions from a thread, and print a message before NCCL aborts this process; a context manager.

    gloo raises an error in the waiting step, and the run explains it. NCCL's watchdog aborts the process from its own
    thread, without a message that a user could act on.

    Args:
        patience: seconds that NCCL's watchdog allows an action.
        tell: prints the message; called at most once, from the thread.
    """

    active: "ClassVar[Waiting | None]" = None

    def __init__(self, patience: float, tell: Callable[[], None]) -> None:
        self._patience, self._tell = patience, tell
        self._state = threading.Condition()
        self._began: float | None = None
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        Waiting.active = self
        return self

    def __exit__(self, *_reason: object) -> None:
        Waiting.active = None
        with self._state:
            self._over = True
            self._state.notify()
        self._thread.join()

    def action(self) -> AbstractContextManager[None]:
        """Watch what runs inside: it must end in time. An action inside another one is a part of it."""
        return self._since(time.monotonic() if self._began is None else self._began)

    def paused(self) -> AbstractContextManager[None]:
        """Watch nothing inside, whatever action begins there."""
        return self._since(math.inf)

    @contextmanager
    def _since(self, began: float) -> Iterator[None]:
        before, self._began = self._began, began
        try:
            yield
        finally:
            self._began = before

    def _watch(self) -> None:
        with self._state:
            while not self._over:
                began = self._began
                full = self._patience * SHARE
                left = full if began is None else began + full - time.monotonic()
                if left <= 0:
                    self._tell()
                    return
                self._state.wait(min(full, max(left, 0.01)))
