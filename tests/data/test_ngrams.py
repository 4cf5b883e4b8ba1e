"""The losses that counting n-grams of tokens reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hfgpt.data.blocks import TokenStream
from hfgpt.data.ngrams import MOST, of_splits


def stream(*tokens: int) -> TokenStream:
    return TokenStream([np.array(tokens, np.uint16)])


def pairs_loss(train: TokenStream, val: TokenStream) -> float:
    single, pairs = of_splits(train, val, 2)
    assert pairs < single + 0.001
    return pairs


def test_a_text_whose_next_token_is_certain_costs_nothing() -> None:
    turns = np.tile(np.array([7, 300, 9], np.uint16), 5000)
    loss = pairs_loss(TokenStream([turns]), TokenStream([turns[:300]]))
    assert 0 <= loss < 0.01


def test_independent_tokens_cost_their_entropy() -> None:
    drawn = np.random.default_rng(0).choice(4, 60_000, p=[0.5, 0.25, 0.125, 0.125]).astype(np.uint16)
    loss = pairs_loss(TokenStream([drawn[:50_000]]), TokenStream([drawn[50_000:]]))
    assert loss == pytest.approx(1.75 * math.log(2), abs=0.02)


def test_long_splits_are_counted_in_stretches() -> None:
    long = np.tile(np.array([1, 2], np.uint16), MOST)
    loss = pairs_loss(TokenStream([long]), TokenStream([long]))
    assert loss < 0.01


def test_a_pair_that_was_never_seen_is_still_possible() -> None:
    loss = pairs_loss(stream(1, 2, 1, 2), stream(2, 3, 3))
    assert math.isfinite(loss)
    assert of_splits(stream(1), stream(1, 2), 2) == ()
