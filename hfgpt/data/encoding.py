"""Fast, exact encoding of text to token ids, and counting of the characters that ids stand for.

In:  a tokenizer's pipeline from ``tokenizer.backend_tokenizer.to_str()``.
Out: an :data:`Encoder`, the :func:`characters` of each token, :class:`CharacterCounter`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tiktoken_ext.openai_public import r50k_pat_str  # how GPT-2 splits text before merging bytes
from tokenizers import Tokenizer

from hfgpt.base.errors import InputError, first_line
from hfgpt.data.tokenizer import BYTE_TOKENS, is_char, vocabulary_size
from hfgpt.data.tokenizer_file import faults_as_messages, panics_as_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ABSENT = 0xFFFF_FFFF  # in the char encoder's table: a character outside the vocabulary
SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")  # Unicode's White_Space
WORD = re.compile(rf"{SPACE.pattern}*{SPACE.pattern.replace('[', '[^')}+|{SPACE.pattern}+")
KNOWN_WORDS = 1 << 18  # about this many words are cached, in some 50 MB
LONGEST_WORD = 64  # characters of a cached word; without spaces, as in Chinese, a "word" is a whole line

Encoder = Callable[[list[str]], list[NDArray[Any]]]


@lru_cache(maxsize=2)
def encoder(pipeline: str) -> Encoder:
    """Return the fastest exact encoder of texts to ids, which adds no special tokens.

    Args:
        pipeline: ``tokenizer.backend_tokenizer.to_str()``; a string, so that it can be sent to worker processes.

    Returns: a function from n texts to n integer arrays, equal to the tokenizer's own.
    """
    parsed = json.loads(pipeline)
    if is_char(parsed):
        return _char_encoder(parsed["model"]["vocab"])
    if is_gpt2(parsed):
        return _gpt2_encoder(parsed)
    backend = Tokenizer.from_str(pipeline)
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: list[str]) -> list[NDArray[Any]]:
        with faults_as_messages():
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]

    return _word_encoder(encode) if _splits_at_spaces(parsed) else encode


def _splits_at_spaces(pipeline: dict[str, Any]) -> bool:
    """Whether tokens never cross the start of a space after another character, as with GPT-2's pre-tokeniser."""
    splitter, model = pipeline["pre_tokenizer"] or {}, pipeline["model"]
    return (
        (splitter.get("type"), splitter.get("use_regex"), splitter.get("add_prefix_space"))
        == ("ByteLevel", True, False)
        and (model["type"], model["dropout"], pipeline["normalizer"]) == ("BPE", None, None)
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in pipeline["added_tokens"])
        and not any(SPACE.search(token["content"]) for token in pipeline["added_tokens"])
    )


# SHA-256 of the merges in GPT-2's vocab.bpe and merges.txt.
GPT2_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def is_gpt2(pipeline: dict[str, Any]) -> bool:
    """Whether the vocabulary is GPT-2's tokens with GPT-2's ids, plus at most one other token."""
    model = pipeline["model"]
    if not _splits_at_spaces(pipeline) or len(pipeline["added_tokens"]) > 1 or model["ignore_merges"]:
        return False
    merges = [" ".join(pair) for pair in model["merges"]]
    digest = hashlib.sha256("".join(f"{line}\n" for line in ("#version: 0.2", *merges)).encode()).hexdigest()
    tokens = [*_byte_alphabet(), *("".join(pair) for pair in model["merges"])]
    beside = {token["content"] for token in pipeline["added_tokens"]}
    numbered = {token: i for i, token in enumerate(tokens)}
    return digest == GPT2_MERGES and {t: i for t, i in model["vocab"].items() if t not in beside} == numbered


def _gpt2_encoder(pipeline: dict[str, Any]) -> Encoder:
    """Return an encoder by tiktoken, which merges the bytes of a new word in a sixth of tokenizers' time.

    tiktoken takes the order of merges from the ids. For GPT-2 the result is the same; another vocabulary may have two
    ways to form a token.
    """
    letters, added = _byte_alphabet(), {token["content"]: token["id"] for token in pipeline["added_tokens"]}
    ranks = {
        bytes(letters[letter] for letter in token): i
        for token, i in pipeline["model"]["vocab"].items()
        if token not in added
    }
    encoding = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=added)

    def encode(texts: list[str]) -> list[NDArray[Any]]:
        try:
            return [encoding.encode_to_numpy(text, allowed_special="all") for text in texts]
        except ValueError as error:  # the pattern needs a step of a limited stack for each space
            raise InputError(
                "dataset: GPT-2's tokenizer cannot read a row of about a million spaces or line breaks ({reason})\n"
                "    → shorten such rows in the text",
                reason=first_line(error)[:200],
            ) from None

    return encode


