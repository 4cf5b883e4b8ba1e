"""Writing behind the steps: what goes to the disk is copied first, so that training goes on while it is written.

In:  named tensors of a run, and actions that write them.
Out: the actions done one after another, in the order in which they came.

A write is as safe as in the foreground, since the action is the same. An error of the disk comes up at the next look.
Tensors are copied into memory that is kept for the next time; from a CUDA card into page-locked memory, which the card
fills at the speed of its bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from hfgpt.base import threads
from hfgpt.config import Config


def in_background(config: Config, device: str) -> bool:
    """Whether a run on this device writes behind its steps: as the recipe says; by itself on an accelerator."""
    return device != "cpu" if config.background_save == "auto" else config.background_save


class Writer:
    """Does actions at once, or in a thread of its own.

    Args:
        background: whether in a thread. It costs a copy of the tensors in host memory; on a CPU it would also take a
            core from the steps.
    """

    def __init__(self, background: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "write") if background else None
        self._pending: dict[str, Future[None]] = {}
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._held: list[tuple[str, Callable[[], None]]] | None = None  # to be begun at the end of together()

    @property
    def background(self) -> bool:
        """Whether actions are done behind the steps."""
        return self._pool is not None

    def copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, on the CPU; the last ones of this kind must be written, and are waited for.

        Raises:
            OSError: they could not be written.
        """
        if self._pool is None:
            return dict(tensors)
        self._wait_for(kind)
        kept = self._copies.setdefault(kind, {})
        for name in kept.keys() - tensors.keys():
            del kept[name]
        for name, tensor in tensors.items():
            if name not in kept or kept[name].shape != tensor.shape or kept[name].dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            kept[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            torch.accelerator.synchronize()
        return dict(kept)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Begin what is to be done inside at the end: writing takes bandwidth, and training waits for the copies."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for kind, action in held:
                self.do(kind, action)

    def do(self, kind: str, action: Callable[[], None]) -> None:
        """Do this, soon.

        Raises:
            OSError: it cannot be written, or the last one of its kind could not.
        """
        if self._pool is None:
            action()
            return
        if self._held is not None:
            self._held.append((kind, action))
            return
        self._wait_for(kind)
        with threads.unpinned():  # else the thread would share the one core of the thread that trains
            self._pending[kind] = self._pool.submit(action)

    def look(self) -> None:
        """Raise what an action failed of, if one did. Does not wait."""
        for kind, future in list(self._pending.items()):
            if future.done():
                del self._pending[kind]
                future.result()

    def wait(self) -> None:
        """Until everything is written.

        Raises:
            OSError: something could not be.
        """
        for kind in list(self._pending):
            self._wait_for(kind)

    def close(self) -> None:
        """Let what is under way end; never raises."""
        if self._pool is not None:
            self._pool.shutdown()

    def _wait_for(self, kind: str) -> None:
        if future := self._pending.pop(kind, None):
            future.result()
