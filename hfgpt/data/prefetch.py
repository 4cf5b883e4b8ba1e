"""The next step's batch, prepared while this step runs.

In:  batches of any kind.
Out: :class:`Prefetched`: the same batches and states, sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class AnyBatches(Protocol):
    """The batches of each optimizer step, whatever they come from."""

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """The blocks of one process for one step, a micro-batch at a time: (micro_batch, block_size + 1)."""

    def figures(self, step: int) -> dict[str, float]:
        """What the record says of the data seen before a step."""

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the next step: a small dict that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class _Prepared(NamedTuple):
    asked: tuple[int, int, int, int]
    before: dict[str, Any]  # the state before these batches were drawn
    batches: Future[list[NDArray[np.int64]]]


class Prefetched:
    """Batches whose next step is prepared in a thread; the state is that of the last step that was asked for."""

    def __init__(self, batches: AnyBatches) -> None:
        self._batches = batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        self._next: _Prepared | None = None

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """See :class:`AnyBatches`."""
        asked = (step, rank, world, micro_batch)
        if self._next is None or self._next.asked != asked:
            self._forget()
            self._next = self._prepare(asked)
        ready = self._next.batches.result()
        self._next = self._prepare((step + 1, rank, world, micro_batch))
        yield from ready

    def _prepare(self, asked: tuple[int, int, int, int]) -> _Prepared:
        before = self._batches.state_dict()
        return _Prepared(asked, before, self._thread.submit(lambda: list(self._batches.micro_batches(*asked))))

    def _forget(self) -> None:
        """Take back what was prepared for another step."""
        if self._next is not None:
            self._next.batches.exception()  # waits for its end
            self._batches.load_state_dict(self._next.before)
            self._next = None

    def figures(self, step: int) -> dict[str, float]:
        """See :class:`AnyBatches`."""
        return self._batches.figures(step)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`AnyBatches`."""
        return self._batches.state_dict() if self._next is None else self._next.before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`AnyBatches`."""
        if self._next is not None:
            self._next.batches.exception()
            self._next = None
        self._batches.load_state_dict(state)
