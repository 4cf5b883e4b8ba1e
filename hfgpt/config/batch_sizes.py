"""How many sequences each optimizer step trains on: as many as the recipe says, or fewer at first.

In:  the global batch, and the steps over which it is reached.
Out: the size of any step's batch, and the sequences that came before it; whole numbers, the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple


class BatchSizes(NamedTuple):
    """The global batch rises in a line over `warmup` steps to `full` sequences, and stays there."""

    full: int
    warmup: int = 0

    def at(self, step: int) -> int:
        """Sequences of the step that follows `step` steps; at least one."""
        return self.full if step >= self.warmup else max(1, self.full * (step + 1) // (self.warmup + 1))

    def before(self, step: int) -> int:
        """Sequences of the first `step` steps together."""
        rise = _rise(self)
        return rise[step] if step < self.warmup else rise[-1] + (step - self.warmup) * self.full

    def steps(self, sequences: float) -> float:
        """The first steps that have so many sequences together; the inverse of :meth:`before`."""
        rise = _rise(self)
        if sequences >= rise[-1]:
            return self.warmup + (sequences - rise[-1]) / self.full
        return float(bisect_right(rise, sequences) - 1)


@lru_cache(maxsize=16)
def _rise(sizes: BatchSizes) -> tuple[int, ...]:
    """The sequences before each step of the warm-up, and before the first step after it."""
    return tuple(accumulate(map(sizes.at, range(sizes.warmup)), initial=0))
