"""Long lines, compression bombs and unusual tables: linear time, little memory, one message."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_texts import LINES, all_tokens, documents, recipe
from hypothesis import example, given
from hypothesis import strategies as st

from hfgpt.base.errors import InputError
from hfgpt.data import pieces, reading
from hfgpt.data.long_lines import LongLine, NotJson
from hfgpt.data.prepare import prepare

ROWS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)),
    max_size=4,
)


@example({"𐀀": None}, "a𐀀b", True, 1, random.Random(0))  # pairs of escapes, which Python 3.11.2 split
@given(ROWS, st.text(), st.booleans(), st.integers(1, 7), st.randoms())
def test_a_long_line_is_read_as_json_does(
    row: dict[str, Any], text: str, escaped: bool, size: int, draw: random.Random
) -> None:
    entries = [*(item for item in row.items() if item[0] != "text"), ("text", text)]
    draw.shuffle(entries)
    raw = json.dumps(dict(entries), ensure_ascii=escaped, indent=draw.choice([None, 1])).encode("utf-8", "replace")
    line = LongLine(iter([raw[at : at + size] for at in range(0, len(raw), size)]), "text")
    expected = json.loads(raw)["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(line.fragments()) == expected
    assert line.keys == [key for key, _ in json.loads(raw, object_pairs_hook=list)]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b'{"text": "a', b'{"text": "\\x"}  ', b'{"text": "a"} b', b'{"text" "a"}', b'{"a": [}']
)
def test_a_long_line_that_is_not_json(raw: bytes) -> None:
    with pytest.raises(NotJson):
        "".join(LongLine(iter([raw]), "text").fragments())


def test_long_lines_and_short_ones_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 100)
    texts = ["short", "a long one. " * 400, "你好😀 " * 300, "", "short again", "x y " * 800, "last"]
    rows = [json.dumps({"id": i, "text": text, "z": [1]}) for i, text in enumerate(texts)]
    (tmp_path / "d.jsonl").write_text("\n".join(rows) + "\n")
    assert documents(tmp_path / "d.jsonl", tmp_path) == [text for text in texts if text]
    corpus = prepare(recipe(tmp_path / "d.jsonl", tokenizer="bpe", vocab_size=300), tmp_path / "cache")
    made = corpus.tokenizer
    expected = [token for text in texts if text for token in [*made.encode(text), made.eos_token_id]]
    assert all_tokens(corpus.train) + all_tokens(corpus.val) == expected
    (tmp_path / "d.jsonl").write_text(rows[0] + "\n" + json.dumps({"body": "long " * 1000}))
    with pytest.raises(InputError, match="line 2 has no such column; it has 'body'"):
        documents(tmp_path / "d.jsonl", tmp_path)
    (tmp_path / "d.jsonl").write_text(rows[0] + "\n" + json.dumps({"text": ["long "] * 1000}))
    with pytest.raises(InputError, match=r"holds list in .*line 2, not text"):
        documents(tmp_path / "d.jsonl", tmp_path)


def test_a_long_line_takes_time_in_its_length_and_little_memory(tmp_path: Path) -> None:
    """40 MB in one line; an earlier version read it 40 times to cut it and held several copies."""
    import tracemalloc

    path = tmp_path / "d.jsonl"
    with open(path, "w") as file:
        file.write('{"text": "')
        for _ in range(40):
            file.write("some words " * 95_000)
        file.write('"}')
    tracemalloc.start()
    parts = (part for piece in pieces.cut_file(path, "text") for part in reading.read(piece))
    assert sum(len(text) for part in parts for text in part.texts) == 40 * 95_000 * 11
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20


def read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many bytes are read to cut a file."""
    total = 0

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, n: int) -> bytes:
            nonlocal total
            raw: bytes = self.file.read(n)
            total += len(raw)
            return raw

        def seek(self, at: int) -> None:
            self.file.seek(at)

    with open(path, "rb") as file:
        list(pieces._line_cuts(Counting(file), path.stat().st_size))  # type: ignore[arg-type]
    return total


