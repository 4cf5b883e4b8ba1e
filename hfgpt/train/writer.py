"""Background writes: tensors are copied first, so that training continues while they are written to disk.

In:  named tensors of a run, and actions that write them.
Out: the actions done one after another, in the order in which they came.

A write is as safe as in the foreground, since the action is the same. A disk error is raised at the next
:meth:`Writer.look`, and the actions behind it are left out, as in the foreground: a checkpoint must not name as the
best a model that could not be written. Tensors are copied into memory that is reused; from a CUDA card into pinned
memory, which the card fills at the speed of its bus.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hfgpt.base import threads


class Writer:
    """Runs actions at once, or in a thread of its own.

    Args:
        background: whether to use a thread. It costs a copy of the tensors in host memory; on a CPU it would also take
            a core from the steps.
    """

    def __init__(self, background: bool) -> None:
        self._pool = threads.pool(1, "write") if background else None
        self._pending = list[Future[None]]()
        self._failed = threading.Event()  # set if an action failed; a new one once its error was raised
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._together: list[Callable[[], None]] | None = None  # start at the end of together()
        self._copied = set[str]()  # kinds copied inside together()

    @property
    def background(self) -> bool:
        return self._pool is not None

    def reserve(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Allocate memory for copies of tensors like these in the background, since allocation is slow."""
        if self._pool is not None:
            self._begin(lambda: _fit(self._copies.setdefault(kind, {}), tensors, touch=True))

    def copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors' present values, on the CPU.

        Copies reuse the memory of the last ones of their kind. So pending writes are waited for first; inside
        :meth:`together`, a second copy of a kind returns the first.

        Raises:
            OSError: something could not be written.
        """
        if self._pool is None:
            return dict(tensors)
        kept = self._copies.setdefault(kind, {})
        if kind in self._copied:
            return dict(kept)
        self.wait()
        _fit(kept, tensors, touch=False)
        for name, tensor in tensors.items():
            if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.int64):
                np.copyto(kept[name].numpy(), tensor.detach().numpy())  # one thread: torch's wait for each other
            else:
                kept[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            torch.accelerator.synchronize()
        if self._together is not None:
            self._copied.add(kind)
        return dict(kept)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Start the actions inside only at the end: writing takes bandwidth, and training waits for the copies."""
        self._together = []
        try:
            yield
        finally:
            actions, self._together = self._together, None
            self._copied.clear()
            for action in actions:
                self.do(action)

    def do(self, action: Callable[[], None]) -> None:
        """Run an action, soon. Raises: OSError: it runs at once, and cannot write."""
        if self._pool is None:
            action()
        elif self._together is not None:
            self._together.append(action)
        else:
            self._begin(action)

    def look(self) -> None:
        """Raise the error of a failed action, if there is one. Does not wait."""
        while self._pending and self._pending[0].done():
            self._take()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: something could not be written.
        """
        while self._pending:
            self._take()

    def close(self) -> None:
        """Let pending actions finish; never raises."""
        if self._pool is not None:
            self._pool.shutdown()

    def _begin(self, action: Callable[[], None]) -> None:
        assert self._pool is not None
        self._pending.append(self._pool.submit(_run, action, self._failed))

    def _take(self) -> None:
        """Wait for the first action, and raise its error."""
        try:
            self._pending.pop(0).result()
        except BaseException:
            self._pending.clear()
            self._failed = threading.Event()
            raise


def _run(action: Callable[[], None], failed: threading.Event) -> None:
    """Run an action, unless one before it failed."""
    if not failed.is_set():
        try:
            action()
        except BaseException:
            failed.set()
            raise


def _fit(kept: dict[str, Tensor], tensors: Mapping[str, Tensor], touch: bool) -> None:
    """Allocate room in `kept` for copies of exactly these tensors; with `touch`, its pages are resident afterwards."""
    for name in kept.keys() - tensors.keys():
        del kept[name]
    for name, tensor in tensors.items():
        if name not in kept or kept[name].shape != tensor.shape or kept[name].dtype != tensor.dtype:
            kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            if touch:
                kept[name].zero_()
