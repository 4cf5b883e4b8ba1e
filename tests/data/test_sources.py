"""Bad input is one clear message."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import (
    documents,
    zst,
)

from hfgpt.base.errors import InputError


def bad_inputs(folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Return name → (recipe, a pattern for its message)."""
    (folder / "empty.txt").touch()
    (folder / "empty").mkdir()
    (folder / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "zeros.txt").write_bytes(b"text\0text")
    (folder / "utf16.txt").write_text("text", encoding="utf-16")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "gbk.txt").write_text("床前明月光，疑是地上霜。\n" * 20, encoding="gbk")
    (folder / "german.txt").write_text("Die Würde aller Menschen schützen wir, für Groß und Klein. " * 20, "cp1252")
    (folder / "spanish.txt").write_text("El año pasado llegó un niño; ¿cuándo será él mayor? " * 20, "cp1252")
    (folder / "japanese.txt").write_text("吾輩は猫である。名前はまだ無い。\n" * 20, encoding="shift_jis")
    (folder / "cut.txt").write_bytes("naï".encode()[:-1])
    (folder / "late.txt").write_bytes(b"fine line\n" * 1000 + b"\xff")
    (folder / "no.gz").write_bytes(b"x")
    (folder / "not.txt.gz").write_bytes(b"not compressed")
    (folder / "cut.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-9])
    (folder / "not.txt.zst").write_bytes(b"not compressed")
    (folder / "cut.txt.zst").write_bytes(zst(b"text" * 100_000)[:-3])
    (folder / "book.pdf").write_bytes(b"%PDF")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "a.txt").write_text("a")
    (folder / "mixed" / "b.jsonl").write_text("{}")
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "list.jsonl").write_text('["a"]\n')
    (folder / "number.jsonl").write_text('{"text": 5}\n')
    (folder / "other.jsonl").write_text('{"text": "a"}\n{"body": "a", "title": "b"}\n')
    (folder / "bad.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "number.parquet")
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), folder / "other.parquet")
    (folder / "p.parquet.gz").write_bytes(b"")
    (folder / "broken.txt").symlink_to("gone.txt")
    os.mkfifo(folder / "pipe.txt")
    expected = {
        "broken.txt": "a pipe, a device or a broken link",
        "pipe.txt": "a pipe, a device or a broken link",
        "empty.txt": "is empty",
        "empty": "holds no text",
        "binary.txt": r"not UTF-8 text \(at byte 0\)",
        "zeros.txt": r"not UTF-8 text \(at byte 4\)",
        "utf16.txt": "UTF-16: save it as UTF-8",
        "latin.txt": r"not UTF-8 text \(at byte 2\)",
        "gbk.txt": "it looks like GBK .*iconv -f gb18030",
        **dict.fromkeys(("german.txt", "spanish.txt", "japanese.txt"), "→ give plain text, saved as UTF-8"),
        "cut.txt": r"not UTF-8 text",
        "late.txt": r"not UTF-8 text \(at byte 10,000\)",
        "no.gz": r"files must end in \.txt",
        "not.txt.gz": "cannot be read",
        "cut.txt.gz": "cannot be read",
        "not.txt.zst": "cannot be read",
        "cut.txt.zst": "cannot be read: the compressed file is truncated",
        "book.pdf": r"ends in '.pdf'; files must end in \.txt",
        "mixed": "different kinds",
        "broken.jsonl": "line 2 is not JSON",
        "list.jsonl": "line 1 is not a JSON object",
        "number.jsonl": "holds int in .*line 1, not text",
        "other.jsonl": "line 2 has no such column; it has 'body', 'title'",
        "bad.parquet": "cannot be read as a Parquet file",
        "number.parquet": "holds int64 in",
        "other.parquet": "has no such column; it has 'body', 'title'",
        "p.parquet.gz": r"files must end in \.txt",
        "missing.txt": "no such file or folder",
        "missing/deep/file": "no such file or folder",
        "*.nothing": "no file matches",
        "*.p*": "files must end in",
    }
    cases: dict[str, tuple[dict[str, object], str]] = {
        name: ({"dataset": str(folder / name)}, message) for name, message in expected.items()
    }
    cases["Hub id"] = (
        {"dataset": "nobody/nothing"},
        "dataset = 'nobody/nothing': no such file or folder here, and the Hub",
    )
    for name in ("raw.bin", "data/raw.bin", "notes.md", "data/notes.csv"):  # of a file, so the Hub is not asked
        cases[name] = ({"dataset": name}, rf"dataset = '{name}': no such file or folder\n.*{Path.cwd()}/{name} does")
    cases["Hub id, streaming"] = ({"dataset": "nobody/nothing", "streaming": True}, "the Hub did not give it")
    return cases


def test_bad_input_is_one_clear_message(tmp_path: Path) -> None:
    for name, (recipe, message) in bad_inputs(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            documents(recipe.pop("dataset"), tmp_path, **recipe)
        assert "→" in str(caught.value), f"{name}: says what to do"
