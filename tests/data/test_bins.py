"""Token files prepared by other projects can be used as a dataset."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_texts import all_tokens

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import bins, tokenizer
from hfgpt.data.blocks import TokenStream
from hfgpt.data.prepare import prepare


def write_bins(folder: Path, text: str) -> list[str]:
    """Write what nanoGPT's data/shakespeare_char/prepare.py writes."""
    characters = sorted(set(text))
    ids = np.array([characters.index(letter) for letter in text], dtype=np.uint16)
    folder.mkdir()
    ids[: len(ids) * 9 // 10].tofile(folder / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(folder / "val.bin")
    table = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    table["stoi"] = {letter: i for i, letter in enumerate(characters)}
    (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    return characters


def test_nanogpt_token_files_are_a_dataset(tmp_path: Path) -> None:
    text = "To be, or not to be: that is the question.\n" * 20
    characters = write_bins(tmp_path / "bins", text)
    corpus = prepare(config.build({"dataset": str(tmp_path / "bins"), "block_size": 8}, "x"), tmp_path / "cache")
    assert len(corpus.tokenizer) == len(characters)
    assert corpus.tokenizer.decode(corpus.train.blocks([0], 8)[0]) == text[:9]
    assert len(corpus.train) + len(corpus.val) == len(text)
    (mapped,) = corpus.train.chunks
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable


def test_nanogpt_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_bins(tmp_path / "bins", "abc" * 50)
    np.array([7] * 50, dtype=np.uint16).tofile(tmp_path / "bins" / "val.bin")
    resolved = config.build({"dataset": str(tmp_path / "bins"), "block_size": 8}, "x")
    with pytest.raises(InputError, match="has the token 7, and the tokenizer"):
        prepare(resolved, tmp_path / "cache")


# -------------------------------------------------------------------------------------------------- types of the tokens


def gpt2_like(folder: Path) -> Path:
    """Return a tokenizer of 300 tokens."""
    tokenizer.train_bpe(["some text to learn from, and more of it " * 50], 300).save_pretrained(folder)
    return folder


def counted(n: int, start: int = 0) -> Any:
    return (np.arange(start, start + n) * 7 + 5) % 257


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_wider_tokens_are_noticed_and_read_when_said(tmp_path: Path, dtype: str) -> None:
    made = gpt2_like(tmp_path / "tokenizer")
    (tmp_path / "bins").mkdir()
    for name, n in (("train", 5000), ("val", 500)):
        counted(n).astype(dtype).tofile(tmp_path / "bins" / f"{name}.bin")
    values = {"dataset": str(tmp_path / "bins"), "tokenizer": str(made), "block_size": 8}
    with pytest.raises(InputError, match=f"looks like {dtype} tokens.*\n.*set bin_dtype to '{dtype}'"):
        prepare(config.build(values, "x"), tmp_path / "cache")
    corpus = prepare(config.build(values | {"bin_dtype": dtype}, "x"), tmp_path / "cache")
    assert all_tokens(corpus.train) == counted(5000).tolist()
    assert prepare(config.build(values | {"bin_dtype": "uint16"}, "x"), tmp_path / "cache"), "said to be right"


@pytest.mark.parametrize("tokens", [[1, 0] * 500, [40, 7] * 500, list(range(300)) * 4])
def test_narrow_tokens_are_not_taken_for_wide_ones(tmp_path: Path, tokens: list[int]) -> None:
    np.array(tokens, dtype=np.uint16).tofile(tmp_path / "a.bin")
    assert bins.map_tokens(tmp_path / "a.bin", "auto").tolist() == tokens


# --------------------------------------------------------------------------------------------------------------- shards


def write_shard(path: Path, tokens: Any, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> None:
    """Write a shard as llm.c's data_common.write_datafile and modded-nanogpt do."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes())
        file.write(np.asarray(tokens).astype(dtype).tobytes())


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"), "<u2"),
        (("tiny_shakespeare_train.bin", "tiny_shakespeare_train2.bin", "tiny_shakespeare_val.bin"), "<u4"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "glob"])
def test_shards_are_a_dataset(tmp_path: Path, names: tuple[str, str, str], dtype: str, form: str) -> None:
    made, folder = gpt2_like(tmp_path / "tokenizer"), tmp_path / "shards"
    folder.mkdir()
    magic = (20240520, 1) if dtype == "<u2" else (20240801, 7)
    for name, start, n in zip(names, (0, 1000, 5000), (1000, 500, 300), strict=True):
        write_shard(folder / name, counted(n, start), *magic, dtype)
    value = str(folder) if form == "folder" else f"{folder}/*.bin"
    values = {"dataset": value, "tokenizer": str(made), "block_size": 8, "batch_size": 4}
    corpus = prepare(config.build(values, "x"), tmp_path / "cache")
    assert all_tokens(corpus.train) == counted(1500).tolist()
    assert all_tokens(corpus.val) == counted(300, 5000).tolist()
    assert all(isinstance(chunk.base, np.memmap) or isinstance(chunk, np.memmap) for chunk in corpus.train.chunks)


def test_shards_without_a_validation_file_hold_their_tail_out(tmp_path: Path) -> None:
    made = gpt2_like(tmp_path / "tokenizer")
    write_shard(tmp_path / "a.bin", counted(1000))
    values = {"dataset": str(tmp_path / "a.bin"), "tokenizer": str(made), "block_size": 8}
    corpus = prepare(config.build(values, "x"), tmp_path / "cache")
    assert (len(corpus.train), len(corpus.val)) == (900, 100)


@pytest.mark.parametrize("form", ["nanoGPT", "shards", "wide shards"])
def test_a_resume_from_every_format_has_equal_tokens(tmp_path: Path, form: str) -> None:
    made, folder = gpt2_like(tmp_path / "tokenizer"), tmp_path / "tokens"
    folder.mkdir()
    for name, n in (("train", 3000), ("val", 300)):
        if form == "nanoGPT":
            counted(n).astype(np.uint16).tofile(folder / f"{name}.bin")
        else:
            magic = (20240801, 7, "<u4") if form == "wide shards" else (20240520, 1, "<u2")
            write_shard(folder / f"{name}_000000.bin", counted(n), *magic)
    values = {"dataset": str(folder), "tokenizer": str(made), "block_size": 8, "batch_size": 4}

    def batches() -> Any:
        return prepare(config.build(values, "x"), tmp_path / "cache").batches

    whole = batches()
    rows = [step_of(whole, number) for number in range(8)]
    assert {(b - a) % 257 for step in rows for row in step for a, b in itertools.pairwise(row)} == {7}
    first, second = batches(), batches()
    assert [step_of(first, number) for number in range(4)] == rows[:4]
    second.load_state_dict(first.state_dict())
    assert [step_of(second, number) for number in range(4, 8)] == rows[4:]


def step_of(batches: Any, number: int) -> list[list[int]]:
    (rows,) = batches.micro_batches(number, 0, 1, 4)
    return rows.tolist()


def test_bad_shards_are_one_message(tmp_path: Path) -> None:
    made = gpt2_like(tmp_path / "tokenizer")
    write_shard(tmp_path / "cut.bin", counted(1000))
    with open(tmp_path / "cut.bin", "r+b") as file:
        file.truncate(1024 + 1500)
    write_shard(tmp_path / "version.bin", counted(1000), version=9)
    write_shard(tmp_path / "empty.bin", counted(0))
    write_shard(tmp_path / "beyond.bin", [9, 400] * 100)
    (tmp_path / "odd.bin").write_bytes(b"123")
    for name, message in {
        "cut.bin": "says that it holds 1,000 tokens, and holds 750",
        "version.bin": "a token shard of version 9",
        "empty.bin": "holds 0",
        "beyond.bin": "has the token 400, and the tokenizer .* knows 2",
        "odd.bin": "is not a sequence of 16-bit tokens",
    }.items():
        values = {"dataset": str(tmp_path / name), "tokenizer": str(made), "block_size": 8}
        with pytest.raises(InputError, match=message):
            prepare(config.build(values, "x"), tmp_path / "cache")
    with pytest.raises(InputError, match="set tokenizer to 'gpt2'"):
        prepare(config.build({"dataset": str(tmp_path / "beyond.bin"), "block_size": 8}, "x"), tmp_path / "cache")


@pytest.mark.parametrize("wide", [False, True])
def test_written_shards_are_read_back_with_their_tokenizer(tmp_path: Path, wide: bool) -> None:
    folder = gpt2_like(tmp_path / "prepared")
    for split, n in (("train", 2500), ("val", 300)):
        written = bins.write_shards(TokenStream([counted(n)]), folder, split, 1000, wide)
    assert [path.name for path in written] == ["val_000000.bin"]
    corpus = prepare(config.build({"dataset": str(folder), "block_size": 8}, "x"), tmp_path / "cache")
    assert len(corpus.train.chunks) == 3
    assert all_tokens(corpus.train) == counted(2500).tolist()
    assert len(corpus.tokenizer) == len(tokenizer.load(str(folder)))
