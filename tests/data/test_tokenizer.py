"""Tokenizers are exact for any text, also if Transformers alone reloads them; faster encoders give equal tokens."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.data import encoding, tokenizer
from hfgpt.data.encoding import encoder
from hfgpt.data.sources import EMBEDDED

TEXT = gzip.decompress(EMBEDDED.read_bytes()).decode()[:50_000]


def train_like_gpt2() -> Any:
    """Return a tokenizer that differs from GPT-2's only in its merges: bytes come first, then the merges."""
    backend = json.loads(tokenizer.train_bpe([TEXT], 400).backend_tokenizer.to_str())
    merges = [tuple(pair) for pair in backend["model"]["merges"]]
    tokens = [*encoding._byte_alphabet(), *("".join(pair) for pair in merges), tokenizer.END_OF_TEXT]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([tokenizer.END_OF_TEXT])
    return tokenizer._wrap(made, bos_token=tokenizer.END_OF_TEXT, eos_token=tokenizer.END_OF_TEXT)


def digest_of_merges(made: Any) -> str:
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    return hashlib.sha256(
        "".join(f"{line}\n" for line in ("#version: 0.2", *map(" ".join, merges))).encode()
    ).hexdigest()


MAKERS = {
    "char": lambda: tokenizer.train_char([TEXT]),
    "bpe": lambda: tokenizer.train_bpe([TEXT], 400),
    "like GPT-2": train_like_gpt2,
}
NASTY = [
    "",
    " ",
    "\n",
    "\r\n\r\n \t\t  a   b",
    " leading and trailing ",
    "Hello , world . do n't ! it 's",
    "中文，没有空格。",
    "👩‍👩‍👧 and 🏳️‍🌈",
    "\u0301 alone, e\u0301 and é",
    "<0x41> is not A; <0xE9><0x0A>",
    "\x00\x07\x7f\x80\u2028\ufeff",
    "\U0010ffff\ud7ff\ue000",
    "ǅ ﬁ ß İ",
    "\u202eright to left\u202c",
    "tail of spaces     ",
    "one<|endoftext|>two <|endoftext|> three<|endoftext|",
]


@pytest.fixture(scope="module", params=list(MAKERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Return a tokenizer as it was made, and as AutoTokenizer reloads it beside a GPT-2 config."""
    made = MAKERS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    GPT2Config(n_layer=1).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "like GPT-2":
            patch.setattr(encoding, "GPT2_MERGES", digest_of_merges(made))
        yield made, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", NASTY)
def test_round_trip_of_nasty_texts(pair: tuple[Any, Any], text: str) -> None:
    for each in pair:
        assert each.decode(each.encode(text)) == text


@given(st.text())
def test_round_trip_of_any_text(pair: tuple[Any, Any], text: str) -> None:
    for each in pair:
        assert each.decode(each.encode(text)) == text


@given(st.lists(st.text() | st.sampled_from([*NASTY, TEXT[:300]]), min_size=1))
def test_the_encoder_equals_the_tokenizer(pair: tuple[Any, Any], texts: list[str]) -> None:
    encode = encoder(pair[0].backend_tokenizer.to_str())
    expected = [pair[1].encode(text, add_special_tokens=False) for text in texts]
    assert [ids.tolist() for ids in encode(texts)] == expected


def test_gpt2s_encoder_is_for_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's encoder requires its exact numbers, merges and special tokens; each of these uses the general encoder."""
    made = train_like_gpt2()
    pipeline = json.loads(made.backend_tokenizer.to_str())
    monkeypatch.setattr(encoding, "GPT2_MERGES", digest_of_merges(tokenizer.train_bpe([TEXT], 300)))
    assert not encoding.is_gpt2(pipeline)
    monkeypatch.setattr(encoding, "GPT2_MERGES", digest_of_merges(made))
    assert encoding.is_gpt2(pipeline)
    vocab = pipeline["model"]["vocab"]
    assert not encoding.is_gpt2(pipeline | {"model": pipeline["model"] | {"vocab": vocab | {"!": 1, '"': 0}}})
    assert not encoding.is_gpt2(pipeline | {"added_tokens": 2 * pipeline["added_tokens"]})
    assert not encoding.is_gpt2(pipeline | {"normalizer": {"type": "NFC"}})


def test_gpt2s_encoder_says_what_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = train_like_gpt2()
    monkeypatch.setattr(encoding, "GPT2_MERGES", digest_of_merges(made))
    encode = encoder.__wrapped__(made.backend_tokenizer.to_str())
    assert len(encode([" " * 100_000])[0]) > 0
    with pytest.raises(InputError, match="a row of about a million spaces"):
        encode(["a" + " " * 1_500_000 + "b"])


def test_gpt2s_encoder_splits_at_every_character_as_tokenizers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try each character between letters, digits, spaces and punctuation: the libraries' Unicode tables differ."""
    made = train_like_gpt2()
    monkeypatch.setattr(encoding, "GPT2_MERGES", digest_of_merges(made))
    encode = encoder(made.backend_tokenizer.to_str())
    known = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] != "C" or code < 160]
    texts = ["".join(f"th{c}th1{c}1 {c}{c}.{c}. " for c in known[i : i + 1000]) for i in range(0, len(known), 1000)]
    expected = made.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, other in zip(texts, encode(texts), expected, strict=True):
        assert ids.tolist() == other.ids, text[:20]


