"""Small texts in every format, and helpers of the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from hfgpt import config
from hfgpt.data import sources
from hfgpt.data.blocks import TokenStream
from hfgpt.data.reading import read

LINES = [f"Line {i}: the quick brown fox, number {i * i}.\n" for i in range(600)]


def recipe(dataset: object, **more: object) -> config.Config:
    return config.build({"dataset": str(dataset), "block_size": 16, "batch_size": 8, "num_proc": 1, **more}, "test")


def all_tokens(stream: TokenStream) -> list[int]:
    out = np.empty(len(stream), dtype=np.int64)
    if len(out):
        stream.read(0, out)
    return out.tolist()


def step(batches: Any, number: int, size: int = 8) -> list[list[int]]:
    """Return the global batch of a step, as a single process gets it."""
    (batch,) = batches.micro_batches(number, 0, 1, size)
    return batch.tolist()


DOCUMENTS = ["First.\nAs it is.", "第二篇，你好。\r\n", "  third 😀\n\n\n", 'with "quotes" and \\ and tabs\t.']


def dataset(value: object, **more: object) -> config.Config:
    return config.build({"dataset": str(value), **more}, "test")


def documents(value: object, cache: Path, **more: object) -> list[str]:
    """Return all training documents of a dataset."""
    found, out, text = sources.find(dataset(value, **more), cache), [], ""
    for piece in found.train:
        for part in read(piece):
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
