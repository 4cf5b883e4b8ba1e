"""Texts in every supported file format, in any encoding, corrupted, are trained on or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.fuzzing import VALUES, Fuzz, command, fuzz, put, put_data, runs, spoilt_bytes, written
from hypothesis import strategies as st

__all__ = ["fuzz", "runs"]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

TRAIN = ["train", "--dataset=data", "--out_dir=made", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8"]
TRAIN += ["--device=cpu", "--batch_size=1", "--gradient_accumulation_steps=1", "--eval_iters=1", "--warmup_iters=0"]
TRAIN += ["--max_iters=1", "--num_proc=1", "--sample_prompt=a"]
READERS = [["plan", "--dataset=data"], ["plan", "--data=data/train.txt"], TRAIN, [*TRAIN, "--tokenizer=bpe"]]
READERS += [[*TRAIN, "--text_column=t"], ["evaluate", "run", "--dataset=data"]]

LINES = st.lists(st.text(max_size=30), max_size=20).map("\n".join) | st.builds(
    lambda text, times: text * times, st.text(min_size=1, max_size=20), st.sampled_from([3, 100, 5000])
)
ENCODED = st.builds(
    lambda text, encoding, mark: mark + text.encode(encoding, "replace"),
    LINES,
    st.sampled_from(
        ["utf-8", "utf-16-le", "utf-16", "utf-32", "gbk", "gb18030", "latin-1", "cp1252", "shift_jis", "utf-7"]
    ),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"version https://git-lfs.github.com/spec/v1\n"]),
)
JSONL = st.lists(VALUES | st.builds(lambda text: {"text": text}, LINES | VALUES), max_size=6).map(
    lambda values: b"\n".join(map(written, values))
)
JSONL |= LINES.map(lambda text: json.dumps({"text": text}).encode())


@st.composite
def parquet(draw: Any) -> bytes:
    """Draw a Parquet file of unusual columns."""
    rows = draw(st.integers(0, 5))
    kinds: list[Any] = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.int64(),
        pa.list_(pa.string()),
    ]
    kinds += [pa.null(), pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.string())]), pa.bool_()]
    arrays, names = [], []
    for _column in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(kinds))
        text = draw(st.lists(st.none() | LINES, min_size=rows, max_size=rows))
        try:
            arrays.append(pa.array(text, pa.string()).cast(kind))
        except pa.ArrowException:  # not every type can be cast from text: such a column is empty
            arrays.append(pa.nulls(rows, kind))
        names.append(draw(st.sampled_from(["text", "text", "t", "content", "", "a.b"])))
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(arrays, names=names), sink)
    except pa.ArrowException:  # Parquet cannot store it: a file of the first bytes alone
        return b"PAR1"
    return sink.getvalue()


@st.composite
def text_folder(draw: Any) -> dict[str, bytes]:
    """Draw files by their names."""
    files = {}
    for _file in range(draw(st.integers(1, 3))):
        content = draw(ENCODED)
        ending = draw(st.sampled_from(["txt", "txt", "jsonl", "jsonl", "parquet", "txt.gz", "txt.zst", "json", "md"]))
        if ending == "jsonl":
            content = draw(JSONL)
        elif ending == "parquet":
            content = draw(parquet())
        elif ending == "txt.gz":
            content = gzip.compress(content) * draw(st.integers(1, 2))
        elif ending == "txt.zst":
            content = bz2.compress(content)
        if draw(st.integers(0, 3)) == 0:
            content = draw(spoilt_bytes(content))
        stem = draw(st.sampled_from(["train", "train", "val", "valid-0", "a/b/test", "train-00000-of-00001", "\udcff"]))
        files[f"{stem}.{ending}"] = content
    return files


def test_a_folder_of_texts(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["char"], tmp_path / "run")

    def check_texts(example: Any) -> None:
        files, words = example
        put_data(tmp_path, files)
        command(*words, watched=tmp_path)

    fuzz(st.tuples(text_folder(), st.sampled_from(READERS)), check_texts)


def test_a_prompt(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    def check_prompt(example: Any) -> None:
        kind, prompt, raw, drawing = example
        put(tmp_path / "prompt.txt", raw)
        source = [f"--prompt={prompt}"] if prompt is not None else ["--prompt_file=prompt.txt"]
        command("sample", str(runs[kind]), *source, "--max_new_tokens=3", *drawing, watched=tmp_path)

    texts = (
        st.none() | st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\udcff", "a" * 5000, "\x1b[2J"])
    )
    numbers = st.sampled_from(["0", "1", "-1", "1e-320", "1e308", "nan", "inf", "9" * 30, "0.5", "", "x"])
    names = st.sampled_from(["temperature", "top_k", "top_p", "seed", "num_samples"])
    drawing = st.lists(st.builds("--{}={}".format, names, numbers), max_size=2)
    drawing = drawing.filter(lambda words: "--num_samples=" + "9" * 30 not in words)
    fuzz(st.tuples(st.sampled_from(sorted(runs)), texts, ENCODED, drawing), check_prompt)