@given(st.text())
def test_characters_of_tokens_add_up(pair: tuple[Any, Any], text: str) -> None:
    table = encoding.characters(pair[0])
    assert table is not None
    assert table[pair[0].encode(text)].sum() == len(text)


def test_a_reload_changes_nothing(pair: tuple[Any, Any]) -> None:
    made, reloaded = pair
    assert tokenizer.fingerprint(made) == tokenizer.fingerprint(reloaded)
    assert tokenizer.vocabulary_size(made) == tokenizer.vocabulary_size(reloaded) == len(made)
    assert made.eos_token == reloaded.eos_token
    assert set(reloaded("a")) == {"input_ids", "attention_mask"}, "GPT-2 would add embeddings of token_type_ids"


def test_char_numbers_characters_as_nanogpt_does() -> None:
    made = tokenizer.train_char(["hello", "\nb"])
    assert made.encode("\nbehlo") == [0, 1, 2, 3, 4, 5]
    assert tokenizer.vocabulary_size(made) == 6 + 256
    assert made.eos_token is None


def test_char_spells_what_it_has_not_seen() -> None:
    made = tokenizer.train_char(["ab"])
    assert made.encode("aéb") == [0, 2 + 0xC3, 2 + 0xA9, 1]


def test_bpe_has_the_size_asked_for_or_less() -> None:
    assert tokenizer.vocabulary_size(MAKERS["bpe"]()) == 400
    small = tokenizer.train_bpe(["ababab"], 400)
    assert 257 <= tokenizer.vocabulary_size(small) < 400


def test_bpe_marks_the_end_of_text() -> None:
    made = MAKERS["bpe"]()
    assert made.eos_token == made.bos_token == tokenizer.END_OF_TEXT
    table = encoding.characters(made)
    assert table is not None
    assert table[made.eos_token_id] == 0


def test_the_fingerprint_changes_with_the_vocabulary() -> None:
    made = {tokenizer.fingerprint(t) for t in (MAKERS["char"](), MAKERS["bpe"](), tokenizer.train_char([TEXT, "é"]))}
    assert len(made) == 3


def test_build_follows_the_config(tmp_path: Path) -> None:
    char = tokenizer.build(config.build({"tokenizer": "char"}, "x"), ["ab"])
    bpe = tokenizer.build(config.build({"tokenizer": "bpe", "vocab_size": 300}, "x"), [TEXT])
    assert tokenizer.vocabulary_size(char) == 258
    assert tokenizer.vocabulary_size(bpe) == 300
    bpe.save_pretrained(tmp_path)
    loaded = tokenizer.build(config.build({"tokenizer": str(tmp_path)}, "x"), [])
    assert tokenizer.fingerprint(loaded) == tokenizer.fingerprint(bpe)


def test_a_folder_with_only_vocab_and_merges(tmp_path: Path) -> None:
    made = MAKERS["bpe"]()
    made.backend_tokenizer.model.save(str(tmp_path))
    loaded = tokenizer.load(str(tmp_path))
    assert loaded.encode(TEXT[:1000]) == made.encode(TEXT[:1000])
    assert loaded.eos_token_id == made.eos_token_id
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in NASTY:
        assert again.decode(again.encode(text)) == text


def test_a_truncating_tokenizer_encodes_all(tmp_path: Path) -> None:
    made = MAKERS["bpe"]()
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding(length=8)
    encode = encoder(made.backend_tokenizer.to_str())
    assert made.decode(encode([TEXT[:500]])[0].tolist()) == TEXT[:500]


def test_tokens_that_do_not_add_up_are_not_counted_by_table() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    assert encoding.characters(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


def test_missing_and_broken_tokenizers_are_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{ no")
    (tmp_path / "broken" / "tokenizer_config.json").write_text("{}")
    for name in ("no-such-tokenizer", "/no/such/folder", str(tmp_path / "empty"), str(tmp_path / "broken")):
        with pytest.raises(
            InputError, match=r"tokenizer = .*\n    → set it to|is not the description of a tokenizer"
        ) as caught:
            tokenizer.load(name)
        assert len(str(caught.value)) < 600


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_long_char_texts_with_rare_strangers(seed: int) -> None:
    random = np.random.default_rng(seed)
    letters = random.choice(list("abc \n"), 2000)
    letters[random.integers(0, 2000, 20)] = random.choice(list("é你😀\U0010ffff\x00"), 20)
    text = "".join(letters)
    made = tokenizer.train_char(["abc \n"])
    assert encoder(made.backend_tokenizer.to_str())([text])[0].tolist() == made.encode(text)
