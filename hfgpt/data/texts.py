"""The texts of a split in the order of an epoch, from any place on.

In:  the pieces of a split, or the rows of a Hub dataset; a seed; which lane of how many.
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

RUN = 16  # pieces of a text file that stay in order if several lanes share the file

Place = dict[str, Any]  # of a part in an epoch, as JSON can hold it


class TextStream:
    """The parts of a lane of a split, read as they are needed, an epoch at a time.

    Local files come in an order that seed and epoch decide: text files as wholes (in runs of pieces if there are
    several lanes), the pieces of .jsonl and .parquet files each by itself. The rows of a Hub dataset come in
    its own order.
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
        self._rows = rows if rows is None or lanes == 1 else rows.shard(lanes, lane)
        self._lane, self.lanes = lane, lanes

    def from_start(self) -> Iterator[Part]:
        """The parts in the order in which the split is stored."""
        return (part for part, _place in self.parts(None, None, None))

    def parts(self, epoch: int | None, first: Place | None, place: Place | None) -> Iterator[tuple[Part, Place]]:
        """Each part of an epoch, with its place.

        Args:
            epoch: which; None for the order in which the split is stored.
            first: where the split begins; parts stored before it are left out (None: nowhere).
            place: where to go on reading (None: at the epoch's beginning).
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
        """The numbers of this lane's pieces from `first` on, in the order of an epoch."""
        groups = units(self._pieces, first, whole=self.lanes == 1)
        if epoch is not None:
            groups = [groups[g] for g in np.random.RandomState((*self._seed, epoch)).permutation(len(groups))]
        return [i for group in groups[self._lane :: self.lanes] for i in group]

    def _row_parts(self, place: Place) -> Iterator[tuple[Part, Place]]:
        """A place is the state of the rows behind the last whole document, and the parts since then."""
        assert self._rows is not None
        self._rows.load_state_dict(place["rows"])
        skip, place = place.get("part", 0), {"rows": place["rows"], "part": 0}
        for part in grouped(row[self._column] for row in self._rows):
            if place["part"] >= skip:
                yield part, place
            if part.open:  # the rest of a long document is in memory alone
                place = {"rows": place["rows"], "part": place["part"] + 1}
            else:
                skip, place = 0, {"rows": self._rows.state_dict(), "part": 0}


def units(pieces: list[Piece], first: int, whole: bool) -> list[list[int]]:
    """The numbers of pieces from `first` on, in groups that stay together: text files, or runs of their pieces."""
    groups: dict[Any, list[int]] = {}
    place = 0
    for i, piece in enumerate(pieces[first:], first):
        place = place + 1 if i > first and pieces[i - 1].source == piece.source else 0
        key = (piece.source, 0 if whole else place // RUN) if piece.kind == "text" else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())
