"""Tokens are prepared once, blocks lose nothing, and the order is a function of seed and step alone."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import corpus as data
from hfgpt.data import sources, tokenizer
from hfgpt.data.corpus import TokenStream

LINES = [f"Line {i}: the quick brown fox, number {i * i}.\n" for i in range(600)]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("".join(LINES))
    return tmp_path / "corpus.txt"


def recipe(dataset: object, **more: object) -> config.Config:
    return config.build({"dataset": str(dataset), "block_size": 16, "batch_size": 8, "num_proc": 1, **more}, "test")


def all_tokens(stream: TokenStream) -> list[int]:
    out = np.empty(len(stream), dtype=np.int64)
    if len(out):
        stream.read(0, out)
    return out.tolist()


def step(batches: Any, number: int) -> list[list[int]]:
    """The global batch of a step, as one process alone gets it."""
    (batch,) = batches.micro_batches(number, 0, 1, batches.global_batch)
    return batch.tolist()


# -------------------------------------------------------------------------------------------------------------- blocks

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


# --------------------------------------------------------------------------------------------------------------- order


@given(st.integers(1, 50), st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_each_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = data.order(n, seed, range(epoch * n, (epoch + 1) * n))
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    orders = [data.order(100, seed, range(e * 100, e * 100 + 100)).tolist() for seed in (1, 2) for e in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_the_order_is_pinned() -> None:
    """A change here breaks the resume of every run made before it."""
    assert data.order(10, 1337, range(12)).tolist() == [3, 4, 5, 9, 7, 1, 6, 0, 8, 2, 0, 8]


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 30))
def test_batches_do_not_depend_on_processes_or_micro_batch(world: int, parts: int, number: int) -> None:
    batches = data.Batches(TokenStream([np.arange(200)]), 8, 16, seed=3)
    shares = [list(batches.micro_batches(number, rank, world, 16 // world // parts)) for rank in range(world)]
    assert all(len(share) == parts for share in shares)
    assert np.concatenate([m for share in shares for m in share]).tolist() == step(batches, number)


def test_steps_go_through_every_block_once_an_epoch() -> None:
    batches = data.Batches(TokenStream([np.arange(8 * 24 + 1)]), 8, 10, seed=3)
    starts = [row[0] for number in range(12) for row in step(batches, number)]
    for epoch in range(5):
        assert sorted(starts[epoch * 24 : epoch * 24 + 24]) == list(range(0, 192, 8))


# ----------------------------------------------------------------------------------------------------------- preparing


def test_char_tokens_are_the_text_split_as_nanogpt_does(corpus_file: Path) -> None:
    corpus = data.prepare(recipe(corpus_file), corpus_file.parent)
    text = "".join(LINES)
    cut = int(len(text) * 0.9)
    assert corpus.tokenizer.decode(all_tokens(corpus.train)) == text[:cut]
    assert corpus.tokenizer.decode(all_tokens(corpus.val)) == text[cut:]
    assert step(corpus.batches, 5) == step(data.Batches(corpus.train, 16, 8, 1337), 5)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_process_count_prepares_the_same(
    corpus_file: Path, num_proc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PART", 2000)
    made = recipe(corpus_file, tokenizer="bpe", vocab_size=300, num_proc=num_proc)
    corpus = data.prepare(made, corpus_file.parent / str(num_proc))
    text = "".join(LINES)
    expected = [*corpus.tokenizer.encode(text), corpus.tokenizer.eos_token_id]
    assert all_tokens(corpus.train) + all_tokens(corpus.val) == expected


@pytest.mark.parametrize("form", ["folder", "jsonl", "parquet"])
def test_documents_end_with_end_of_text(tmp_path: Path, form: str) -> None:
    if form == "folder":
        for i, line in enumerate(LINES):
            (tmp_path / f"{i:03d}.txt").write_text(line)
    elif form == "jsonl":
        (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    else:
        pq.write_table(pa.table({"text": LINES}), tmp_path / "d.parquet", row_group_size=100)
    corpus = data.prepare(recipe(tmp_path, tokenizer="bpe", vocab_size=300), tmp_path / "cache")
    made = corpus.tokenizer
    expected = [token for line in LINES for token in [*made.encode(line), made.eos_token_id]]
    assert all_tokens(corpus.train) + all_tokens(corpus.val) == expected


def test_own_validation_files_are_used(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(LINES[:500]))
    (tmp_path / "val.txt").write_text("".join(LINES[500:]))
    for streaming in (False, True):
        corpus = data.prepare(recipe(tmp_path, streaming=streaming, eval_iters=100), tmp_path / "cache")
        assert corpus.tokenizer.decode(all_tokens(corpus.val)) == "".join(LINES[500:])


def test_large_vocabularies_are_stored_wide(corpus_file: Path) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(chr(0x20000 + i) for i in range(50_000))
    (corpus_file.parent / "wide.txt").write_text(text)
    corpus = data.prepare(recipe(corpus_file.parent / "wide.txt"), corpus_file.parent)
    assert max(all_tokens(corpus.train)) > 1 << 16 or max(all_tokens(corpus.val)) > 1 << 16
    assert corpus.tokenizer.decode(all_tokens(corpus.train) + all_tokens(corpus.val)) == text


def arrow_files(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*") if p.suffix in (".arrow", ".json")
    }


@pytest.mark.parametrize("num_proc", [1, 3])
def test_the_second_start_reads_the_cache(corpus_file: Path, num_proc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART", 2000)
    cache = corpus_file.parent / "cache"
    made = recipe(corpus_file, tokenizer="bpe", vocab_size=300, num_proc=num_proc)
    first = data.prepare(made, cache)
    before = arrow_files(cache)

    def fail(piece: sources.Piece) -> Any:
        raise AssertionError("the text is read again")

    monkeypatch.setattr(sources, "read", fail)
    again = data.prepare(made, cache)
    assert arrow_files(cache) == before
    assert again.fingerprint == first.fingerprint
    assert all_tokens(again.train) == all_tokens(first.train)
    data.prepare(recipe(corpus_file, tokenizer="bpe", vocab_size=300, block_size=32, val_fraction=0.2, seed=4), cache)
    assert arrow_files(cache) == before, "block_size, val_fraction and seed need no new tokens"


@pytest.mark.e2e
def test_another_process_reads_the_cache_and_would_make_the_same(corpus_file: Path) -> None:
    cache, fresh = corpus_file.parent / "cache", corpus_file.parent / "fresh"
    first = data.prepare(recipe(corpus_file, tokenizer="bpe", vocab_size=300), cache)
    before = arrow_files(cache)
    program = (
        "import sys; from pathlib import Path; from hfgpt import config; from hfgpt.data import corpus as data\n"
        "values = dict(dataset=sys.argv[1], tokenizer='bpe', vocab_size=300, block_size=16, batch_size=8)\n"
        "for cache in sys.argv[2:]: print(data.prepare(config.build(values, 'x'), Path(cache)).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(corpus_file), str(cache), str(fresh)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert result.stdout.split() == [first.fingerprint] * 2
    assert arrow_files(cache) == before


def test_the_fingerprint_tells_what_is_trained_on(corpus_file: Path) -> None:
    cache = corpus_file.parent / "cache"

    def mark(**more: object) -> str:
        return data.prepare(recipe(corpus_file, **more), cache).fingerprint

    first = mark()
    assert mark(block_size=8, seed=1) == first
    assert len({first, mark(val_fraction=0.2), mark(tokenizer="bpe", vocab_size=300)}) == 3
    corpus_file.write_text(corpus_file.read_text().replace("quick", "quiet"))
    assert mark() != first, "the same size, another content"


def test_bad_text_deep_inside_is_found_by_workers(corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART", 2000)
    corpus_file.write_bytes("".join(LINES).encode() + b"\xff")
    folder = corpus_file.parent / "made"
    tokenizer.train_bpe(LINES, 300).save_pretrained(folder)
    for num_proc in (1, 2):
        with pytest.raises(InputError, match="is not UTF-8 text"):
            data.prepare(recipe(corpus_file, tokenizer=str(folder), num_proc=num_proc), corpus_file.parent / "cache")


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("ten chars\n", {}, "training split .* has 9.*block_size to at most 8"),
        ("x" * 100, {"val_fraction": 0.1}, "validation split .* has 10.*at most 9, give more text, or change val_frac"),
        ("x", {}, "training split .* has 0\n    → give more text"),
        ("x" * 5000, {"streaming": True, "eval_iters": 200}, "lower eval_iters: it holds out 5,000 tokens"),
        ("x" * 10, {"streaming": True}, "block_size = 16"),
    ],
)
def test_too_little_text(tmp_path: Path, text: str, more: dict[str, object], message: str) -> None:
    (tmp_path / "d.txt").write_text(text)
    with pytest.raises(InputError, match=f"(?s){message}"):
        data.prepare(recipe(tmp_path / "d.txt", **more), tmp_path)


def test_a_compressed_file_without_text(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b""))
    for streaming in (False, True):
        with pytest.raises(InputError, match="has 0"):
            data.prepare(recipe(tmp_path, streaming=streaming), tmp_path / "cache")


def test_an_unwritable_cache(corpus_file: Path) -> None:
    (corpus_file.parent / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written.*\n    → set HF_DATASETS_CACHE"):
        data.prepare(recipe(corpus_file), corpus_file.parent / "file" / "cache")


# ----------------------------------------------------------------------------------------------------------- streaming


@pytest.fixture(params=["one file", "files", "jsonl", "gz", "rows"])
def stream_of(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the batches of a small corpus in one of several forms, afresh each time.

    "rows" reads a local Parquet folder through the same IterableDataset that a Hub dataset comes as.
    """
    import gzip

    monkeypatch.setattr(data, "SHUFFLE_WINDOW", 16)
    monkeypatch.setattr(sources, "PART", 700)
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
    encode = tokenizer.encoder(made.backend_tokenizer.to_str())

    def make(seed: int = 1, held: int = 0) -> tuple[TokenStream, data.StreamBatches]:
        import datasets

        rows, pieces = None, sources.find(recipe(folder), tmp_path).train
        if form == "rows":
            rows, pieces = datasets.load_dataset("parquet", data_dir=str(folder), split="train", streaming=True), []
        texts = sources.TextStream(pieces, rows, "text", seed)
        source = data.TokenSource(texts, lambda part: data.encode_part(part, encode, made.eos_token_id))
        return source.hold_out(held) if held else TokenStream([]), data.StreamBatches(source, 8, 10, seed)

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


