"""A stream resumes exactly, and gives each token once an epoch."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import (
    LINES,
    all_tokens,
    recipe,
)

from hfgpt.data import blocks, pieces, sources, streaming, tokenizer
from hfgpt.data.blocks import TokenStream
from hfgpt.data.encoding import encoder
from hfgpt.data.prepare import prepare
from hfgpt.data.streaming import StreamBatches, TextStream, TokenSource
from hfgpt.data.tokens import encode_part


@pytest.fixture(params=["one file", "files", "jsonl", "gz", "rows"])
def stream_of(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the batches of a small corpus in one of several forms, afresh each time.

    "rows" reads a local Parquet folder through the same IterableDataset that a Hub dataset comes as.
    """

    monkeypatch.setattr(streaming, "SHUFFLE_WINDOW", 16)
    monkeypatch.setattr(pieces, "PART", 700)
    lines, folder, form = LINES[:160], tmp_path / "d", request.param
    folder.mkdir()
    if form == "one file":
        (folder / "d.txt").write_text("".join(lines))
    elif form == "files":
        for i in range(0, 160, 20):
            (folder / f"{i:03d}.txt").write_text("".join(lines[i : i + 20]))
    elif form == "jsonl":
        (folder / "d.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    elif form == "gz":
        (folder / "d.txt.gz").write_bytes(gzip.compress("".join(lines).encode()))
    else:
        for i in range(0, 160, 40):
            pq.write_table(pa.table({"text": lines[i : i + 40]}), folder / f"{i:03d}.parquet", row_group_size=10)
    made = tokenizer.train_bpe(lines, 300)
    encode = encoder(made.backend_tokenizer.to_str())

    def make(seed: int = 1, held: int = 0) -> tuple[TokenStream, StreamBatches]:
        import datasets

        rows, pieces = None, sources.find(recipe(folder), tmp_path).train
        if form == "rows":
            rows, pieces = datasets.load_dataset("parquet", data_dir=str(folder), split="train", streaming=True), []
        texts = TextStream(pieces, rows, "text", seed)
        source = TokenSource(texts, lambda part: encode_part(part, encode, made.eos_token_id))
        return source.hold_out(held) if held else TokenStream([]), StreamBatches(source, 8, 10, seed)

    return make


def blocks_an_epoch(make: Any) -> int:
    """Tokens of the corpus over the block size, rounded up."""
    held, _ = make(held=10**9)
    return -(-len(held) // 8)


def test_a_stream_resumes_exactly_at_every_batch(stream_of: Any) -> None:
    _, batches = stream_of()
    steps = blocks_an_epoch(stream_of) * 2 // 10 + 8  # into the third epoch
    states, seen = [], []
    for number in range(steps):
        states.append(json.dumps(batches.state_dict()))
        seen.append(step_of(batches, number))
    assert json.loads(states[-1])["position"]["epoch"] == 2
    for number in range(steps - 1):
        _, fresh = stream_of()
        fresh.load_state_dict(json.loads(states[number]))
        assert json.dumps(fresh.state_dict()) == states[number]
        assert [step_of(fresh, number), step_of(fresh, number + 1)] == seen[number : number + 2]


def step_of(batches: StreamBatches, number: int) -> list[list[int]]:
    (batch,) = batches.micro_batches(number, 0, 1, 10)
    return batch.tolist()


def test_a_stream_holds_every_token_once_an_epoch(stream_of: Any) -> None:
    """The blocks, put back in order, are the tokens of the epochs one after another."""
    stored, _ = stream_of(held=10**9)
    _, batches = stream_of()
    n = len(stored)
    rows = [row for number in range(3 * n // 80 + 4) for row in step_of(batches, number)]
    windows = [rows[i : i + 16] for i in range(0, len(rows) - 15, 16)]
    tokens = []
    for number, window in enumerate(windows):
        ordered = [window[i] for i in np.argsort(blocks.permutation(16, 1, number))]
        for block, following in itertools.pairwise(ordered):
            assert block[-1] == following[0]
        tokens += [token for block in ordered for token in block[:-1]]
    assert len(tokens) >= 3 * n
    for epoch in range(3):
        assert sorted(tokens[epoch * n : epoch * n + n]) == sorted(all_tokens(stored))


def test_held_out_tokens_never_come(stream_of: Any) -> None:
    everything, _ = stream_of(held=10**9)
    held, batches = stream_of(held=1000)
    assert all_tokens(held) == all_tokens(everything)[:1000]
    rest = len(everything) - 1000
    rows = [row for number in range(2 * rest // 80 + 8) for row in step_of(batches, number)]
    tokens = []
    for number in range(len(rows) // 16):
        window = rows[number * 16 : number * 16 + 16]
        tokens += [token for i in np.argsort(blocks.permutation(16, 1, number)) for token in window[i][:-1]]
    assert len(tokens) >= 2 * rest
    for epoch in range(2):
        assert sorted(tokens[epoch * rest : epoch * rest + rest]) == sorted(all_tokens(everything)[1000:])


def test_seeds_shuffle_a_stream_differently(stream_of: Any) -> None:
    assert step_of(stream_of(1)[1], 0) == step_of(stream_of(1)[1], 0) != step_of(stream_of(2)[1], 0)


def test_a_stream_is_shared_between_processes(stream_of: Any) -> None:
    whole, ranks = stream_of()[1], [stream_of()[1] for _ in range(2)]
    for number in range(5):
        shares = [m for rank, batches in enumerate(ranks) for m in batches.micro_batches(number, rank, 2, 5)]
        assert np.concatenate(shares).tolist() == step_of(whole, number)


def test_streaming_and_preparing_give_the_same_tokens(corpus_file: Path) -> None:
    """The same tokenizer, and the held-out tokens are the first ones."""
    made = recipe(corpus_file, streaming=True, eval_iters=2)
    corpus = prepare(made, corpus_file.parent)
    n = 2 * 12 * 16 + 1
    text = "".join(LINES)
    assert corpus.tokenizer.decode(all_tokens(corpus.val)) == text[:n]
    assert corpus.tokenizer.decode(all_tokens(corpus.train)) == text[n : 2 * n]
    (batch,) = corpus.batches.micro_batches(0, 0, 1, 8)
    assert all(corpus.tokenizer.decode(row) in text[n:] for row in batch)
