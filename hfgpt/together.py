"""What the processes of a run tell each other at every step: a few numbers, and their gradients.

In:  numbers of this process; a model in DDP's wrapper.
Out: the numbers of all processes; gradients that are the mean over them.

Accelerate and torch.distributed do this wherever there is an accelerator or a network in between. Between the processes
of one machine's CPU, gloo goes through TCP and through threads of its own, which takes 1 to 3 ms each time where the
step of a small model takes 25. :class:`SharedMemory` takes less than one: everyone writes into a piece of memory that
all of them see, they meet, and everyone adds up what is there, in the same order.
"""

# No annotations from __future__ here: DDP reads those of its hook.
import mmap
import os
import secrets
import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn

PIECE = 2**21  # bytes that one process lays out for the others at a time; larger pieces leave the cache


class Together:
    """The processes of a run, over torch.distributed's own collectives; also where there is only one process.

    Args:
        device: where a collective of this run's backend finds its tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.count = dist.get_world_size() if dist.is_initialized() else 1

    def gather(self, *values: float) -> Tensor:
        """(processes, values) float64 on the CPU: what each process gave, in order of rank. Collective."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.count == 1:
            return mine[None]
        mine = mine.to(self._device)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def average_gradients(self, model: nn.Module) -> None:
        """Have the backward pass end with the mean of all gradients. DDP does, and FSDP, and DeepSpeed: by itself."""


class SharedMemory(Together):
    """The processes of one machine that train on its CPU. To make one is collective.

    Each has two places in the memory, which it uses in turn: while the others still read one, it writes the other, and
    before it comes to the first again they have met once more. They meet over Unix sockets, so that one who waits takes
    no time from the others, and hears of it when somebody has died.

    Args:
        rank: of this process.
        timeout: that a process waits for another.
    """

    def __init__(self, rank: int, timeout: timedelta) -> None:
        super().__init__(torch.device("cpu"))
        self._rank, self._turn = rank, 0
        memory, self._others = _share(rank, self.count, timeout)
        self._places = torch.frombuffer(memory, dtype=torch.uint8).view(2, self.count, PIECE)

    def gather(self, *values: float) -> Tensor:
        """(processes, values) float64: what each process gave, in order of rank. Collective."""
        places = self._next().view(torch.float64)[:, : len(values)]
        places[self._rank] = torch.tensor(values, dtype=torch.float64)
        self._meet()
        return places.clone()

    def mean_(self, numbers: Tensor) -> Tensor:
        """Put the mean over the processes in the place of a tensor of float32; returns the same. Collective.

        The sums are made in order of rank everywhere, so all processes get the same bits.
        """
        for piece in numbers.view(-1).split(PIECE // numbers.element_size()):
            places = self._next().view(piece.dtype)[:, : len(piece)]
            torch.mul(piece, 1 / self.count, out=places[self._rank])
            self._meet()
            torch.add(places[0], places[1], out=piece)
            for place in places[2:]:
                piece.add_(place)
        return numbers

    def average_gradients(self, model: nn.Module) -> None:
        """Have the backward pass end with the mean of all gradients: :meth:`mean_` in the place of DDP's all-reduce."""
        wrapped: Any = model  # DDP's module, maybe in that of torch.compile, which hands the call on
        wrapped.register_comm_hook(self, _average)

    def _next(self) -> Tensor:
        """(processes, PIECE) bytes: the places that nobody reads any more."""
        self._turn ^= 1
        return self._places[self._turn]

    def _meet(self) -> None:
        """Wait until everyone is here; what they wrote before can be read after."""
        try:
            if self._rank:
                self._others[0].sendall(b".")
                _hear(self._others[0])
            else:
                for other in self._others:
                    _hear(other)
                for other in self._others:
                    other.sendall(b".")
        except OSError as error:
            raise dist.DistNetworkError(str(error)) from None


def _hear(other: socket.socket) -> None:
    if not other.recv(1):
        raise ConnectionResetError("connection closed by another process")


def _average(together: SharedMemory, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: a bucket's gradients become their mean."""
    done = torch.futures.Future[Tensor]()
    done.set_result(together.mean_(bucket.buffer()))
    return done


def _share(rank: int, count: int, timeout: timedelta) -> tuple[mmap.mmap, list[socket.socket]]:
    """Memory that all processes see, and where they are heard: rank 0 by all others, they by rank 0.

    Memory and address have no name in any folder, so nothing is left of them however a process ends.
    """
    bytes_ = 2 * count * PIECE
    if rank == 0:
        memory = os.memfd_create("hfgpt")
        os.truncate(memory, bytes_)
        address = "\0hfgpt-" + secrets.token_hex(16)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(address)
            door.listen(count)
            door.settimeout(timeout.total_seconds())
            broadcast_object_list([address])
            others = [door.accept()[0] for _ in range(count - 1)]
        for other in others:
            socket.send_fds(other, [b"."], [memory])
    else:
        [address] = broadcast_object_list([None])
        others = [socket.socket(socket.AF_UNIX)]
        others[0].connect(address)
        _, [memory], _, _ = socket.recv_fds(others[0], 1, 1)
    for other in others:
        other.settimeout(timeout.total_seconds())
    mapped = mmap.mmap(memory, bytes_)
    os.close(memory)
    return mapped, others


def join(accelerator: Accelerator, timeout: timedelta) -> Together:
    """The way that these processes have to each other. Collective.

    Args:
        timeout: that a process waits for another, where torch.distributed's own does not count.
    """
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.MULTI_CPU and one_machine and sys.platform == "linux":
        return SharedMemory(accelerator.process_index, timeout)
    return Together(accelerator.device)
