"""Token files that bring a tokenizer are only read with one that gives their ids the same meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_texts import all_tokens
from test_bins import write_bins
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import bins, tokenizer
from hfgpt.data.blocks import TokenStream
from hfgpt.data.prepare import Corpus, prepare

TEXT = "To be, or not to be: that is the question.\n" * 40
OTHER = "Whether 'tis nobler in the mind to suffer the slings.\n" * 40


def bpe_folder(folder: Path, text: str = TEXT) -> Path:
    """Write what `hfgpt prepare --tokenizer=bpe` writes."""
    made = tokenizer.train_bpe([text], 280)
    made.save_pretrained(folder)
    for split in ("train", "val"):
        bins.write_shards(TokenStream([np.array(made.encode(TEXT))]), folder, split, 10_000, wide=False)
    return folder


def model_folder(folder: Path, made: Any) -> Path:
    shape = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=tokenizer.vocabulary_size(made))
    GPT2LMHeadModel(shape).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def prepared(tmp_path: Path, **values: object) -> Corpus:
    return prepare(config.build({"block_size": 8, "batch_size": 4, "num_proc": 1, **values}, "x"), tmp_path / "cache")


@pytest.mark.parametrize("key", ["tokenizer", "init_from"])
@pytest.mark.parametrize("form", ["meta.pkl", "bpe"])
def test_files_of_another_tokenizer_are_refused(tmp_path: Path, key: str, form: str) -> None:
    model = model_folder(tmp_path / "model", tokenizer.train_bpe([OTHER], 320))
    if form == "bpe":
        bpe_folder(tmp_path / "tokens")
    else:
        write_bins(tmp_path / "tokens", TEXT)
    with pytest.raises(InputError, match=r"^dataset = '.*tokens': holds tokens of another tokenizer than '.*model'"):
        prepared(tmp_path, **{"dataset": str(tmp_path / "tokens"), key: str(model)})


def test_each_corpus_of_a_mix_is_compared(tmp_path: Path) -> None:
    folders = bpe_folder(tmp_path / "one"), bpe_folder(tmp_path / "two", OTHER)
    mix = [{"name": str(folder), "weight": 1} for folder in folders]
    with pytest.raises(InputError, match=r"dataset = '.*two': holds tokens of another tokenizer"):
        prepared(tmp_path, dataset=mix)


@pytest.mark.parametrize("form", ["meta.pkl", "bpe"])
def test_files_of_the_same_tokenizer_are_read(tmp_path: Path, form: str) -> None:
    """The model may also know tokens that the files do not use: a padding token, or the bytes after characters."""
    if form == "bpe":
        made = tokenizer.load(str(bpe_folder(tmp_path / "tokens")))
        made.add_special_tokens({"pad_token": "<pad>"})
    else:
        write_bins(tmp_path / "tokens", TEXT)
        made = tokenizer.train_char([TEXT])
    model = model_folder(tmp_path / "model", made)
    for key in ("tokenizer", "init_from"):
        corpus = prepared(tmp_path, **{"dataset": str(tmp_path / "tokens"), key: str(model)})
        assert corpus.tokenizer.decode(all_tokens(corpus.train)) in TEXT
        assert len(corpus.tokenizer) == len(made)


def test_new_embeddings_take_the_files_tokenizer(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", tokenizer.train_bpe([OTHER], 320))
    characters = write_bins(tmp_path / "tokens", TEXT)
    corpus = prepared(tmp_path, dataset=str(tmp_path / "tokens"), init_from=str(model), new_embeddings=True)
    assert len(corpus.tokenizer) == len(characters)


def test_a_model_without_a_tokenizer_takes_the_files_tokenizer(tmp_path: Path) -> None:
    characters = write_bins(tmp_path / "tokens", TEXT)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=30)).save_pretrained(tmp_path / "model")
    corpus = prepared(tmp_path, dataset=str(tmp_path / "tokens"), init_from=str(tmp_path / "model"))
    assert len(corpus.tokenizer) == len(characters)


def test_further_files_go_through_the_same_checks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    np.array([9, 70_000 % 65_536, 60_000] * 50, dtype=np.uint16).tofile(tmp_path / "beyond.bin")
    values = {"dataset": str(tmp_path / "a.txt"), "tokenizer": str(bpe_folder(tmp_path / "one"))}
    with pytest.raises(InputError, match=r"^val_datasets = '.*beyond.bin': has the token 60000"):
        prepared(tmp_path, **values, val_datasets=f"other={tmp_path / 'beyond.bin'}")
    with pytest.raises(InputError, match=r"^val_datasets = '.*two': holds tokens of another tokenizer"):
        prepared(tmp_path, **values, val_datasets=f"other={bpe_folder(tmp_path / 'two', OTHER)}")
    corpus = prepared(tmp_path, **values, val_datasets=f"other={tmp_path / 'one'}")
    assert corpus.tokenizer.decode(all_tokens(corpus.validation_sets["other"])) == TEXT
