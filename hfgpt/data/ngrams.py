"""The predictability of a text from counts of its n-grams, before any model is trained.

In:  the characters of a text, or the tokens of both splits.
Out: nats per character or token of n-gram models of orders 1 to 8, fitted on the first nine tenths and measured on the
     rest, or fitted on one split and measured on the other.

Each order is interpolated with the one below it, as in Kneser and Ney 1995 (Chen and Goodman 1999, section 2.7): lower
orders count the kinds of characters that precede an n-gram, not its occurrences. At most half a million are counted,
from evenly spread places; this takes half a second, and needs no torch.
"""

import numpy as np
from numpy.typing import NDArray

from hfgpt.data.blocks import TokenStream

ORDERS = 8
MOST = 500_000  # most characters or tokens that are counted
PIECES = 20  # places of a longer text to sample from

Ids = NDArray[np.int64]


def measure(text: str) -> tuple[tuple[float, ...], int]:
    """Count a text; return the nats of each order, and how many characters were counted."""
    if len(text) > MOST:
        train, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
        text = _spread(train, MOST * 9 // 10) + _spread(held_out, MOST // 10)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    return _orders(codes, len(codes) * 9 // 10, ORDERS), len(text)


def of_splits(train: TokenStream, val: TokenStream, orders: int) -> tuple[float, ...]:
    """Count the tokens of two splits; return the nats per token of so many orders; () if a split has less than two.

    Of the training split at most nine tenths of MOST are counted, of the other one a tenth.
    """
    known, asked = _tokens(train, MOST * 9 // 10), _tokens(val, MOST // 10)
    if min(len(known), len(asked)) < 2:
        return ()
    return _orders(np.concatenate([known, asked]), len(known), orders)


def _orders(values: Ids, cut: int, orders: int) -> tuple[float, ...]:
    """Return the nats of each order on the values from `cut` on, by the counts before."""
    ids, places = _numbered(values)
    vocabulary = len(places)
    # The n-gram that ends at each position, and the context before its last value.
    grams, contexts = ids, np.zeros(len(ids), dtype=np.int64)
    lower, out = np.full(len(ids) - cut, 1.0 / vocabulary), list[float]()
    for _ in range(orders):
        counts = np.bincount(grams[:cut], minlength=len(places))
        out.append(float(-np.log(_discounted(counts, grams, contexts, places, lower)).mean()))
        before = np.concatenate([[0], grams[:-1]])
        longer, firsts = _numbered(before * vocabulary + ids)
        kinds = np.bincount(grams[firsts[firsts < cut]], minlength=len(places))  # of values before each n-gram
        lower = _discounted(kinds, grams, contexts, places, lower)
        grams, contexts, places = longer, before, firsts
    return tuple(round(value, 4) for value in out)


def _tokens(stream: TokenStream, most: int) -> Ids:
    """Return up to that many tokens of a stream, from PIECES places."""
    size = min(len(stream), most)
    each = size // PIECES if size < len(stream) else size
    starts = [index * (len(stream) - each) // (PIECES - 1) for index in range(PIECES)] if size < len(stream) else [0]
    out = np.empty((len(starts), each), dtype=np.int64)
    for start, part in zip(starts, out, strict=True):
        if each:
            stream.read(start, part)
    return out.ravel()


def _spread(text: str, count: int) -> str:
    """Return that many characters of a text, from PIECES places."""
    if len(text) <= count:
        return text
    each = count // PIECES
    starts = [index * (len(text) - each) // (PIECES - 1) for index in range(PIECES)]
    return "".join(text[start : start + each] for start in starts)


def _numbered(values: Ids) -> tuple[Ids, Ids]:
    """Number the distinct values from 0; return each position's number, and each number's first position."""
    _, firsts, ids = np.unique(values, return_index=True, return_inverse=True)
    return ids.astype(np.int64), firsts


def _discounted(counts: Ids, grams: Ids, contexts: Ids, places: Ids, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the held-out probabilities of an order: the lower order's share is what each count is lessened by.

    The discount is Ney's estimate from the n-grams that occur once and twice.
    """
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    taken = np.clip(once / max(1, once + 2 * twice), 0.1, 0.95) * (counts > 0)
    of = contexts[places]
    total, freed = np.bincount(of, weights=counts), np.bincount(of, weights=taken)
    held_out = slice(len(grams) - len(lower), None)
    here = contexts[held_out]
    share = ((counts - taken)[grams[held_out]] + freed[here] * lower) / np.maximum(total[here], 1)
    return np.where(total[here] > 0, share, lower)
