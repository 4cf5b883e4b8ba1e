"""What `dataset` names is found and read alike in every form, and bad input is one clear message."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import sources, tokenizer

DOCUMENTS = ["First.\nAs it is.", "第二篇，你好。\r\n", "  third 😀\n\n\n", 'with "quotes" and \\ and tabs\t.']


def dataset(value: object, **more: object) -> config.Config:
    return config.build({"dataset": str(value), **more}, "test")


def documents(value: object, cache: Path, **more: object) -> list[str]:
    """All training documents of a dataset."""
    found, out, text = sources.find(dataset(value, **more), cache), [], ""
    for piece in found.train:
        for part in sources.read(piece):
            for i, each in enumerate(part.texts):
                text += each
                if not (part.open and i == len(part.texts) - 1):
                    out.append(text)
                    text = ""
    assert not text, "the last document is closed"
    return out


def write_files(folder: Path, pack: Callable[[bytes], bytes] = bytes, ending: str = "") -> Path:
    folder.mkdir()
    for i, text in enumerate(DOCUMENTS):
        (folder / f"{i}.txt{ending}").write_bytes(pack(text.encode()))
    return folder


def write_jsonl(path: Path, pack: Callable[[bytes], bytes] = bytes, key: str = "text") -> Path:
    rows = [json.dumps({"id": i, key: text}) for i, text in enumerate(DOCUMENTS)]
    path.write_bytes(pack("\n".join([rows[0], "", *rows[1:]]).encode()))
    return path


def write_parquet(path: Path, key: str = "text") -> Path:
    table = pa.table({"id": list(range(len(DOCUMENTS))), key: DOCUMENTS})
    pq.write_table(table, path, row_group_size=2)
    return path


def zst(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


@pytest.fixture(params=["files", "files.gz", "files.zst", "glob", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def every_form(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DOCUMENTS in each form that is read."""
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
    monkeypatch.setattr(sources, "PART", part)
    assert documents(every_form, tmp_path) == DOCUMENTS


def test_the_embedded_corpus(tmp_path: Path) -> None:
    (text,) = documents("shakespeare", tmp_path)
    assert text.startswith("THESEUS:\nNow, fair Hippolyta")
    assert len(text) == 4_814_324


def test_a_folder_is_read_below_and_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", ".hidden/x.txt", "README.md", "a/.y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(tmp_path, tmp_path) == ["a/z.txt", "b.txt"]


@pytest.mark.parametrize("val", ["val.jsonl", "validation-00000-of-00001.jsonl", "val/part.jsonl"])
def test_files_named_as_splits(tmp_path: Path, val: str) -> None:
    for name in ("train.jsonl", val, "test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    found = sources.find(dataset(tmp_path), tmp_path)
    assert [Path(str(piece.source)).name for piece in found.train] == ["train.jsonl"]
    assert [str(piece.source) for piece in found.val] == [str(tmp_path / val)]
    assert found.train_fingerprint != found.val_fingerprint


def test_a_folder_without_both_splits_is_all_training(tmp_path: Path) -> None:
    for name in ("train.txt", "values.txt"):
        (tmp_path / name).write_text(name)
    found = sources.find(dataset(tmp_path), tmp_path)
    assert (len(found.train), len(found.val)) == (2, 0)


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


# --------------------------------------------------------------------------------------------------------------- cuts

WORD = st.sampled_from(["the", "don't", "'s", "x", "123", "é", "e\u0301", "你好", "😀", "!", "--", "_", "…"])
GAP = st.sampled_from([" ", "\n", "\n\n", "  ", "\r\n", ". ", ",\t ", "，", "\u3000 x", " \n "])
PROSE = st.lists(st.tuples(WORD, GAP), min_size=1, max_size=150).map(lambda pairs: "".join(w + g for w, g in pairs))


@pytest.fixture(scope="module")
def bpe() -> tokenizer.Encoder:
    text = gzip.decompress(sources.EMBEDDED.read_bytes()).decode()[:100_000]
    return tokenizer.encoder(tokenizer.train_bpe([text], 500).backend_tokenizer.to_str())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=PROSE)