def _word_encoder(encode: Encoder) -> Encoder:
    """Return an encoder that encodes each distinct word, with the space before it, once.

    Text repeats its words, so this is ten times faster than encoding everything.
    """
    memory = threading.local()  # one cache per reader thread: one may evict while another looks up

    def encode_one(text: str) -> NDArray[Any]:
        known: dict[str, bytes] = memory.__dict__.setdefault("known", {})
        words = WORD.findall(text)
        if new := list({word for word in words if word not in known}):
            if len(known) > KNOWN_WORDS:
                known.clear()
                new = list(set(words))
            fresh = dict(zip(new, (ids.tobytes() for ids in encode(new)), strict=True))
            known.update((word, ids) for word, ids in fresh.items() if len(word) <= LONGEST_WORD)
            return np.frombuffer(
                b"".join(fresh[word] if word in fresh else known[word] for word in words), dtype=np.uint32
            )
        return np.frombuffer(b"".join(map(known.__getitem__, words)), dtype=np.uint32)

    return lambda texts: [encode_one(text) for text in texts]


def _char_encoder(vocabulary: dict[str, int]) -> Encoder:
    """Return an encoder by table lookup; tokenizers' BPE treats a long text as one word, and is 50 times slower."""
    letters = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
    table = np.full(max(letters, default=0) + 2, ABSENT, dtype=np.uint32)  # the last: all beyond the table
    table[list(letters)] = list(letters.values())
    spelled = np.array([vocabulary[token] for token in BYTE_TOKENS], dtype=np.uint32)

    def encode_one(text: str) -> NDArray[Any]:
        if text.isascii():
            codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = table.take(codes, mode="clip")
        absent = ids == ABSENT
        if not absent.any():
            return ids
        strangers = codes[absent].astype("<u4").tobytes().decode("utf-32-le").encode("utf-8")
        raw = np.frombuffer(strangers, dtype=np.uint8)
        widths = np.ones(len(ids), dtype=np.int64)
        widths[absent] = np.diff(np.flatnonzero(raw & 0xC0 != 0x80), append=len(raw))  # from lead byte to lead byte
        spread = np.repeat(ids, widths)
        spread[spread == ABSENT] = spelled[raw]
        return spread

    return lambda texts: [encode_one(text) for text in texts]


# ---------------------------------------------------------------------------------------------------------- characters


def characters(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64] | None:
    """Return how many characters of text each token id stands for: int64 of shape (vocabulary_size,).

    A character spelled by several byte-level tokens is counted at its first byte, so the counts of a text's tokens add
    up to its characters. Special tokens count 0. Return None for tokenizers whose counts do not add up (their text is
    counted by decoding).
    """
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    if (pipeline["decoder"] or {}).get("type") == "ByteLevel":
        count = _count_byte_level
    elif is_char(pipeline):
        count = _count_char
    else:
        return None
    table = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, row in tokenizer.get_vocab().items():
        table[row] = count(token)
    for added in pipeline["added_tokens"]:
        table[added["id"]] = 0 if added["special"] else len(added["content"])
    return table


def _starts_character(byte: int) -> bool:
    return byte & 0xC0 != 0x80  # UTF-8's continuation bytes are 10xxxxxx


def _count_char(token: str) -> int:
    return 1 if len(token) == 1 else int(_starts_character(int(token[3:5], 16)))


def _count_byte_level(token: str) -> int:
    alphabet = _byte_alphabet()
    return sum(_starts_character(alphabet[letter]) for letter in token if letter in alphabet)


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's byte-to-character map: printable Latin-1 maps to itself, the rest to code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class CharacterCounter:
    """Counts the characters of text that tokens stand for, for bits per character."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._table, self._tokenizer = characters(tokenizer), tokenizer

    def __call__(self, tokens: NDArray[Any]) -> int:
        """Return the characters in these tokens (any shape; rows are counted separately)."""
        if self._table is not None:
            return int(self._table[tokens].sum())
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        with panics_as_messages():
            return sum(len(text) for text in self._tokenizer.batch_decode(rows, skip_special_tokens=True))
