"""Streaming: each process reads its own share of the corpus, and a resume continues exactly.

In:  the pieces of a split or the rows of a Hub dataset, and a tokenizer.
Out: :class:`StreamBatches`: the batches of each optimizer step, and a small state to resume from.

The rows of a global batch are divided among lanes: a lane fills the same rows of every batch. It reads its own pieces
of the corpus and shuffles its blocks a window at a time. The number of lanes depends on the data and the global batch,
never on the number of processes. So a process reads only the lanes whose rows it trains on, and the batches are the
same on any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.base.units import divisors
from hfgpt.data.blocks import AnyBatches, TokenStream, permutation, share_of
from hfgpt.data.mix import Pattern, shares_seen
from hfgpt.data.pieces import Part
from hfgpt.data.texts import Place, TextStream

SHUFFLE_WINDOW = 1024  # blocks in the shuffle windows of all lanes
SMALLEST_WINDOW = 64  # minimum blocks in a lane's shuffle window
MOST_LANES = 64  # each holds a window and a part's tokens in memory
UNITS = 4  # minimum pieces or files in a lane
EMPTY_EPOCHS = 1000  # in a row; one lane's epoch may contain only files without text


def lane_count(global_batch: int, units: int) -> int:
    """Return the number of lanes: a divisor of the global batch that leaves each lane enough to shuffle."""
    most = max(1, min(MOST_LANES, units // UNITS))
    return next(divisors(global_batch, most))


class TokenSource:
    """The tokens of a stream of texts, over endless epochs, from any position.

    A position is a dict that JSON can store: `epoch`, the place of a part in it, and `token`, the index within the
    part.

    Args:
        encode: converts a part to tokens.
        first: where the split begins, as :meth:`head` returns it; earlier text is skipped in every epoch.
    """

    def __init__(self, texts: TextStream, encode: Callable[[Part], NDArray[Any]], first: Place | None = None) -> None:
        self._texts, self._encode, self._first = texts, encode, first

    def head(self, n: int) -> tuple[TokenStream, Place | None]:
        """Return the first n tokens in stored order (or all there are), and the place after them, if text remains."""
        chunks: list[NDArray[Any]] = []
        for tokens, place in self._epoch(None, None):
            chunks.append(tokens[:n])
            n -= len(tokens)
            if n <= 0:
                return TokenStream(chunks), {**place, "token": place["token"] + len(tokens) + n}
        return TokenStream(chunks), {**place, "token": place["token"] + len(tokens)} if chunks else None

    def _epoch(self, epoch: int | None, position: Place | None) -> Iterator[tuple[NDArray[Any], Place]]:
        """Yield the tokens of each part from the position on, with the position of each part's first token."""
        place, first = _without_token(position), _without_token(self._first)
        for part, at in self._texts.parts(epoch, first, place):
            skip = self._first["token"] if self._first and at == first else 0
            if position and at == place:
                skip = max(skip, position["token"])
            yield self._encode(part)[skip:], {**at, "token": skip}

    def tokens(self, position: Place | None = None) -> Iterator[tuple[NDArray[Any], Place]]:
        """Yield runs of tokens from a position on (None: the beginning), with the position of each run's first token.

        Raises:
            InputError: there are no tokens.
        """
        epoch = position["epoch"] if position else 0
        place = {key: value for key, value in position.items() if key != "epoch"} if position else None
        empty = 0
        while True:
            has_tokens = place is not None
            for tokens, at in self._epoch(epoch, place):
                has_tokens = has_tokens or len(tokens) > 0
                yield tokens, {"epoch": epoch, **at}
            empty = 0 if has_tokens else empty + 1
            if empty and (self._texts.lanes == 1 or empty > EMPTY_EPOCHS):
                raise InputError("dataset: holds no text to train on\n    → give more text")
            epoch, place = epoch + 1, None


def _without_token(position: Place | None) -> Place | None:
    return {key: value for key, value in position.items() if key != "token"} if position else None


