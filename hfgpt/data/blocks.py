"""Tokens cut into blocks, and the order of training on them.

In:  the tokens of a split, the length of a block, the global batch, a seed.
Out: :class:`Batches`: the blocks of each process in each optimizer step; :class:`Prefetched`: the same, with the next
     step's batch prepared during the current one; :func:`evaluation_blocks`; :func:`check_length`.

Block i of length T is tokens i·T to i·T + T, where the last token is only a target. Packing is thus an index
computation, and only the last partial block is dropped. Seed and position determine the order of the blocks
(:func:`order`), and seed and step determine a batch. A resumed run, or one on another number of processes, therefore
sees the same batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfgpt.base import threads
from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH, BatchSizes

if TYPE_CHECKING:
    import pyarrow as pa


class TokenStream:
    """The tokens of a split as one sequence over the chunks that store them, without copying.

    Args:
        chunks: one-dimensional integer arrays, for example views of memory-mapped files.
    """

    def __init__(self, chunks: Sequence[NDArray[Any]]) -> None:
        self._chunks = [chunk for chunk in chunks if len(chunk)]
        self._starts = [0, *np.cumsum([len(chunk) for chunk in self._chunks]).tolist()]

    @classmethod
    def of(cls, tokens: pa.ChunkedArray, dtype: str) -> TokenStream:
        """Return a stream over a binary column of a Dataset, as views of its memory-mapped Arrow buffers."""
        chunks = []
        for chunk in tokens.chunks:
            _validity, offsets, values = chunk.buffers()
            ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            if ends[-1] > ends[0]:
                chunks.append(np.frombuffer(values, dtype=np.uint8)[ends[0] : ends[-1]].view(dtype))
        return cls(chunks)

    @property
    def chunks(self) -> list[NDArray[Any]]:
        """The arrays of tokens, in order."""
        return self._chunks

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the tokens starting at `start`; all must exist."""
        at = bisect_right(self._starts, start) - 1
        skip, filled = start - self._starts[at], 0
        while filled < len(out):
            part = self._chunks[at][skip : skip + len(out) - filled]
            out[filled : filled + len(part)] = part
            at, skip, filled = at + 1, 0, filled + len(part)

    def part(self, start: int, stop: int) -> TokenStream:
        """Return the tokens [start, stop) as a new stream."""
        bounds = zip(self._starts, self._chunks, strict=False)
        return TokenStream([chunk[max(0, start - at) : max(0, stop - at)] for at, chunk in bounds])

    def n_blocks(self, block_size: int) -> int:
        """Return the number of whole blocks, each of `block_size` inputs and as many targets."""
        return max(0, (len(self) - 1) // block_size)

    def blocks(self, indices: Sequence[int] | NDArray[Any], block_size: int) -> NDArray[np.int64]:
        """Return the blocks with these indices: int64 of shape (n, block_size + 1).

        Inputs are ``[:, :-1]``, targets ``[:, 1:]``; the last token of block i is the first of block i + 1.
        """
        out = np.empty((len(indices), block_size + 1), dtype=np.int64)
        for row, index in zip(out, indices, strict=True):
            self.read(int(index) * block_size, row)
        return out


SHORTEST = 8  # tokens of a block: a shorter one teaches nothing and is not advised


def check_length(config: Config, train: Sized, val: Sized, advice: str) -> None:
    """Raise InputError unless each split holds at least one block."""
    need = config.block_size + 1
    for name, tokens in ((_("training split"), train), (_("validation split"), val)):
        if len(tokens) < need:
            if len(tokens) > SHORTEST:
                advice = _("set block_size to at most {most}, or {advice}", most=len(tokens) - 1, advice=advice)
            raise InputError(
                "block_size = {block_size}: one block takes {need:,} tokens, and the {split} of {name!r} has "
                "{tokens:,}\n    → {advice}",
                block_size=config.block_size,
                need=need,
                split=name,
                name=config.dataset,
                tokens=len(tokens),
                advice=advice,
            )


# --------------------------------------------------------------------------------------------------- order and batches


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """Return a permutation of 0 … n-1 that depends only on the seed, since numpy has frozen RandomState's streams."""
    return _permutations(n)(*seed)


@lru_cache(maxsize=64)  # corpora of a mix; a single cache for all would recompute their permutations in each batch
def _permutations(n: int) -> Callable[..., NDArray[np.int64]]:
    """Return a function from a seed to its permutation, which remembers two: a batch may span two epochs."""
    return lru_cache(maxsize=2)(lambda *seed: np.random.RandomState(seed).permutation(n))


def order(n_blocks: int, seed: int, positions: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Return the blocks at these positions in the endless sequence of epochs, each a permutation of all blocks."""
    epochs, places = np.divmod(np.asarray(positions), n_blocks)
    out = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        out[epochs == epoch] = permutation(n_blocks, seed, int(epoch))[places[epochs == epoch]]
    return out


def share_of(global_batch: int, rank: int, world: int, micro_batch: int) -> list[range]:
    """Return a process's share of a global batch as micro-batches, the same number for every process.

    During a batch warm-up, a batch may not be divisible: shares and micro-batches then differ by one sequence, and some
    may be empty.
    """
    share = range(rank * global_batch // world, (rank + 1) * global_batch // world)
    parts = -(-global_batch // (world * micro_batch))
    cuts = [share.start + len(share) * part // parts for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(cuts)]


class AnyBatches(ABC):
    """The interface of every source of batches."""

    @abstractmethod
    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """Yield one process's blocks for one step.

        Args:
            step: the optimizer step, from 0; steps may come in any order, except from a stream.
            rank, world: the rank of this process, and the number of processes.
            micro_batch: maximum sequences at a time.

        Yields: int64 of shape (sequences, block_size + 1).
        """

    @abstractmethod
    def figures(self, step: int) -> dict[str, float]:
        """Return what metrics.jsonl records about the data seen before a step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue with the next step, as JSON can store it; nothing if the step decides."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - there may be none
        """Continue from a state."""


class Batches(AnyBatches):
    """The global batch of each step, in an order determined by seed and step.

    Args:
        stream: the tokens of the training split.
        global_batch: sequences in a step, over all processes.
        seed: determines the order.
        warmup: steps of the batch-size warm-up, see :class:`BatchSizes`.
    """

    def __init__(self, stream: TokenStream, block_size: int, global_batch: int, seed: int, warmup: int = 0) -> None:
        self.stream, self.block_size, self.seed = stream, block_size, seed
        self.sizes = BatchSizes(global_batch, warmup)
        self.n_blocks = stream.n_blocks(block_size)

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        first = self.sizes.before(step)
        for rows in share_of(self.sizes.at(step), rank, world, micro_batch):
            indices = order(self.n_blocks, self.seed, np.arange(first + rows.start, first + rows.stop))
            yield self.stream.blocks(indices, self.block_size)

    def figures(self, step: int) -> dict[str, float]:
        return {"epoch": self.sizes.before(step) / self.n_blocks}  # how often the text was seen


def evaluation_blocks(stream: TokenStream, block_size: int, eval_iters: int) -> NDArray[np.int64]:
    """Return the blocks for every evaluation of a split: `eval_iters` x EVAL_BATCH, spread over the split.

    If the split has fewer blocks, return all of them.
    """
    n_blocks = stream.n_blocks(block_size)
    n = min(n_blocks, eval_iters * EVAL_BATCH)
    return np.arange(n, dtype=np.int64) * n_blocks // max(1, n)


# --------------------------------------------------------------------------------------- the next step's batch, sooner


class _Prepared(NamedTuple):
    request: tuple[int, int, int, int]
    before: dict[str, Any]  # the state before these batches were drawn
    batches: Future[list[NDArray[np.int64]]]


class Prefetched(AnyBatches):
    """Batches whose next step is prepared in a thread; the state is that of the last requested step."""

    def __init__(self, batches: AnyBatches) -> None:
        self._batches = batches
        self._thread = threads.pool(1, "next-batch")
        self._next: _Prepared | None = None

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        request = (step, rank, world, micro_batch)
        if self._next is None or self._next.request != request:
            self._forget()
            self._next = self._prepare(request)
        ready = self._next.batches.result()
        self._next = self._prepare((step + 1, rank, world, micro_batch))
        yield from ready

    def _prepare(self, request: tuple[int, int, int, int]) -> _Prepared:
        before = self._batches.state_dict()
        return _Prepared(request, before, self._thread.submit(lambda: list(self._batches.micro_batches(*request))))

    def _forget(self) -> None:
        """Discard the batches prepared for another step, and restore the state before them."""
        if self._next is not None:
            self._next.batches.exception()  # waits until it ends
            self._batches.load_state_dict(self._next.before)
            self._next = None

    def figures(self, step: int) -> dict[str, float]:
        return self._batches.figures(step)

    def state_dict(self) -> dict[str, Any]:
        return self._batches.state_dict() if self._next is None else self._next.before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._next is not None:
            self._next.batches.exception()
            self._next = None
        self._batches.load_state_dict(state)
