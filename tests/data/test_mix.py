"""Corpora are mixed in the proportions of their weights; the pattern depends only on seed and position."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_texts import all_tokens
from hypothesis import given
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import pieces
from hfgpt.data.blocks import TokenStream
from hfgpt.data.mix import ROUND, MixedBatches, Pattern
from hfgpt.data.prepare import prepare

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)


@given(WEIGHTS, st.integers(0, 5 * ROUND), st.integers(1, ROUND + 5))
def test_rows_of_each_corpus_are_numbered_in_turn(weights: list[float], first: int, n: int) -> None:
    pattern = Pattern(weights, 3)
    before = pattern.counts(first)
    corpora, numbers = pattern.rows(first, n)
    assert len(corpora) == n
    for i in range(len(weights)):
        here = (corpora == i).sum()
        assert numbers[corpora == i].tolist() == list(range(before[i], before[i] + here))
        assert pattern.counts(first + n)[i] == before[i] + here


@given(WEIGHTS, st.integers(1, 1000))
def test_shares_are_those_of_the_weights(weights: list[float], rounds: int) -> None:
    counts = Pattern(weights, 3).counts(rounds * ROUND)
    assert counts.sum() == rounds * ROUND
    assert np.abs(counts - rounds * ROUND * np.array(weights) / sum(weights)).max() <= len(weights)


def test_the_pattern_is_pinned() -> None:
    """A change of the pattern breaks the resume of every earlier run with a mix."""
    assert Pattern([3, 1], 1337).rows(0, 16)[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def write(folder: Path) -> dict[str, Path]:
    (folder / "capitals.txt").write_text("ABCDEFGHIJ" * 3000)
    (folder / "small.jsonl").write_text("\n".join(json.dumps({"text": "klmnopqrst" * 20}) for _ in range(60)))
    return {"capitals": folder / "capitals.txt", "small": folder / "small.jsonl"}


def mix_of(folder: Path, weights: tuple[float, float], **more: object) -> config.Config:
    entries = [{"name": str(p), "weight": w} for p, w in zip(write(folder).values(), weights, strict=True)]
    values = {"block_size": 16, "batch_size": 8, "num_proc": 1, "eval_iters": 2}
    return config.build({"dataset": entries, **values, **more}, "test")


def steps(batches: Any, numbers: range) -> list[list[list[int]]]:
    return [next(iter(batches.micro_batches(number, 0, 1, 8))).tolist() for number in numbers]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mix_is_trained_in_its_shares_and_resumed(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 500)
    made = mix_of(tmp_path, (3, 1), streaming=streaming)
    corpus = prepare(made, tmp_path / "cache")
    rows = steps(corpus.batches, range(600))
    texts = [corpus.tokenizer.decode(row) for step in rows for row in step]
    share = sum(text.isupper() for text in texts) / len(texts)
    assert abs(share - 0.75) < 0.01
    assert all(text.isupper() or text.islower() for text in texts), "a block is of one corpus"
    figures = corpus.batches.figures(600)
    assert figures["share/capitals.txt"] == pytest.approx(share)
    assert figures["share/capitals.txt"] + figures["share/small.jsonl"] == 1
    again = prepare(made, tmp_path / "cache").batches
    expected = steps(again, range(7))
    assert expected == rows[:7]
    state = json.loads(json.dumps(again.state_dict()))
    fresh = prepare(made, tmp_path / "cache").batches
    fresh.load_state_dict(state)
    assert steps(fresh, range(7, 12)) == rows[7:12]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mix_does_not_depend_on_the_processes(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 500)
    made = mix_of(tmp_path, (1, 2.5), streaming=streaming)
    whole, *ranks = (prepare(made, tmp_path / "cache").batches for _ in range(3))
    for number in range(40):
        shares = [m for rank, batches in enumerate(ranks) for m in batches.micro_batches(number, rank, 2, 2)]
        assert np.concatenate(shares).tolist() == steps(whole, range(number, number + 1))[0]


def test_a_mix_is_evaluated_in_its_shares_and_each_corpus_by_itself(tmp_path: Path) -> None:
    corpus = prepare(mix_of(tmp_path, (1, 1)), tmp_path / "cache")
    text = corpus.tokenizer.decode(all_tokens(corpus.val))
    assert abs(sum(map(str.isupper, text)) / len(text) - 0.5) < 0.02
    assert corpus.validation_sets.keys() == {"capitals.txt", "small.jsonl"}
    assert corpus.tokenizer.decode(all_tokens(corpus.validation_sets["small.jsonl"])).islower()
    assert corpus.train_tokens == 30_000 * 9 // 10 + 12_000 * 9 // 10


def test_weights_decide_which_run_it_is(tmp_path: Path) -> None:
    prints = [prepare(mix_of(tmp_path, w), tmp_path / "cache").fingerprint for w in [(1, 1), (1, 2), (1, 1)]]
    assert prints[0] == prints[2] != prints[1]


def test_corpora_of_a_mix_go_through_their_epochs(tmp_path: Path) -> None:
    streams = {"a": TokenStream([np.arange(8 * 5 + 1)]), "b": TokenStream([np.arange(1000, 1000 + 8 * 7 + 1)])}
    batches = MixedBatches(streams, [1, 1], 8, 4, seed=3)
    starts = [row[0] for number in range(100) for (rows,) in [batches.micro_batches(number, 0, 1, 4)] for row in rows]
    for low, count in ((0, 5), (1000, 7)):
        own = [int(start) for start in starts if low <= start < low + 500]
        for epoch in itertools.batched(own, count) if hasattr(itertools, "batched") else []:
            assert len({*epoch}) == len(epoch)
        assert {*own[:count]} == {low + 8 * i for i in range(count)}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([{"name": "a"}], "each with a name and a weight"),
        ([{"name": "a", "weight": 0}], "must be a number of more than 0"),
        ([{"name": "a", "weight": True}], "must be a number of more than 0"),
        ([{"name": "a", "weight": 1, "wait": 2}], "each with a name and a weight"),
        ([{"name": "a", "weight": 1}, {"name": "a", "weight": 2}], "named twice"),
        ([{"name": f"{i}", "weight": 1} for i in range(65)], "at most 64 corpora"),
        (["a", "b"], "must be text, or a list such as"),
        ([], "must be text, or a list such as"),
    ],
)
def test_what_is_not_a_mix_is_refused(dataset: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.build({"dataset": dataset}, "x")


def test_a_mix_is_typed_as_it_is_written(tmp_path: Path) -> None:
    text = "[{name: a.txt, weight: 3}, {name: b/*.txt, weight: 0.5}]"
    (tmp_path / "mix.yaml").write_text(f"dataset: {text}\n")
    typed = config.load(None, [f"--dataset={text}"])
    written = config.load(tmp_path / "mix.yaml")
    assert typed.dataset == written.dataset
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(written))
    assert "- name: a.txt" in again.read_text()
    assert config.load(again).dataset == written.dataset
    assert config.load(None, ["--dataset=[ab]*.txt"]).dataset == "[ab]*.txt", "a pattern"


def test_token_files_in_a_mix(tmp_path: Path) -> None:
    from test_bins import write_bins

    write_bins(tmp_path / "bins", "abc" * 50)
    entries = [{"name": str(tmp_path / "bins"), "weight": 1}, {"name": str(write(tmp_path)["small"]), "weight": 1}]
    with pytest.raises(InputError, match="holds character ids"):
        prepare(config.build({"dataset": entries, "block_size": 8}, "x"), tmp_path / "cache")
