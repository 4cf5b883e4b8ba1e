"""A tokenizer.json from any source is checked before it reads a text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfgpt.base.errors import InputError
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.encoding import encoder
from hfgpt.data.tokenizer_file import panics_as_messages, repeats_a_repeat
from hfgpt.inference.exported import left_out

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"


@pytest.mark.parametrize("pattern", [GPT2, GPT4, BLOOM, O200K, r"(ab)+", r"(?>a+)+", r"(a++)+", r"\(a+\)+", r"[(a+)]+"])
def test_patterns_that_tokenizers_use_pass(pattern: str) -> None:
    assert not repeats_a_repeat(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a*)*", "((a+)b?)*", "(?:a+)+?", "(x(a{2,}))+", r"(\d+|b){1,}"])
def test_a_repeated_repeat_is_seen(pattern: str) -> None:
    assert repeats_a_repeat(pattern)


def with_pattern(folder: Path, pattern: str) -> Path:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


def test_a_tokenizer_that_would_take_for_ever_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the pattern '\(a\+\)\+\$' repeats what itself repeats"):
        tokenizers.load(str(with_pattern(tmp_path, "(a+)+$")))


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 20_000}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 20_000}]}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_part_that_would_fill_the_memory_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = with_pattern(tmp_path, "a") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="inserts a text of 20,000 characters; 10,000 are the most"):
        tokenizers.load(str(tmp_path))


def test_a_panic_is_a_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pattern that passes the check may still need too many attempts."""
    tokenizer = tokenizers.load(str(with_pattern(tmp_path, "(a|aa|aaa)+$")))
    with pytest.raises(InputError, match=r"the tokenizer cannot read this text: .*retry-limit"), panics_as_messages():
        tokenizer.encode("a" * 60 + "b")
    assert capfd.readouterr() == ("", ""), "Rust writes where it panicked"


def test_a_panic_in_a_decoder_is_a_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A tokenizer's decoder contains patterns too."""
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    parsed = json.loads(backend.to_str())
    replace = {"type": "Replace", "pattern": {"Regex": "(a|aa|aaa)+$"}, "content": "x"}
    parsed["decoder"] = {"type": "Sequence", "decoders": [{"type": "Fuse"}, replace]}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parsed))).save_pretrained(tmp_path)
    tokenizer = tokenizers.load(str(tmp_path))
    with pytest.raises(InputError, match="the tokenizer cannot read this text"):
        left_out(tokenizer, "a" * 60 + "b")
    assert capfd.readouterr() == ("", "")


def test_what_others_write_meanwhile_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Two threads' blocks overlap, and end in the order in which they began."""
    first, second = panics_as_messages(), panics_as_messages()
    first.__enter__()
    os.write(2, b"one ")
    second.__enter__()
    os.write(2, b"two ")
    first.__exit__(None, None, None)
    os.write(2, b"three")
    second.__exit__(None, None, None)
    assert capfd.readouterr().err == "one two three"
    os.write(2, b"four")
    assert capfd.readouterr().err == "four"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", '"text"'])
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="is not the description of a tokenizer"):
        tokenizers.load(str(tmp_path))


@pytest.mark.parametrize("key", ["pad_token", "chat_template", "anything"])
def test_settings_that_could_not_be_written_are_refused(tmp_path: Path, key: str) -> None:
    folder = with_pattern(tmp_path, "a")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: "half \ud800"}), encoding="utf-8")
    with pytest.raises(InputError, match="the folder holds no tokenizer that can be read"):
        tokenizers.load(str(folder))


def test_padding_with_a_spare_byte_changes_no_token(tmp_path: Path) -> None:
    """A run's tokens are those of its exported folder, whose tokenizer has a padding token."""
    plain, padded = tokenizers.train_char(["some text"]), tokenizers.train_char(["some text"])
    padded.pad_token = "<0xFF>"
    padded.save_pretrained(tmp_path)
    loaded = tokenizers.load(str(tmp_path))
    assert loaded.pad_token_id == plain.convert_tokens_to_ids("<0xFF>")
    assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(plain)
    assert tokenizers.vocabulary_size(loaded) == tokenizers.vocabulary_size(plain)
    pipeline: dict[str, Any] = json.loads(loaded.backend_tokenizer.to_str())
    assert tokenizers.is_char(pipeline)
    text = "some other text, é"
    assert encoder(loaded.backend_tokenizer.to_str())([text])[0].tolist() == plain.encode(text)
