"""How predictable a text is, as its forecasts need it.

In:  what counting its n-grams gave (hfgpt/plan/ngrams.py, which needs numpy).
Out: :class:`Statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Cross-entropies in nats a character, on the held-out end of a text.

    Attributes:
        orders: of n-gram models of order 1, 2, …
        characters: how many were counted.
    """

    orders: tuple[float, ...]
    characters: int

    @property
    def unigram(self) -> float:
        """What knowing the characters' frequencies alone gives."""
        return self.orders[0]

    @property
    def best(self) -> float:
        """The lowest of them: what counting reaches on this text."""
        return min(self.orders)


# Of the embedded Shakespeare, counted once; a test counts again.
EMBEDDED = Statistics((3.3297, 2.4825, 2.0988, 1.9089, 1.907), 250_000)