def test_tokens_of_pieces_are_the_tokens_of_the_text(
    text: str, bpe: tokenizer.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PART", 48)
    monkeypatch.setattr(sources, "WINDOW", 96)
    whole = bpe([text])[0].tolist()
    for name, raw in (("d.txt", text.encode()), ("d.txt.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(raw)
        pieces = sources.find(dataset(tmp_path / name), tmp_path).train
        parts = [part for piece in pieces for part in sources.read(piece)]
        assert "".join(part.texts[0] for part in parts) == text
        assert [part.open for part in parts] == [True] * (len(parts) - 1) + [False]
        assert [t for part in parts for t in bpe(part.texts)[0].tolist()] == whole


@given(text=st.text(min_size=1, max_size=500))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_pieces_of_any_text_are_the_text(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART", 16)
    monkeypatch.setattr(sources, "WINDOW", 8)
    text = text.replace("\0", "").removeprefix("\ufeff") or "a"
    (tmp_path / "d.txt").write_text(text, encoding="utf-8", newline="")
    assert documents(tmp_path / "d.txt", tmp_path) == [text]


def test_a_big_file_is_cut_for_many_processes(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("some words in a line\n" * 400_000)
    pieces = sources.find(dataset(tmp_path / "d.txt"), tmp_path).train
    assert len(pieces) == 8
    assert max(piece.size for piece in pieces) < 2 * sources.PART
    (tmp_path / "d.jsonl").write_text('{"text": "some words in a line"}\n' * 200_000)
    assert len(sources.find(dataset(tmp_path / "d.jsonl"), tmp_path).train) == 6


# -------------------------------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_is_the_contents(tmp_path: Path) -> None:
    def mark(name: str, text: str, **more: object) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return sources.find(dataset(tmp_path / name, **more), tmp_path).train_fingerprint

    first = mark("a.txt", "one text")
    assert mark("other/b.txt", "one text") == first, "the place does not matter"
    assert mark("a.txt", "two text") != first, "the content does, at the same size too"
    assert mark("a.txt", "one text", text_column="other") != first


def test_a_large_files_digest_is_remembered_until_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "REMEMBERED_FROM", 4)
    path = tmp_path / "a.txt"
    path.write_text("one text")
    first = sources.find(dataset(path), tmp_path).train_fingerprint
    (memory,) = (tmp_path / "hfgpt" / "digests").iterdir()
    memory.write_text("remembered")
    assert sources.find(dataset(path), tmp_path).train_fingerprint != first, "it is what was remembered"
    path.write_text("two text")
    assert sources.find(dataset(path), tmp_path).train_fingerprint != first
    path.write_text("one text")
    assert sources.find(dataset(path), tmp_path).train_fingerprint == first


# ----------------------------------------------------------------------------------------------------------- bad input


def bad_inputs(folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Name → (recipe, what the message must say)."""
    (folder / "empty.txt").touch()
    (folder / "empty").mkdir()
    (folder / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "zeros.txt").write_bytes(b"text\0text")
    (folder / "utf16.txt").write_text("text", encoding="utf-16")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
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
    expected = {
        "empty.txt": "is empty",
        "empty": "holds no text",
        "binary.txt": r"not UTF-8 text \(at byte 0\)",
        "zeros.txt": r"not UTF-8 text \(at byte 4\)",
        "utf16.txt": "UTF-16: save it as UTF-8",
        "latin.txt": r"not UTF-8 text \(at byte 2\)",
        "cut.txt": r"not UTF-8 text",
        "late.txt": r"not UTF-8 text \(at byte 10,000\)",
        "no.gz": r"files must end in \.txt",
        "not.txt.gz": "cannot be read",
        "cut.txt.gz": "cannot be read",
        "not.txt.zst": "cannot be read",
        "cut.txt.zst": "cannot be read: compressed file ended",
        "book.pdf": r"ends in '.pdf'; files must end in \.txt",
        "mixed": "different kinds",
        "broken.jsonl": "line 2 is not JSON",
        "list.jsonl": "line 1 is no JSON object",
        "number.jsonl": "holds int in .*line 1, not text",
        "other.jsonl": "line 2 has no such column; it has 'body', 'title'",
        "bad.parquet": "is no Parquet file",
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
    cases["Hub id, streaming"] = ({"dataset": "nobody/nothing", "streaming": True}, "the Hub did not give it")
    return cases


def test_bad_input_is_one_clear_message(tmp_path: Path) -> None:
    for name, (recipe, message) in bad_inputs(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            documents(recipe.pop("dataset"), tmp_path, **recipe)
        assert "→" in str(caught.value), f"{name}: says what to do"
