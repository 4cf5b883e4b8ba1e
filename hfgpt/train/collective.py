"""What the processes of a run tell each other: a few numbers.

In:  numbers of this process.
Out: the numbers of all processes, the same on each of them.
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
        device: where a collective of this run's backend finds its tensors.
        values: this process's numbers, as many on every process.
    """
    mine = torch.tensor(values, dtype=torch.float64)
    if processes() == 1:
        return mine[None]
    mine = mine.to(device)
    everyone = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone).cpu()
