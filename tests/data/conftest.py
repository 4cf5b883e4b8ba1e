"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_texts import (
    LINES,
)


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("".join(LINES))
    return tmp_path / "corpus.txt"
