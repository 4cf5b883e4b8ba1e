"""Prepared token files of others are a dataset."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data.prepare import prepare


def write_bins(folder: Path, text: str) -> list[str]:
    """What nanoGPT's data/shakespeare_char/prepare.py writes."""
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


def test_nanogpt_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_bins(tmp_path / "bins", "abc" * 50)
    np.array([7] * 50, dtype=np.uint16).tofile(tmp_path / "bins" / "val.bin")
    resolved = config.build({"dataset": str(tmp_path / "bins"), "block_size": 8}, "x")
    with pytest.raises(InputError, match="has the token 7, and the tokenizer"):
        prepare(resolved, tmp_path / "cache")