def test_a_file_is_cut_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PART", 1000)
    (tmp_path / "d.jsonl").write_bytes(b"x" * 500_000)
    assert read_once(tmp_path / "d.jsonl", monkeypatch) <= 501_000


# ---------------------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text":' * 100_000, '{"text": ' + "9" * 10_000 + "}"])
def test_nested_and_endless_json(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(line)
    with pytest.raises(InputError, match="line 1"):
        documents(tmp_path / "d.jsonl", tmp_path)


def test_a_packed_file_is_unpacked_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of one letter is packed into 32 kB: only a part of it is held at any time."""
    import tracemalloc

    with open(tmp_path / "d.txt.zst", "wb") as file:
        packer = zstandard.ZstdCompressor(level=19).compressobj()
        for _ in range(256):
            file.write(packer.compress(b"a" * (1 << 20)))
        file.write(packer.flush())
    (piece,) = pieces.cut_file(tmp_path / "d.txt.zst", "text")
    tracemalloc.start()
    assert sum(len(part.texts[0]) for part in reading.read(piece)) == 256 << 20
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()


def test_a_table_of_long_repeated_texts_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    """A text of a megabyte is stored once for 300 rows."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["word " * 200_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 3 << 20
    parts = (part for piece in pieces.cut_file(tmp_path / "d.parquet", "text") for part in reading.read(piece))
    assert sum(len(text) for part in parts for text in part.texts) == 300 * 1_000_000


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_text_column(tmp_path: Path, kind: Any) -> None:
    """Polars writes string_view."""
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "d.parquet")
    assert documents(tmp_path / "d.parquet", tmp_path) == ["a", "b"]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "body"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"text_column = 'text': .* has 2 columns of this name"):
        documents(tmp_path / "d.parquet", tmp_path)
    assert documents(tmp_path / "d.parquet", tmp_path, text_column="body") == ["c"]


def test_many_columns_are_not_all_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({f"column {i}": i for i in range(5000)}))
    with pytest.raises(InputError, match="and 4980 more") as caught:
        documents(tmp_path / "d.jsonl", tmp_path)
    assert len(str(caught.value)) < 1000


# ----------------------------------------------------------------------------------------- two runs that share a cache


@pytest.mark.e2e
def test_two_runs_prepare_the_same_corpus_at_once(corpus_file: Path) -> None:
    """One process prepares while the other waits, then reads; a third replaces one that was killed half-way."""
    cache = corpus_file.parent / "cache"
    corpus_file.write_text("".join(LINES) * 100)
    program = (
        "import sys; from pathlib import Path; from hfgpt import config; from hfgpt.data.prepare import prepare\n"
        "values = dict(dataset=sys.argv[1], tokenizer='bpe', vocab_size=300, block_size=16, batch_size=8, num_proc=2)\n"
        "print(prepare(config.build(values, 'x'), Path(sys.argv[2])).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(corpus_file), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as first:
        deadline = time.monotonic() + 60
        while (
            not list(cache.glob("generator/*/*.incomplete*")) and time.monotonic() < deadline and first.poll() is None
        ):
            time.sleep(0.02)
        first.kill()
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert len({out for out, _ in said}) == 1
    fresh = corpus_file.parent / "fresh"
    made = recipe(corpus_file, tokenizer="bpe", vocab_size=300)
    assert all_tokens(prepare(made, cache).train) == all_tokens(prepare(made, fresh).train)


def test_threads_share_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes of a stream encode side by side while the encoder's cache of words is cleared."""
    from hfgpt.data import encoding, tokenizer

    monkeypatch.setattr(encoding, "KNOWN_WORDS", 3)
    encoding.encoder.cache_clear()
    made = tokenizer.train_bpe(LINES, 300)
    encode = encoding.encoder(made.backend_tokenizer.to_str())
    failures: list[BaseException] = []

    def work(words: Iterator[str]) -> None:
        try:
            for text in words:
                assert encode([text])[0].tolist() == made.encode(text)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(iter(LINES[i::4][:60]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    encoding.encoder.cache_clear()
