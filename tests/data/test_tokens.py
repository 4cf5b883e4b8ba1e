"""Tokens are made once, by any number of processes, and then read from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_texts import (
    LINES,
    all_tokens,
    recipe,
)

from hfgpt.base.errors import InputError
from hfgpt.data import pieces, reading, tokenizer
from hfgpt.data.pieces import Piece
from hfgpt.data.prepare import prepare


def arrow_files(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*") if p.suffix in (".arrow", ".json")
    }


@pytest.mark.parametrize("num_proc", [1, 3])
def test_the_second_start_reads_the_cache(corpus_file: Path, num_proc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 2000)
    cache = corpus_file.parent / "cache"
    made = recipe(corpus_file, tokenizer="bpe", vocab_size=300, num_proc=num_proc)
    first = prepare(made, cache)
    before = arrow_files(cache)

    def fail(piece: Piece) -> Any:
        raise AssertionError("the text is read again")

    monkeypatch.setattr(reading, "read", fail)
    again = prepare(made, cache)
    assert arrow_files(cache) == before
    assert again.fingerprint == first.fingerprint
    assert all_tokens(again.train) == all_tokens(first.train)
    prepare(recipe(corpus_file, tokenizer="bpe", vocab_size=300, block_size=32, val_fraction=0.2, seed=4), cache)
    assert arrow_files(cache) == before, "block_size, val_fraction and seed need no new tokens"


@pytest.mark.e2e
def test_another_process_reads_the_cache_and_would_make_the_same(corpus_file: Path) -> None:
    cache, fresh = corpus_file.parent / "cache", corpus_file.parent / "fresh"
    first = prepare(recipe(corpus_file, tokenizer="bpe", vocab_size=300), cache)
    before = arrow_files(cache)
    program = (
        "import sys; from pathlib import Path; from hfgpt import config; from hfgpt.data.prepare import prepare\n"
        "values = dict(dataset=sys.argv[1], tokenizer='bpe', vocab_size=300, block_size=16, batch_size=8)\n"
        "for cache in sys.argv[2:]: print(prepare(config.build(values, 'x'), Path(cache)).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(corpus_file), str(cache), str(fresh)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert result.stdout.split() == [first.fingerprint] * 2
    assert arrow_files(cache) == before


def test_bad_text_deep_inside_is_found_by_workers(corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 2000)
    corpus_file.write_bytes("".join(LINES).encode() + b"\xff")
    folder = corpus_file.parent / "made"
    tokenizer.train_bpe(LINES, 300).save_pretrained(folder)
    for num_proc in (1, 2):
        with pytest.raises(InputError, match="is not UTF-8 text"):
            prepare(recipe(corpus_file, tokenizer=str(folder), num_proc=num_proc), corpus_file.parent / "cache")
