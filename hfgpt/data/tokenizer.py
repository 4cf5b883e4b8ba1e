"""Tokenizers, each one a plain Transformers tokenizer that is exact for any text.

In:  ``tokenizer`` of the config ('char', 'bpe', or a Hub id or folder), ``vocab_size``, and texts to learn from.
Out: a ``PreTrainedTokenizerFast`` that ``save_pretrained`` writes and ``AutoTokenizer`` reloads, without hfgpt; and
     beside it what training needs to know of one: a fast :func:`encoder`, its :func:`vocabulary_size`, a
     :func:`fingerprint`, and the :func:`characters` that each token stands for.

``char`` numbers the characters of the corpus from 0 in sorted order, as nanoGPT does. The 256 byte entries behind them
spell every other character in UTF-8, so that no prompt is ever dropped or changed; they are what the vocabulary has
more than nanoGPT's (65 + 256 for tiny Shakespeare). ``bpe`` is GPT-2's byte-level byte-pair encoding, trained here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.data.tokenizer_file import check_file, panics_as_messages

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


TRAINED = ("char", "bpe")

END_OF_TEXT = "<|endoftext|>"

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]

ABSENT = 0xFFFF_FFFF  # in the table of the char encoder: not a character of the vocabulary

SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")  # Unicode's White_Space

WORD = re.compile(rf"{SPACE.pattern}*{SPACE.pattern.replace('[', '[^')}+|{SPACE.pattern}+")

KNOWN_WORDS = 1 << 18  # about as many different words are remembered, in some 50 MB

Encoder = Callable[[list[str]], list[NDArray[Any]]]


# ------------------------------------------------------------------------------------------------- making and loading


def build(config: Config, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that the config names.

    Args:
        config: its `tokenizer` and `vocab_size` are read.
        texts: what 'char' and 'bpe' learn from; not read for a tokenizer that exists already.

    Raises:
        InputError: there is no such tokenizer, or it has no fast implementation.
    """
    if config.tokenizer == "char":
        return train_char(texts)
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None, "resolve() fills in vocab_size for 'bpe'"
        return train_bpe(texts, config.vocab_size)
    return load(config.tokenizer)


def train_char(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a character: those of `texts` in sorted order, then the 256 bytes that spell all others."""
    characters = sorted(set().union(*(set(text) for text in texts)))
    return char_of([*characters, *BYTE_TOKENS])


def char_of(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """The character-level tokenizer with these tokens, id 0 first: single characters, and all of BYTE_TOKENS."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(backend)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer: bytes merged within words, END_OF_TEXT between documents.

    Returns: a tokenizer of exactly `vocab_size` tokens, or fewer where `texts` hold no more pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT)


def _wrap(backend: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,  # it would take spaces away before punctuation
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would embed token_type_ids as if they were tokens
        **special_tokens,
    )


def load(name: str) -> PreTrainedTokenizerFast:
    """An existing tokenizer, from the Hub or a folder; one with only vocab.json and merges.txt is read as GPT-2's.

    Raises:
        InputError: nothing there, not reachable, or no fast implementation.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    folder = Path(name).expanduser()
    bare = (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file()
    source = str(folder) if folder.is_dir() else name
    check_file(folder / "tokenizer.json")
    try:
        tokenizer = (GPT2TokenizerFast if bare else AutoTokenizer).from_pretrained(source)
    except Exception as error:  # whatever the libraries raise for a missing, unreachable or damaged tokenizer
        where = "no such folder here, and the Hub has no such tokenizer or could not be reached"
        if folder.is_dir():
            where = "the folder holds no tokenizer that can be read"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"tokenizer = {name!r}: {where} ({reason})\n    → set it to 'char', 'bpe', the id of a tokenizer on the "
            "Hub, or a folder with tokenizer.json (or vocab.json and merges.txt)"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer = {name!r}: has no fast implementation (tokenizer.json)\n    → use one that has, such as 'gpt2'"
        )
    if not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):  # made of a model's config.json alone
        raise InputError(
            f"tokenizer = {name!r}: has an empty vocabulary\n    → give a folder with tokenizer.json (or vocab.json "
            "and merges.txt)"
        )
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False  # what save_pretrained writes
    return tokenizer


# --------------------------------------------------------------------------------------------- what training must know


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """The highest token id plus one: the rows that a model's embedding needs."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """32 hexadecimal digits that change with anything that changes the tokens of a text, and with nothing else."""
    return _fingerprint(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id)


