"""What counting pairs of tokens predicts of a text: the loss that a model must be below to have learnt more.

In:  the tokens of both splits.
Out: nats per token on the validation split.
"""

import numpy as np
from numpy.typing import NDArray

from hfgpt.data.blocks import TokenStream

MOST = 200_000  # tokens that are counted, and a quarter as many that are predicted
STRETCHES = 8  # of the split, from which they are taken
PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0)  # weights of the single tokens' frequencies, in tokens


def pairs_loss(train: TokenStream, val: TokenStream) -> float | None:
    """Return the loss of predicting each token from the one before it, by their frequencies in the training split.

    The frequencies of pairs are mixed with those of single tokens. None if a split has less than two tokens.
    """
    known, asked = _stretches(train, MOST), _stretches(val, MOST // 4)
    if not known or not asked:
        return None
    tokens, places = np.unique(np.concatenate([*known, *asked]), return_inverse=True)
    size = len(tokens)
    ends = np.cumsum([len(part) for part in (*known, *asked)])
    parts = np.split(places.astype(np.int64), ends[:-1])
    known, asked = parts[: len(known)], parts[len(known) :]
    single = np.bincount(np.concatenate(known), minlength=size) + 1.0
    share = single / single.sum()
    firsts = np.bincount(np.concatenate([part[:-1] for part in known]), minlength=size)
    pairs, counts = np.unique(_pairs(known, size), return_counts=True)
    wanted = _pairs(asked, size)
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    first, second = wanted // size, wanted % size
    losses = [-np.log((seen + prior * share[second]) / (firsts[first] + prior)).mean() for prior in PRIORS]
    return float(min(losses))


def _stretches(stream: TokenStream, most: int) -> list[NDArray[np.int64]]:
    """Return up to `most` tokens in evenly spaced stretches; all of a short stream, as one."""
    size = len(stream)
    if size < 2:
        return []
    if size <= most:
        return [_read(stream, 0, size)]
    each = most // STRETCHES
    return [_read(stream, int(start), each) for start in np.linspace(0, size - each, STRETCHES)]


def _read(stream: TokenStream, start: int, count: int) -> NDArray[np.int64]:
    out = np.empty(count, np.int64)
    stream.read(start, out)
    return out


def _pairs(parts: list[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    return np.concatenate([part[:-1] * size + part[1:] for part in parts])
