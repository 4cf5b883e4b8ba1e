"""Sequences in each optimizer step: as many as the recipe says, or fewer during a batch-size warm-up.

In:  the global batch, and the number of warm-up steps.
Out: the batch size of any step, and the sequences before it, as integers that are the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple


class BatchSizes(NamedTuple):
    """The global batch: rises linearly over `warmup` steps to `full` sequences, then stays constant."""

    full: int
    warmup: int = 0

    def at(self, step: int) -> int:
        """Return the sequences in the step after the first `step` steps; at least one."""
        return self.full if step >= self.warmup else max(1, self.full * (step + 1) // (self.warmup + 1))

    def before(self, step: int) -> int:
        """Return the total sequences in the first `step` steps."""
        rise = _rise(self)
        return rise[step] if step < self.warmup else rise[-1] + (step - self.warmup) * self.full

    def steps(self, sequences: float) -> float:
        """Return how many steps it takes to train on this many sequences; the inverse of :meth:`before`."""
        rise = _rise(self)
        if sequences >= rise[-1]:
            return self.warmup + (sequences - rise[-1]) / self.full
        return float(bisect_right(rise, sequences) - 1)


@lru_cache(maxsize=16)
def _rise(sizes: BatchSizes) -> tuple[int, ...]:
    """Return the total sequences before each warm-up step and before the first step after the warm-up."""
    return tuple(accumulate(map(sizes.at, range(sizes.warmup)), initial=0))
