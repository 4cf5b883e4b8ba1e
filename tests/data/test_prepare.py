"""A config becomes a corpus: the tokens of both splits, for every format of text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import (
    LINES,
    all_tokens,
    recipe,
    step,
)

from hfgpt.base.errors import InputError
from hfgpt.data import pieces
from hfgpt.data.blocks import Batches
from hfgpt.data.prepare import prepare


def test_char_tokens_are_the_text_split_as_nanogpt_does(corpus_file: Path) -> None:
    corpus = prepare(recipe(corpus_file), corpus_file.parent)
    text = "".join(LINES)
    cut = int(len(text) * 0.9)
    assert corpus.tokenizer.decode(all_tokens(corpus.train)) == text[:cut]
    assert corpus.tokenizer.decode(all_tokens(corpus.val)) == text[cut:]
    assert step(corpus.batches, 5) == step(Batches(corpus.train, 16, 8, 1337), 5)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_process_count_prepares_the_same(
    corpus_file: Path, num_proc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 2000)
    made = recipe(corpus_file, tokenizer="bpe", vocab_size=300, num_proc=num_proc)
    corpus = prepare(made, corpus_file.parent / str(num_proc))
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
    corpus = prepare(recipe(tmp_path, tokenizer="bpe", vocab_size=300), tmp_path / "cache")
    made = corpus.tokenizer
    expected = [token for line in LINES for token in [*made.encode(line), made.eos_token_id]]
    assert all_tokens(corpus.train) + all_tokens(corpus.val) == expected


def test_own_validation_files_are_used(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(LINES[:500]))
    (tmp_path / "val.txt").write_text("".join(LINES[500:]))
    for streaming in (False, True):
        corpus = prepare(recipe(tmp_path, streaming=streaming, eval_iters=100), tmp_path / "cache")
        assert corpus.tokenizer.decode(all_tokens(corpus.val)) == "".join(LINES[500:])


def test_large_vocabularies_are_stored_wide(corpus_file: Path) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(chr(0x20000 + i) for i in range(50_000))
    (corpus_file.parent / "wide.txt").write_text(text)
    corpus = prepare(recipe(corpus_file.parent / "wide.txt"), corpus_file.parent)
    assert max(all_tokens(corpus.train)) > 1 << 16 or max(all_tokens(corpus.val)) > 1 << 16
    assert corpus.tokenizer.decode(all_tokens(corpus.train) + all_tokens(corpus.val)) == text


def test_the_fingerprint_tells_what_is_trained_on(corpus_file: Path) -> None:
    cache = corpus_file.parent / "cache"

    def mark(**more: object) -> str:
        return prepare(recipe(corpus_file, **more), cache).fingerprint

    first = mark()
    assert mark(block_size=8, seed=1) == first
    assert len({first, mark(val_fraction=0.2), mark(tokenizer="bpe", vocab_size=300)}) == 3
    corpus_file.write_text(corpus_file.read_text().replace("quick", "quiet"))
    assert mark() != first, "the same size, another content"


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("ten chars\n", {}, "training split .* has 9.*block_size to at most 8"),
        (
            "x" * 100,
            {"val_fraction": 0.1},
            "validation split .* has 10.*at most 9, or give more text, or change val_frac",
        ),
        ("x", {}, "training split .* has 0\n    → give more text"),
        ("x" * 5000, {"streaming": True, "eval_iters": 200}, "lower eval_iters: it holds out 5,000 tokens"),
        ("x" * 10, {"streaming": True}, "block_size = 16"),
    ],
)
def test_too_little_text(tmp_path: Path, text: str, more: dict[str, object], message: str) -> None:
    (tmp_path / "d.txt").write_text(text)
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare(recipe(tmp_path / "d.txt", **more), tmp_path)


def test_a_compressed_file_without_text(tmp_path: Path) -> None:

    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b""))
    for streaming in (False, True):
        with pytest.raises(InputError, match="has 0"):
            prepare(recipe(tmp_path, streaming=streaming), tmp_path / "cache")


def test_an_unwritable_cache(corpus_file: Path) -> None:
    (corpus_file.parent / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written.*\n    → set HF_DATASETS_CACHE"):
        prepare(recipe(corpus_file), corpus_file.parent / "file" / "cache")
