"""A corpus read as it trains, exactly resumable.

In:  the pieces of a split or the rows of a Hub dataset, and a tokenizer.
Out: :class:`StreamBatches`: the batches of each optimizer step, and a small state to go on from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.data.blocks import TokenStream, permutation, share_of
from hfgpt.data.pieces import Part, Piece
from hfgpt.data.reading import grouped, read

if TYPE_CHECKING:
    from datasets import IterableDataset

SHUFFLE_WINDOW = 1024  # blocks that are shuffled among themselves while streaming

Place = dict[str, Any]  # of a part in an epoch, as JSON can hold it


class TextStream:
    """The parts of a split, read as they are needed, an epoch at a time.

    Local files come in an order that seed and epoch decide: text files as wholes, the pieces of .jsonl and .parquet
    files each by itself. The rows of a Hub dataset come in its own order.
    """

    def __init__(self, pieces: list[Piece], rows: IterableDataset | None, column: str, seed: int) -> None:
        self._pieces, self._rows, self._column, self._seed = pieces, rows, column, seed

    def parts(self, epoch: int | None, first: Place | None, place: Place | None) -> Iterator[tuple[Part, Place]]:
        """Each part of an epoch, with its place.

        Args:
            epoch: which; None for the order in which the split is stored.
            first: where the split begins; parts stored before it are left out (None: nowhere).
            place: where to go on reading (None: at the epoch's beginning).
        """
        if self._rows is not None:
            yield from self._row_parts(place or first or {"rows": None})
            return
        first = first or {"piece": 0, "part": 0}
        order = self._order(epoch, first["piece"])
        at = order.index(place["piece"]) if place else 0
        for i in order[at:]:
            skip = max(p["part"] if p and p["piece"] == i else 0 for p in (first, place))
            for number, part in enumerate(read(self._pieces[i])):
                if number >= skip:
                    yield part, {"piece": i, "part": number}

    def _order(self, epoch: int | None, first: int) -> list[int]:
        """The numbers of the pieces from `first` on, in the order of an epoch; those of one text file stay in order."""
        units: dict[Any, list[int]] = {}
        for i, piece in enumerate(self._pieces[first:], first):
            units.setdefault(piece.source if piece.kind == "text" else i, []).append(i)
        groups = list(units.values())
        if epoch is not None:
            groups = [groups[g] for g in np.random.RandomState((self._seed, epoch)).permutation(len(groups))]
        return [i for group in groups for i in group]

    def _row_parts(self, place: Place) -> Iterator[tuple[Part, Place]]:
        assert self._rows is not None
        self._rows.load_state_dict(place["rows"])
        for part in grouped(row[self._column] for row in self._rows):
            yield part, place
            place = {"rows": self._rows.state_dict()}


class TokenSource:
    """The tokens of a stream of texts, epoch after epoch without end, from any position on.

    A position is a dict that JSON can hold: `epoch`, the place of a part in it, and `token`, counted from the part's
    first. What :meth:`hold_out` has taken never comes.
    """

    def __init__(self, texts: TextStream, encode: Callable[[Part], NDArray[Any]]) -> None:
        self._texts, self._encode = texts, encode
        self._first: Place | None = None  # place and token where the split begins, behind what is held out

    def hold_out(self, n: int) -> TokenStream:
        """The first n tokens (or all there are) as they are stored, taken out of the stream."""
        stream, self._first = self._head(n)
        return stream

    def head(self, n: int) -> TokenStream:
        """The first n tokens (or all there are) of the stream as they are stored."""
        return self._head(n)[0]

    def _head(self, n: int) -> tuple[TokenStream, Place | None]:
        chunks: list[NDArray[Any]] = []
        for tokens, place in self._epoch(None, None):
            chunks.append(tokens[:n])
            n -= len(tokens)
            if n <= 0:
                return TokenStream(chunks), {**place, "token": place["token"] + len(tokens) + n}
        return TokenStream(chunks), {**place, "token": place["token"] + len(tokens)} if chunks else None

    def _epoch(self, epoch: int | None, position: Place | None) -> Iterator[tuple[NDArray[Any], Place]]:
        """The tokens of each part from the position on, with the position of the first of them."""
        place, first = _without_token(position), _without_token(self._first)
        for part, at in self._texts.parts(epoch, first, place):
            skip = self._first["token"] if self._first and at == first else 0
            if position and at == place:
                skip = max(skip, position["token"])
            yield self._encode(part)[skip:], {**at, "token": skip}

    def tokens(self, position: Place | None = None) -> Iterator[tuple[NDArray[Any], Place]]:
        """Runs of tokens, each with the position of its first token, from a position on (None: the beginning).

        Raises:
            InputError: an epoch has no tokens.
        """
        epoch = position["epoch"] if position else 0
        place = {key: value for key, value in position.items() if key != "epoch"} if position else None
        while True:
            found = place is not None
            for tokens, at in self._epoch(epoch, place):
                found = found or len(tokens) > 0
                yield tokens, {"epoch": epoch, **at}
            if not found:
                raise InputError(_("dataset: holds no text to train on\n    → give more text"))
            epoch, place = epoch + 1, None


def _without_token(position: Place | None) -> Place | None:
    return {key: value for key, value in position.items() if key != "token"} if position else None


class StreamBatches:
    """The global batch of each step, in the order of a stream that is shuffled a window of blocks at a time.

    The same for any number of processes: each reads the whole stream and takes its share of every batch. The next
    window is read in the background. The state is where the window began in the stream, and how much of it is used.
    """

    def __init__(self, source: TokenSource, block_size: int, global_batch: int, seed: int) -> None:
        self._source, self._block_size, self._global_batch, self._seed = source, block_size, global_batch, seed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._next: Future[tuple[int, Place | None, NDArray[Any]]] | None = None
        self.load_state_dict({"step": 0, "window": 0, "taken": 0, "position": None})

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """As :meth:`Batches.micro_batches`, but the steps must be asked for one after another."""
        assert step == self._step, f"a stream goes forward only: step {self._step} is next, not {step}"
        rows = np.concatenate(list(self._take(self._global_batch)))
        self._step += 1
        for share in share_of(self._global_batch, rank, world, micro_batch):
            yield rows[share.start : share.stop].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the next step: a small dict that JSON can hold."""
        return {"step": self._step, "window": self._number, "taken": self._taken, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`, in this process or another."""
        if self._next:
            self._next.exception()  # let the reader finish: a source is read by one at a time
        self._step, self._number, self._taken = state["step"], state["window"], state["taken"]
        self._position = state["position"]
        self._window: NDArray[Any] | None = None
        self._windows, self._next = self._read_windows(self._number, self._position), None

    def _take(self, n: int) -> Iterator[NDArray[Any]]:
        while n:
            if self._window is None or self._taken == len(self._window):
                self._turn()
            assert self._window is not None
            rows = self._window[self._taken : self._taken + n]
            self._taken += len(rows)
            n -= len(rows)
            yield rows

    def _turn(self) -> None:
        """Go on to the next window; the first one after a start or a resume is read here and now."""
        if self._window is not None:
            self._taken = 0
        ready = self._next or self._reader.submit(next, self._windows)
        self._number, self._position, self._window = ready.result()
        self._next = self._reader.submit(next, self._windows)

    def _read_windows(self, number: int, position: Place | None) -> Iterator[tuple[int, Place | None, NDArray[Any]]]:
        """Each window from this one on: its number, the position where it begins, its blocks in shuffled order."""
        runs = self._source.tokens(position)
        size, length = SHUFFLE_WINDOW * self._block_size, self._block_size + 1
        held: list[tuple[NDArray[Any], Place]] = []
        have = 0
        while True:
            while have < size + 1:  # the last block's last target is the next window's first token
                held.append(next(runs))
                have += len(held[-1][0])
            flat = np.concatenate([tokens for tokens, _ in held])[: size + 1]
            blocks = np.lib.stride_tricks.sliding_window_view(flat, length)[:: self._block_size]
            yield number, position, blocks[permutation(SHUFFLE_WINDOW, self._seed, number)]
            used = size
            while used >= len(held[0][0]):
                used -= len(held.pop(0)[0])
            tokens, at = held[0]
            held[0] = tokens[used:], {**at, "token": at["token"] + used}
            number, position, have = number + 1, held[0][1], have - size
