"""The number of characters that tokens represent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data_texts import (
    LINES,
)

from hfgpt.data import encoding, tokenizer
from hfgpt.data.encoding import CharacterCounter


def test_characters_of_targets(corpus_file: Path) -> None:
    for made in (tokenizer.train_char(LINES), tokenizer.train_bpe(LINES, 300)):
        count = CharacterCounter(made)
        text = "Line 5: the quick 😀 你好.\n"
        ids = np.array([made.encode(text)] * 3)
        assert count(ids) == 3 * len(text)


def test_characters_by_decoding() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"ab": 0, "c": 1, "</s>": 2}, unk_token="</s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)
    assert CharacterCounter(made)(np.array([[0, 1, 2], [1, 1, 1]])) == len("ab c") + len("c c c")


def test_long_words_are_encoded_and_not_kept() -> None:
    """Chinese has no spaces, so that each line would stay in memory."""
    made = tokenizer.train_bpe(["some words, 一些文字 " * 20], 300)
    asked: list[list[str]] = []

    def encode(words: list[str]) -> list[Any]:
        asked.append(words)
        return [np.array(made.encode(word), dtype=np.uint32) for word in words]

    long, text = "一些文字" * 20, "some words " + "一些文字" * 20
    encode_words = encoding._word_encoder(encode)
    for _again in range(2):
        assert encode_words([text])[0].tolist() == made.encode(text)
    assert sorted(asked[0]) == sorted(["some", " words", f" {long}"])
    assert asked[1:] == [[f" {long}"]]
