"""Three processes that talk through shared memory and through gloo; started by torchrun from test_together.py.

It prints, by rank, what differed between the two, and what the others heard when one of them fell silent or ended.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hfgpt.together import PIECE, SharedMemory, Together, join

LONG = PIECE // 4 * 2 + 12_345  # numbers; more than two pieces


def gathered(shared: Together) -> bool:
    """Whether numbers arrive as they were given, in order of rank, a thousand times in a row."""
    rank, plain = dist.get_rank(), Together(torch.device("cpu"))
    for turn in range(1000):
        if turn % (rank + 2) == 0:
            time.sleep(0.0005)  # nobody comes at the same time
        if shared.gather(rank, turn / 3).tolist() != [[other, turn / 3] for other in range(3)]:
            return False
    return shared.gather(0.1 * rank).equal(plain.gather(0.1 * rank))


def averaged(shared: SharedMemory) -> tuple[float, bool]:
    """The largest difference of a mean of normal numbers to gloo's, and whether all processes have the same bits."""
    torch.manual_seed(dist.get_rank())
    numbers = torch.randn(LONG)
    expected = numbers / 3
    dist.all_reduce(expected)
    shared.mean_(numbers)
    everyone = [torch.empty_like(numbers) for _ in range(3)]
    dist.all_gather(everyone, numbers)
    return float((numbers - expected).abs().max()), all(each.equal(numbers) for each in everyone)


def gradients(together: Together) -> list[Tensor]:
    """Of a small model in DDP's wrapper, after a micro-batch that is not exchanged and one that is."""
    torch.manual_seed(0)
    wrapped = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.Linear(300, 7)))
    together.average_gradients(wrapped)
    torch.manual_seed(dist.get_rank())
    for _ in range(2):  # DDP orders its buckets anew after the first
        wrapped.zero_grad()
        with wrapped.no_sync():
            wrapped(torch.randn(5, 64)).square().mean().backward()
        wrapped(torch.randn(5, 64)).square().mean().backward()
    return [parameter.grad for parameter in wrapped.parameters()]


def heard(action: Callable[[], object]) -> str:
    """The kind of error that a meeting ends with."""
    began = time.monotonic()
    try:
        action()
    except dist.DistError as error:
        return f"{type(error).__name__} after {'no time' if time.monotonic() - began < 0.8 else 'a while'}: {error}"
    return "nothing"


def main() -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    shared = join(accelerator, timedelta(seconds=60))
    assert isinstance(shared, SharedMemory)
    worst, same = averaged(shared)
    pairs = zip(gradients(shared), gradients(Together(torch.device("cpu"))), strict=True)
    found = {
        "numbers": gathered(shared),
        "mean": worst,
        "same": same,
        "gradients": max(float((ours - theirs).abs().max()) for ours, theirs in pairs),
        "files": [name for name in os.listdir("/dev/shm") if "hfgpt" in name],
    }
    short = join(accelerator, timedelta(seconds=1))
    if rank != 2:
        found["silent"] = heard(lambda: short.gather(1.0))
    else:
        time.sleep(2.5)
    dist.barrier()
    shared.gather(0.0)  # from here on nobody is in a collective of gloo's any more
    if rank == 2:
        os._exit(0)
    found["gone"] = heard(lambda: shared.gather(1.0)) if rank == 0 else ""
    print(json.dumps(found), flush=True, file=sys.stderr if rank else sys.stdout)
    os._exit(0)  # without gloo's farewell, which would wait for the one that is gone


if __name__ == "__main__":
    main()
