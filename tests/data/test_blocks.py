"""Blocks cover every token, and their order depends only on seed and step."""

from __future__ import annotations

import itertools

import numpy as np
from data_texts import (
    all_tokens,
    step,
)
from hypothesis import given
from hypothesis import strategies as st

from hfgpt.data import blocks
from hfgpt.data.blocks import Batches, TokenStream

STREAMS = st.lists(st.integers(0, 9), max_size=6).map(
    lambda sizes: TokenStream(
        [np.arange(start, start + n, dtype=np.uint16) for start, n in zip(np.cumsum([0, *sizes]), sizes, strict=False)]
    )
)


@given(STREAMS, st.integers(1, 8))
def test_blocks_lose_nothing_but_the_last_partial_one(stream: TokenStream, block_size: int) -> None:
    n = stream.n_blocks(block_size)
    blocks = stream.blocks(range(n), block_size)
    assert blocks.shape == (n, block_size + 1)
    inputs, targets = blocks[:, :-1].ravel().tolist(), blocks[:, 1:].ravel().tolist()
    assert inputs == list(range(n * block_size))
    assert targets == list(range(1, n * block_size + 1))
    assert 0 <= max(0, len(stream) - 1) - n * block_size < block_size


@given(STREAMS, st.data())
def test_a_part_of_a_stream_is_its_tokens(stream: TokenStream, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(stream)))
    stop = draw.draw(st.integers(start, len(stream)))
    assert all_tokens(stream.part(start, stop)) == all_tokens(stream)[start:stop]


@given(st.integers(1, 50), st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_each_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = blocks.order(n, seed, range(epoch * n, (epoch + 1) * n))
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    orders = [blocks.order(100, seed, range(e * 100, e * 100 + 100)).tolist() for seed in (1, 2) for e in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_the_order_is_pinned() -> None:
    """A change of the order breaks the resume of every earlier run."""
    assert blocks.order(10, 1337, range(12)).tolist() == [3, 4, 5, 9, 7, 1, 6, 0, 8, 2, 0, 8]


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 30))
def test_batches_do_not_depend_on_processes_or_micro_batch(world: int, parts: int, number: int) -> None:
    batches = Batches(TokenStream([np.arange(200)]), 8, 16, seed=3)
    shares = [list(batches.micro_batches(number, rank, world, 16 // world // parts)) for rank in range(world)]
    assert all(len(share) == parts for share in shares)
    assert np.concatenate([m for share in shares for m in share]).tolist() == step(batches, number, 16)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 12))
def test_a_batch_that_warms_up_does_not_depend_on_processes(world: int, micro_batch: int, number: int) -> None:
    """Every step trains on the next sequences of the same order, each once, for any number of processes."""
    batches = Batches(TokenStream([np.arange(1000)]), 8, 16, seed=3, warmup=9)
    shares = [list(batches.micro_batches(number, rank, world, micro_batch)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "every process has as many micro-batches"
    assert max(len(part) for share in shares for part in share) <= micro_batch
    seen = sum(batches.sizes.at(step) for step in range(number))
    expected = Batches(TokenStream([np.arange(1000)]), 8, 1, seed=3)
    alone = [next(iter(expected.micro_batches(seen + i, 0, 1, 1)))[0].tolist() for i in range(batches.sizes.at(number))]
    assert np.concatenate([part for share in shares for part in share]).tolist() == alone
    assert batches.figures(number)["epoch"] == seen / batches.n_blocks


def test_steps_go_through_every_block_once_an_epoch() -> None:
    batches = Batches(TokenStream([np.arange(8 * 24 + 1)]), 8, 10, seed=3)
    starts = [row[0] for number in range(12) for row in step(batches, number, 10)]
    for epoch in range(5):
        assert sorted(starts[epoch * 24 : epoch * 24 + 24]) == list(range(0, 192, 8))


def test_evaluation_blocks_are_spread_over_the_split() -> None:
    stream = TokenStream([np.arange(8 * 1000 + 1)])
    chosen = blocks.evaluation_blocks(stream, 8, 5)
    assert len(chosen) == 60
    assert len(set(chosen.tolist())) == 60
    assert chosen[0] == 0
    assert 980 < chosen[-1] < 1000
    assert blocks.evaluation_blocks(stream, 8, 1000).tolist() == list(range(1000)), "all of a small split"
    assert blocks.evaluation_blocks(TokenStream([]), 8, 5).tolist() == []


def test_a_read_spans_thousands_of_chunks() -> None:
    """A folder of tiny files has a chunk for each."""
    tokens = np.arange(2300 * 480, dtype=np.uint32)
    out = np.empty(2**20, dtype=np.uint32)
    stream = TokenStream(np.split(tokens, 2300))
    stream.read(0, out)
    assert np.array_equal(out, tokens[: 2**20])
    stream.read(1001, out[:700])
    assert np.array_equal(out[:700], tokens[1001:1701])


def test_a_mix_of_many_corpora_computes_each_permutation_once() -> None:
    """Each corpus keeps those of two epochs, which a batch may span."""
    sizes = range(1000, 1010)
    first = [blocks.permutation(n, 1, epoch) for n in sizes for epoch in (0, 1)]
    again = [blocks.permutation(n, 1, epoch) for n in sizes for epoch in (0, 1)]
    assert all(one is other for one, other in zip(first, again, strict=True))