def step_of(batches: data.StreamBatches, number: int) -> list[list[int]]:
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
        blocks = [window[i] for i in np.argsort(data._permutation(16, 1, number))]
        for block, following in itertools.pairwise(blocks):
            assert block[-1] == following[0]
        tokens += [token for block in blocks for token in block[:-1]]
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
        tokens += [token for i in np.argsort(data._permutation(16, 1, number)) for token in window[i][:-1]]
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
    corpus = data.prepare(made, corpus_file.parent)
    n = 2 * 12 * 16 + 1
    text = "".join(LINES)
    assert corpus.tokenizer.decode(all_tokens(corpus.val)) == text[:n]
    assert corpus.tokenizer.decode(all_tokens(corpus.train)) == text[n : 2 * n]
    (batch,) = corpus.batches.micro_batches(0, 0, 1, 8)
    assert all(corpus.tokenizer.decode(row) in text[n:] for row in batch)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_blocks_are_spread_over_the_split() -> None:
    stream = TokenStream([np.arange(8 * 1000 + 1)])
    blocks = data.evaluation_blocks(stream, 8, 5)
    assert len(blocks) == 60
    assert len(set(blocks.tolist())) == 60
    assert blocks[0] == 0
    assert 980 < blocks[-1] < 1000
    assert data.evaluation_blocks(stream, 8, 1000).tolist() == list(range(1000)), "all of a small split"
    assert data.evaluation_blocks(TokenStream([]), 8, 5).tolist() == []


