"""The texts of a split in the order of an epoch, from any place.

In:  the pieces of a split, or the rows of a Hub dataset; a seed; the lane and the number of lanes.
Out: :class:`TextStream`: parts of text, each with its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfgpt.data.pieces import Part, Piece
from hfgpt.data.reading import grouped, read

if TYPE_CHECKING:
    from datasets import IterableDataset

RUN = 16  # consecutive pieces of a text file that stay together if several lanes share the file

Place = dict[str, Any]  # a part's place in an epoch, as JSON can store it


class TextStream:
    """The parts of one lane of a split, read on demand, an epoch at a time.

    Seed and epoch determine the order of local files: text files stay whole (in runs of pieces if there are several
    lanes), while pieces of .jsonl and .parquet files are shuffled individually. A Hub dataset keeps its own order.
    """

    def __init__(
        self,
        pieces: list[Piece],
        rows: IterableDataset | None,
        column: str,
        seed: Sequence[int],
        lane: int = 0,
        lanes: int = 1,
    ) -> None:
        self._pieces, self._column, self._seed = pieces, column, tuple(seed)
        # A dataset holds one position. A shard is a new object, even if it is the only one: each stream has its own.
        self._rows = None if rows is None else rows.shard(lanes, lane)
        self._lane, self.lanes = lane, lanes

    def from_start(self) -> Iterator[Part]:
        """Yield the parts in stored order."""
        return (part for part, _place in self.parts(None, None, None))

    def parts(self, epoch: int | None, first: Place | None, place: Place | None) -> Iterator[tuple[Part, Place]]:
        """Yield each part of an epoch, with its place.

        Args:
            epoch: the epoch's number; None for the stored order.
            first: where the split begins; parts stored before it are skipped (None: skip nothing).
            place: where to continue reading (None: the epoch's beginning).
        """
        if self._rows is not None:
            yield from self._row_parts(place or first or {"rows": None, "part": 0})
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
        """Return the indices of this lane's pieces from `first` on, in the order of an epoch."""
        groups = units(self._pieces, first, whole=self.lanes == 1)
        if epoch is not None:
            groups = [groups[g] for g in np.random.RandomState((*self._seed, epoch)).permutation(len(groups))]
        return [i for group in groups[self._lane :: self.lanes] for i in group]

    def _row_parts(self, place: Place) -> Iterator[tuple[Part, Place]]:
        """Yield parts of rows; a place is the rows' state after the last whole document, and the parts since then."""
        assert self._rows is not None
        self._rows.load_state_dict(place["rows"])
        skip, place = place.get("part", 0), {"rows": place["rows"], "part": 0}
        for part in grouped(row[self._column] for row in self._rows):
            if place["part"] >= skip:
                yield part, place
            if part.open:  # the rest of a long document is only in memory
                place = {"rows": place["rows"], "part": place["part"] + 1}
            else:
                skip, place = 0, {"rows": self._rows.state_dict(), "part": 0}


def units(pieces: list[Piece], first: int, whole: bool) -> list[list[int]]:
    """Return the indices of pieces from `first` on, in groups that stay together: text files, or runs of pieces."""
    groups: dict[Any, list[int]] = {}
    place = 0
    for i, piece in enumerate(pieces[first:], first):
        place = place + 1 if i > first and pieces[i - 1].source == piece.source else 0
        key = (piece.source, 0 if whole else place // RUN) if piece.kind == "text" else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())