@lru_cache(maxsize=2)  # asked at the start for each split and at every checkpoint, and a third of a second for GPT-2's
def _fingerprint(pipeline: str, eos: int | None) -> str:
    parsed = json.loads(pipeline)
    parts = [parsed[key] for key in ("model", "normalizer", "pre_tokenizer", "decoder")]
    added = sorted((token["id"], token["content"]) for token in _added(parsed))
    text = json.dumps([parts, added, eos], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _added(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens beside the model's own. A byte that serves as padding is one of the model's, and changes no text."""
    return [token for token in pipeline["added_tokens"] if token["content"] not in BYTE_TOKENS]


def characters(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64] | None:
    """How many characters of text each token id stands for: int64 of shape (vocabulary_size,).

    A character that several byte-level tokens spell is counted where its first byte is, so that the counts of a text's
    tokens add up to its characters. Special tokens stand for none. None for tokenizers where tokens do not add up
    (those are counted by decoding).
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
    """GPT-2's spelling of bytes as letters: printable Latin-1 stands for itself, the rest is numbered from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ------------------------------------------------------------------------------------------------------------ encoding


@lru_cache(maxsize=2)
def encoder(pipeline: str) -> Encoder:
    """The fastest exact way from texts to ids, without special tokens added.

    Args:
        pipeline: ``tokenizer.backend_tokenizer.to_str()``: a string, so that worker processes can be sent it.

    Returns: a function from n texts to n integer arrays, equal to what the tokenizer itself gives.
    """
    from tokenizers import Tokenizer

    parsed = json.loads(pipeline)
    if is_char(parsed):
        return _char_encoder(parsed["model"]["vocab"])
    if is_gpt2(parsed):
        return _gpt2_encoder(parsed)
    backend = Tokenizer.from_str(pipeline)
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: list[str]) -> list[NDArray[Any]]:
        with panics_as_messages():
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]

    return _word_encoder(encode) if _splits_at_spaces(parsed) else encode


def is_char(pipeline: dict[str, Any]) -> bool:
    """Whether this is a tokenizer as :func:`train_char` makes it, whoever made it."""
    model, decoder = pipeline["model"], pipeline["decoder"] or {}
    return (
        model["type"] == "BPE"
        and model["byte_fallback"]
        and not model["merges"]
        and not any(pipeline[key] for key in ("normalizer", "pre_tokenizer"))
        and not _added(pipeline)
        and [part["type"] for part in decoder.get("decoders", [])] == ["ByteFallback", "Fuse"]
        and set(BYTE_TOKENS) <= model["vocab"].keys()
        and all(len(token) == 1 for token in model["vocab"].keys() - set(BYTE_TOKENS))
    )


def _splits_at_spaces(pipeline: dict[str, Any]) -> bool:
    """Whether no token can reach over a place where a space follows something else: so with GPT-2's pre-tokeniser."""
    splitter, model = pipeline["pre_tokenizer"] or {}, pipeline["model"]
    return (
        (splitter.get("type"), splitter.get("use_regex"), splitter.get("add_prefix_space"))
        == ("ByteLevel", True, False)
        and (model["type"], model["dropout"], pipeline["normalizer"]) == ("BPE", None, None)
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in pipeline["added_tokens"])
        and not any(SPACE.search(token["content"]) for token in pipeline["added_tokens"])
    )


# SHA-256 of GPT-2's merges, as its vocab.bpe and merges.txt have them.
GPT2_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def is_gpt2(pipeline: dict[str, Any]) -> bool:
    """Whether these are GPT-2's tokens with GPT-2's ids, and at most one token beside them."""
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
    """By tiktoken, which merges the bytes of a new word in a sixth of the time that tokenizers takes.

    It takes the order of merges from the ids. For GPT-2 that comes to the same; another vocabulary may have two ways to
    make a token.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # how GPT-2 splits a text before it merges bytes

    letters, added = _byte_alphabet(), {token["content"]: token["id"] for token in pipeline["added_tokens"]}
    ranks = {
        bytes(letters[letter] for letter in token): i
        for token, i in pipeline["model"]["vocab"].items()
        if token not in added
    }
    made = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=added)
    return lambda texts: [made.encode_to_numpy(text, allowed_special="all") for text in texts]


def _word_encoder(encode: Encoder) -> Encoder:
    """Each different word, with the space before it, is encoded once: text repeats its words, so that this is ten
    times faster than encoding all of it."""
    known: dict[str, bytes] = {}

    def encode_one(text: str) -> NDArray[Any]:
        words = WORD.findall(text)
        if new := list({word for word in words if word not in known}):
            if len(known) > KNOWN_WORDS:
                known.clear()
                new = list(set(words))
            known.update(zip(new, (ids.tobytes() for ids in encode(new)), strict=True))
        return np.frombuffer(b"".join(map(known.__getitem__, words)), dtype=np.uint32)

    return lambda texts: [encode_one(text) for text in texts]


def _char_encoder(vocabulary: dict[str, int]) -> Encoder:
    """A table lookup over code points: tokenizers' own BPE takes a long text for one word, and is 50 times slower."""
    letters = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
    table = np.full(max(letters, default=0) + 2, ABSENT, dtype=np.uint32)  # the last one: all beyond the table
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
