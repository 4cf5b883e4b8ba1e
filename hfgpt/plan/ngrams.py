"""The predictability of a text from counts of its character n-grams, before any model is trained.

In:  the characters of a text.
Out: nats per character of n-gram models of orders 1 to 5, fitted on the first nine tenths and measured on the rest, for
     :class:`~hfgpt.plan.survey.Statistics`.

Each order is interpolated with the one below it, by Witten and Bell's weights. At most a quarter of a million
characters are counted, from evenly spread places; this takes about half a second, and needs no torch.
"""

import numpy as np
from numpy.typing import NDArray

ORDERS = 5
MOST = 250_000  # most characters that are counted
PIECES = 20  # places of a longer text to sample from


def measure(text: str) -> tuple[tuple[float, ...], int]:
    """Count a text; return the nats of each order, and how many characters were counted."""
    if len(text) > MOST:
        train, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
        text = _spread(train, MOST * 9 // 10) + _spread(held_out, MOST // 10)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    _, ids = np.unique(codes, return_inverse=True)
    ids = ids.astype(np.int64)
    cut = len(ids) * 9 // 10
    vocabulary = int(ids.max(initial=0)) + 1
    probability = np.full(max(len(ids) - cut, 1), 1.0 / vocabulary)
    contexts, orders = np.zeros(len(ids), dtype=np.int64), list[float]()
    for order in range(1, ORDERS + 1):
        if order > 1:  # extend the context by the preceding character; ids stay dense
            _, contexts = np.unique(_shift(contexts) * vocabulary + _shift(ids), return_inverse=True)
        probability = _interpolate(contexts, ids, vocabulary, cut, probability)
        orders.append(float(-np.log(probability).mean()))
    return tuple(round(value, 4) for value in orders), len(text)


def _spread(text: str, count: int) -> str:
    """Return that many characters of a text, from PIECES places."""
    if len(text) <= count:
        return text
    each = count // PIECES
    starts = [index * (len(text) - each) // (PIECES - 1) for index in range(PIECES)]
    return "".join(text[start : start + each] for start in starts)


def _shift(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each position's predecessor; the first has no predecessor."""
    return np.concatenate([[0], values[:-1]])


def _interpolate(
    contexts: NDArray[np.int64], ids: NDArray[np.int64], vocabulary: int, cut: int, lower: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the held-out probabilities of an order: p = (count + kinds · lower) / (total + kinds), by context."""
    pairs = contexts * vocabulary + ids
    kinds_of_pairs, counts = np.unique(pairs[:cut], return_counts=True)
    size = int(contexts.max(initial=0)) + 1
    total = np.bincount(contexts[:cut], minlength=size)
    kinds = np.bincount(kinds_of_pairs // vocabulary, minlength=size)
    wanted = pairs[cut:]
    place = np.minimum(np.searchsorted(kinds_of_pairs, wanted), len(kinds_of_pairs) - 1)
    count = np.where(kinds_of_pairs[place] == wanted, counts[place], 0)
    here = contexts[cut:]
    denominator = total[here] + kinds[here]
    weighted = (count + kinds[here] * lower) / np.maximum(denominator, 1)
    return np.where(denominator > 0, weighted, lower)
