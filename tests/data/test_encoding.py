"""The number of characters that tokens represent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_texts import (
    LINES,
)

from hfgpt.data import tokenizer
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
