"""Files are cut so that the tokens of the pieces equal the tokens of the whole text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from data_texts import (
    dataset,
    documents,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfgpt.data import encoding, pieces, sources, tokenizer
from hfgpt.data.encoding import encoder
from hfgpt.data.reading import read

WORD = st.sampled_from(["the", "don't", "'s", "x", "123", "é", "e\u0301", "你好", "😀", "!", "--", "_", "…"])
GAP = st.sampled_from([" ", "\n", "\n\n", "  ", "\r\n", ". ", ",\t ", "，", "\u3000 x", " \n "])
PROSE = st.lists(st.tuples(WORD, GAP), min_size=1, max_size=150).map(lambda pairs: "".join(w + g for w, g in pairs))


@pytest.fixture(scope="module")
def bpe() -> encoding.Encoder:
    text = gzip.decompress(sources.EMBEDDED.read_bytes()).decode()[:100_000]
    return encoder(tokenizer.train_bpe([text], 500).backend_tokenizer.to_str())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=PROSE)
def test_tokens_of_pieces_are_the_tokens_of_the_text(
    text: str, bpe: encoding.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 48)
    monkeypatch.setattr(pieces, "WINDOW", 96)
    whole = bpe([text])[0].tolist()
    for name, raw in (("d.txt", text.encode()), ("d.txt.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(raw)
        cut = sources.find(dataset(tmp_path / name), tmp_path).train
        parts = [part for piece in cut for part in read(piece)]
        assert "".join(part.texts[0] for part in parts) == text
        assert [part.open for part in parts] == [True] * (len(parts) - 1) + [False]
        assert [t for part in parts for t in bpe(part.texts)[0].tolist()] == whole


@given(text=st.text(min_size=1, max_size=500))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pieces_of_any_text_are_the_text(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 16)
    monkeypatch.setattr(pieces, "WINDOW", 8)
    text = text.replace("\0", "").removeprefix("\ufeff") or "a"
    (tmp_path / "d.txt").write_text(text, encoding="utf-8", newline="")
    assert documents(tmp_path / "d.txt", tmp_path) == [text]


def test_a_big_file_is_cut_for_many_processes(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("some words in a line\n" * 400_000)
    cut = sources.find(dataset(tmp_path / "d.txt"), tmp_path).train
    assert len(cut) == 8
    assert max(piece.size for piece in cut) < 2 * pieces.PART
    (tmp_path / "d.jsonl").write_text('{"text": "some words in a line"}\n' * 200_000)
    assert len(sources.find(dataset(tmp_path / "d.jsonl"), tmp_path).train) == 6
