"""A few numbers, exchanged between the processes of a run.

In:  numbers of this process.
Out: the numbers of all processes, or their sums, equal on every process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