def test_characters_of_targets(corpus_file: Path) -> None:
    for made in (tokenizer.train_char(LINES), tokenizer.train_bpe(LINES, 300)):
        count = data.CharacterCounter(made)
        text = "Line 5: the quick 😀 你好.\n"
        ids = np.array([made.encode(text)] * 3)
        assert count(ids) == 3 * len(text)


def test_characters_by_decoding() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"ab": 0, "c": 1, "</s>": 2}, unk_token="</s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)
    assert data.CharacterCounter(made)(np.array([[0, 1, 2], [1, 1, 1]])) == len("ab c") + len("c c c")


# ----------------------------------------------------------------------------------------------- nanoGPT's token files


def write_bins(folder: Path, text: str) -> list[str]:
    """What nanoGPT's data/shakespeare_char/prepare.py writes."""
    characters = sorted(set(text))
    ids = np.array([characters.index(letter) for letter in text], dtype=np.uint16)
    folder.mkdir()
    ids[: len(ids) * 9 // 10].tofile(folder / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(folder / "val.bin")
    table = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    table["stoi"] = {letter: i for i, letter in enumerate(characters)}
    (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    return characters


def test_nanogpt_token_files_are_a_dataset(tmp_path: Path) -> None:
    text = "To be, or not to be: that is the question.\n" * 20
    characters = write_bins(tmp_path / "bins", text)
    corpus = data.prepare(config.build({"dataset": str(tmp_path / "bins"), "block_size": 8}, "x"), tmp_path / "cache")
    assert len(corpus.tokenizer) == len(characters)
    assert corpus.tokenizer.decode(corpus.train.blocks([0], 8)[0]) == text[:9]
    assert len(corpus.train) + len(corpus.val) == len(text)


def test_nanogpt_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_bins(tmp_path / "bins", "abc" * 50)
    np.array([7] * 50, dtype=np.uint16).tofile(tmp_path / "bins" / "val.bin")
    resolved = config.build({"dataset": str(tmp_path / "bins"), "block_size": 8}, "x")
    with pytest.raises(InputError, match="has the token 7, and the tokenizer"):
        data.prepare(resolved, tmp_path / "cache")
