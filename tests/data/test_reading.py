"""Every format of text yields the same documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import (
    DOCUMENTS,
    documents,
    write_files,
    write_jsonl,
    write_parquet,
    zst,
)

from hfgpt.data import pieces


@pytest.fixture(params=["files", "files.gz", "files.zst", "glob", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def every_form(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return DOCUMENTS in each format that can be read."""
    forms = {
        "files": lambda: write_files(tmp_path / "d"),
        "files.gz": lambda: write_files(tmp_path / "d", gzip.compress, ".gz"),
        "files.zst": lambda: write_files(tmp_path / "d", zst, ".zst"),
        "glob": lambda: f"{write_files(tmp_path / 'd')}/[0-9]*.txt",
        "jsonl": lambda: write_jsonl(tmp_path / "d.jsonl"),
        "jsonl.gz": lambda: write_jsonl(tmp_path / "d.jsonl.gz", gzip.compress),
        "jsonl.zst": lambda: write_jsonl(tmp_path / "d.JSONL.zst", zst),
        "parquet": lambda: write_parquet(tmp_path / "d.parquet"),
    }
    return str(forms[request.param]())


@pytest.mark.parametrize("part", [1 << 20, 7])
def test_every_form_gives_the_same_documents(
    every_form: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", part)
    assert documents(every_form, tmp_path) == DOCUMENTS


def test_the_embedded_corpus(tmp_path: Path) -> None:
    (text,) = documents("shakespeare", tmp_path)
    assert text.startswith("THESEUS:\nNow, fair Hippolyta")
    assert len(text) == 4_814_324


def test_another_column(tmp_path: Path) -> None:
    assert documents(write_parquet(tmp_path / "d.parquet", "body"), tmp_path, text_column="body") == DOCUMENTS
    assert documents(write_jsonl(tmp_path / "d.jsonl", key="body"), tmp_path, text_column="body") == DOCUMENTS


def test_compressed_files_put_together(tmp_path: Path) -> None:
    for pack, name in ((gzip.compress, "d.txt.gz"), (zst, "d.txt.zst")):
        (tmp_path / name).write_bytes(pack(b"one\n" * 100_000) + pack(b"two\n" * 100_000))
        assert documents(tmp_path / name, tmp_path) == ["one\n" * 100_000 + "two\n" * 100_000]


def test_missing_and_empty_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": null}\n{"text": ""}\n{"text": "a"}\n')
    assert documents(tmp_path / "d.jsonl", tmp_path) == ["a"]
    pq.write_table(pa.table({"text": [None, "", "a"]}), tmp_path / "d.parquet")
    assert documents(tmp_path / "d.parquet", tmp_path) == ["a"]


def test_half_a_surrogate_pair_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}')
    assert documents(tmp_path / "d.jsonl", tmp_path) == ["a\ufffdb 😀"]


def test_the_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfa\r\n")
    assert documents(tmp_path / "d.txt", tmp_path) == ["a\r\n"]


@pytest.mark.parametrize("pack", [gzip.compress, zst])
@pytest.mark.parametrize("short", [1, 2, 3])
def test_lines_that_follow_a_long_one_in_the_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes], short: int
) -> None:
    monkeypatch.setattr(pieces, "PART", 1000)
    texts = ["a b " * 3000, *(f"line {i}" for i in range(short))]  # more than LONG parts, then less than one
    name = "d.jsonl.gz" if pack is gzip.compress else "d.jsonl.zst"
    (tmp_path / name).write_bytes(pack("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    assert documents(tmp_path / name, tmp_path / "cache") == texts
