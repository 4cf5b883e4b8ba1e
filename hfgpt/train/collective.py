"""What the processes of a run agree on: a few numbers, and whether the main one could do its work.

In:  numbers of this process; or an action for the main process.
Out: the numbers of all processes, or their sums, equal on every process; or the action's error on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from hfgpt.base.errors import InputError

T = TypeVar("T")

UNHURRIED = timedelta(days=1)  # one process may tokenise a large corpus for as long


def processes() -> int:
    """How many processes train this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(device: torch.device, *values: float) -> Tensor:
    """The numbers of every process, (processes, values) in float64 on the CPU, in order of rank. Collective.

    Args:
        device: where the run's communication backend expects its tensors.
        values: this process's numbers, as many on every process.
    """
    own = torch.tensor(values, dtype=torch.float64)
    if processes() == 1:
        return own[None]
    own = own.to(device)
    everyone = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone).cpu()


def total(device: torch.device, *values: float) -> list[float]:
    """The sums of the numbers over all processes, in float64. Collective."""
    sums: list[float] = gather(device, *values).sum(0).tolist()
    return sums


def set_patience(timeout: timedelta) -> None:
    """How long a process waits for another in the collectives that begin from here on."""
    if dist.is_initialized():
        _set_pg_timeout(timeout)


@contextmanager
def patiently(patience: timedelta) -> Iterator[None]:
    """Wait as long as it takes inside: the main process has work that the others do not share, such as a checkpoint.

    Args:
        patience: how long a process waits for another again afterwards.
    """
    set_patience(UNHURRIED)
    try:
        yield
    finally:
        set_patience(patience)


def on_main(action: Callable[[], T]) -> T | None:
    """Let the main process do something; returns its result there, None elsewhere. Collective.

    Raises:
        InputError: the action raised it; on every process alike, so that no process waits for another.
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
