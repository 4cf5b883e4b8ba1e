"""A fingerprint depends on the contents."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_texts import (
    dataset,
)

from hfgpt.data import pieces, sources


def test_the_fingerprint_is_the_contents(tmp_path: Path) -> None:
    def mark(name: str, text: str, **more: object) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return sources.find(dataset(tmp_path / name, **more), tmp_path).train_fingerprint

    first = mark("a.txt", "one text")
    assert mark("other/b.txt", "one text") == first, "the place does not matter"
    assert mark("a.txt", "two text") != first, "the content does, at the same size too"
    assert mark("a.txt", "one text", text_column="other") != first


@pytest.fixture
def digested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str | None, Path]:
    """Return a file that is large enough to have its digest remembered, its fingerprint, and what is remembered."""
    monkeypatch.setattr(pieces, "REMEMBERED_FROM", 4)
    path = tmp_path / "a.txt"
    path.write_text("one text")
    first = sources.find(dataset(path), tmp_path).train_fingerprint
    (memory,) = (tmp_path / "hfgpt" / "digests").iterdir()
    return path, first, memory


def test_a_large_files_digest_is_remembered_until_it_is_touched(
    tmp_path: Path, digested: tuple[Path, str | None, Path]
) -> None:
    path, first, memory = digested
    memory.write_text("remembered")
    assert sources.find(dataset(path), tmp_path).train_fingerprint != first, "it is what was remembered"
    path.write_text("two text")
    assert sources.find(dataset(path), tmp_path).train_fingerprint != first
    path.write_text("one text")
    assert sources.find(dataset(path), tmp_path).train_fingerprint == first


def test_a_digest_that_cannot_be_remembered_is_computed_again(
    tmp_path: Path, digested: tuple[Path, str | None, Path]
) -> None:
    path, first, memory = digested
    memory.write_text("")
    assert sources.find(dataset(path), tmp_path).train_fingerprint == first, "a power cut has emptied the entry"
    (tmp_path / "file").touch()
    assert sources.find(dataset(path), tmp_path / "file").train_fingerprint == first, "the cache cannot be written"
