"""A weighted mix of corpora: which corpus each sequence comes from.

In:  the corpora's weights, and a seed.
Out: :class:`Pattern`: for each row of the endless sequence, its corpus and its index among that corpus's rows.

The pattern depends only on seed and position. Each ROUND of rows holds each corpus in its weight's share, to within one
row, in shuffled order; over many rounds the shares are exact.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hfgpt.config.fields import BatchSizes
from hfgpt.data.blocks import AnyBatches, TokenStream, order, share_of

ROUND = 4096  # rows


class Pattern:
    """Which corpus each row comes from.

    Args:
        weights: the corpora's weights; positive, in any unit.
        seed: numbers that determine the order within each round.
    """

    def __init__(self, weights: Sequence[float], *seed: int) -> None:
        self._shares = np.array(weights, dtype=np.float64) / sum(weights)
        self._rest = int(self._shares.argmax())  # absorbs the others' rounding
        self._seed = seed
        self._of_round = lru_cache(maxsize=2)(self._shuffled)

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Return how many of the first `rows` rows come from each corpus."""
        number, within = divmod(rows, ROUND)
        return self._before(number) + np.bincount(self._of_round(number)[0][:within], minlength=len(self._shares))

    def rows(self, first: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the corpora of the rows [first, first + n), and the rows' indices within those corpora."""
        number, within = divmod(first, ROUND)
        corpora, numbers = (part[within : within + n] for part in self._of_round(number))
        if len(corpora) == n:
            return corpora, numbers
        more = self.rows(first + len(corpora), n - len(corpora))
        return np.concatenate([corpora, more[0]]), np.concatenate([numbers, more[1]])

    def _before(self, number: int) -> NDArray[np.int64]:
        """Return how many rows of each corpus precede a round."""
        counts = np.floor(number * ROUND * self._shares).astype(np.int64)
        counts[self._rest] = 0
        counts[self._rest] = number * ROUND - counts.sum()
        return counts

    def _shuffled(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before, behind = self._before(number), self._before(number + 1)
        corpora = np.repeat(np.arange(len(before)), behind - before)
        corpora = np.random.RandomState((*self._seed, number)).permutation(corpora)
        numbers = np.empty(ROUND, dtype=np.int64)
        for corpus, start in enumerate(before):
            places = np.flatnonzero(corpora == corpus)
            numbers[places] = start + np.arange(len(places))
        return corpora, numbers


class MixedBatches(AnyBatches):
    """The global batch of each step from several corpora, in an order determined by seed and step."""

    def __init__(
        self,
        corpora: dict[str, TokenStream],
        weights: Sequence[float],
        block_size: int,
        global_batch: int,
        seed: int,
        warmup: int = 0,
    ) -> None:
        self._names, self._streams = list(corpora), list(corpora.values())
        self._block_size, self._sizes, self._seed = block_size, BatchSizes(global_batch, warmup), seed
        self._pattern = Pattern(weights, seed)

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        first = self._sizes.before(step)
        for rows in share_of(self._sizes.at(step), rank, world, micro_batch):
            corpora, numbers = self._pattern.rows(first + rows.start, len(rows))
            out = np.empty((len(rows), self._block_size + 1), dtype=np.int64)
            for corpus, stream in enumerate(self._streams):
                here = corpora == corpus
                chosen = order(stream.n_blocks(self._block_size), self._seed, numbers[here])
                out[here] = stream.blocks(chosen, self._block_size)
            yield out

    def figures(self, step: int) -> dict[str, float]:
        counts = self._pattern.counts(self._sizes.before(step))
        blocks = [stream.n_blocks(self._block_size) for stream in self._streams]
        figures = shares_seen(self._names, counts)
        return figures | {
            f"epoch/{name}": float(n) / of for name, n, of in zip(self._names, counts, blocks, strict=True)
        }


def shares_seen(names: Sequence[str], counts: NDArray[np.int64]) -> dict[str, float]:
    """Return each corpus's share of the rows seen, under the keys of metrics.jsonl."""
    total = max(1, int(counts.sum()))
    return {f"share/{name}": float(n) / total for name, n in zip(names, counts, strict=True)}


def blend(streams: Sequence[TokenStream], weights: Sequence[float], block_size: int) -> TokenStream:
    """Return as many tokens as possible from several corpora in the shares of their weights, to evaluate a mix on.

    Whole blocks of each corpus, one corpus after another.
    """
    shares = [weight / sum(weights) for weight in weights]
    rows = min(stream.n_blocks(block_size) / share for stream, share in zip(streams, shares, strict=True))
    counts = [max(1, int(rows * share)) for share in shares]
    parts = [stream.part(0, n * block_size) for stream, n in zip(streams, counts, strict=True)]
    last = streams[-1].part(counts[-1] * block_size, counts[-1] * block_size + 1)  # for the last block's last target
    return TokenStream([chunk for part in (*parts, last) for chunk in part.chunks])