class Lane:
    """The blocks of one lane, shuffled a window at a time. The next window is read in the background. The state is
    where the window began in the stream, and how many of its blocks are used.

    Args:
        window: blocks in a shuffle window.
        seed: numbers that determine the order in each window.
    """

    def __init__(
        self, source: TokenSource, block_size: int, window: int, seed: Sequence[int], readers: ThreadPoolExecutor
    ) -> None:
        self._source, self._block_size, self._size, self._seed = source, block_size, window, tuple(seed)
        self._readers = readers
        self._next: Future[tuple[int, Place | None, NDArray[Any]]] | None = None
        self.load_state_dict({"window": 0, "taken": 0, "position": None})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: a small dict that JSON can store."""
        return {"window": self._number, "taken": self._taken, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        if self._next:
            self._next.exception()  # let the reader finish, since a source supports one reader at a time
        self._number, self._taken, self._position = state["window"], state["taken"], state["position"]
        self._window: NDArray[Any] | None = None
        self._windows = self._read_windows(self._number, self._position)
        self._next = None

    def begin(self) -> None:
        """Start reading, so that several lanes are read in parallel."""
        if self._window is None and self._next is None:
            self._next = self._readers.submit(next, self._windows)

    def take(self, n: int) -> NDArray[Any]:
        """Return the next n blocks: (n, block_size + 1)."""
        out = []
        while n:
            if self._window is None or self._taken == len(self._window):
                self._turn()
            assert self._window is not None
            out.append(self._window[self._taken : self._taken + n])
            self._taken += len(out[-1])
            n -= len(out[-1])
        return np.concatenate(out)

    def _turn(self) -> None:
        """Advance to the next window."""
        if self._window is not None:
            self._taken = 0
        ready = self._next or self._readers.submit(next, self._windows)
        self._number, self._position, self._window = ready.result()
        self._next = self._readers.submit(next, self._windows)

    def _read_windows(self, number: int, position: Place | None) -> Iterator[tuple[int, Place | None, NDArray[Any]]]:
        """Yield each window from this one on: its number, its start position, its blocks in shuffled order."""
        runs = self._source.tokens(position)
        size, length = self._size * self._block_size, self._block_size + 1
        held: list[tuple[NDArray[Any], Place]] = []
        have = 0
        while True:
            while have < size + 1:  # the last block's last target is the next window's first token
                held.append(next(runs))
                have += len(held[-1][0])
            flat = np.concatenate([tokens for tokens, _place in held])[: size + 1]
            blocks = np.lib.stride_tricks.sliding_window_view(flat, length)[:: self._block_size]
            yield number, position, blocks[permutation(self._size, self._seed[0], number, *self._seed[1:])]
            used = size
            while used >= len(held[0][0]):
                used -= len(held.pop(0)[0])
            tokens, at = held[0]
            held[0] = tokens[used:], {**at, "token": at["token"] + used}
            number, position, have = number + 1, held[0][1], have - size


class MixedLane:
    """The blocks of one lane from several corpora, mixed by a :class:`~hfgpt.data.mix.Pattern`."""

    def __init__(self, lanes: Sequence[Lane], pattern: Pattern) -> None:
        self._lanes, self._pattern, self._row = lanes, pattern, 0

    def begin(self) -> None:
        for lane in self._lanes:
            lane.begin()

    def take(self, n: int) -> NDArray[Any]:
        corpora, _numbers = self._pattern.rows(self._row, n)
        self._row += n
        taken = {i: self._lanes[i].take(int((corpora == i).sum())) for i in np.unique(corpora)}
        out = np.empty((n, next(iter(taken.values())).shape[1]), dtype=np.int64)
        for i, rows in taken.items():
            out[corpora == i] = rows
        return out

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Lane`."""
        return {"row": self._row, "corpora": [lane.state_dict() for lane in self._lanes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Lane`."""
        self._row = state["row"]
        for lane, saved in zip(self._lanes, state["corpora"], strict=True):
            lane.load_state_dict(saved)


class StreamBatches(AnyBatches):
    """The global batch of each step, from lanes; it does not depend on the number of processes.

    Args:
        make_lane: creates the lane with a given number.
        lanes: the number of lanes; divides the global batch.
        global_batch: rows in a step.
        patterns: one for each lane, if several corpora are mixed, whose names are `names`.
    """

    def __init__(
        self,
        make_lane: Callable[[int], Lane | MixedLane],
        lanes: int,
        global_batch: int,
        names: Sequence[str] = (),
        patterns: Sequence[Pattern] = (),
    ) -> None:
        self._make_lane, self._count, self._global_batch = make_lane, lanes, global_batch
        self._names, self._patterns = names, patterns
        self._step = 0
        self._loaded: dict[str, Any] = {}
        self._lanes: dict[int, Lane | MixedLane] = {}

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        assert step == self._step, f"a stream goes forward only: step {self._step} is next, not {step}"
        each, share = self._global_batch // self._count, self._global_batch // world
        needed = range(rank * share // each, -(-(rank + 1) * share // each))
        if not self._lanes:
            self._lanes = {number: self._opened(number) for number in needed}
        assert [*self._lanes] == [*needed], "a process keeps its share of the batches"
        for lane in self._lanes.values():
            lane.begin()
        rows = np.concatenate([lane.take(each) for lane in self._lanes.values()])
        self._step += 1
        for part in share_of(self._global_batch, rank, world, micro_batch):
            first = part.start - needed.start * each
            yield rows[first : first + len(part)].astype(np.int64)

    def _opened(self, number: int) -> Lane | MixedLane:
        lane = self._make_lane(number)
        if self._step:
            if (state := self._loaded.get(str(number))) is None:
                raise InputError(
                    "streaming: the checkpoint does not say where lane {number} of the stream is\n"
                    "    → it was written without the states of all processes: resume from another one",
                    number=number,
                )
            lane.load_state_dict(state)
        return lane

    def figures(self, step: int) -> dict[str, float]:
        if not self._patterns:
            return {}
        rows = step * self._global_batch // self._count
        counts = np.sum([pattern.counts(rows) for pattern in self._patterns], axis=0)
        return shares_seen(self._names, counts)

    def state_dict(self) -> dict[str, Any]:
        """Return this process's part of the state for the next step; see :func:`merged`."""
        lanes = {str(number): lane.state_dict() for number, lane in self._lanes.items()} or self._loaded
        return {"step": self._step, "lanes": lanes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "lanes" not in state:  # a checkpoint from before lanes existed
            state = {"step": state["step"], "lanes": {"0": state}}
        self._step, self._loaded = state["step"], state["lanes"]
        if not {str(number) for number in self._lanes} <= self._loaded.keys():
            self._lanes = {}
        for number, lane in self._lanes.items():
            lane.load_state_dict(self._loaded[str(number)])


def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge all processes' batch states into one that each can continue from."""
    lanes = {number: lane for state in states for number, lane in state.get("lanes", {}).items()}
    return {**states[0], **({"lanes": lanes} if "lanes" in states[0] else {})}
