"""Tokenizers: plain Transformers tokenizers that encode any text losslessly.

In:  ``tokenizer`` of the config ('char', 'bpe', or a Hub id or folder), ``vocab_size``, and texts to learn from.
Out: a ``PreTrainedTokenizerFast`` that ``save_pretrained`` writes and ``AutoTokenizer`` reloads without hfgpt; its
     :func:`vocabulary_size` and :func:`fingerprint`. :mod:`hfgpt.data.encoding` encodes with it.

``char`` numbers the characters of the corpus from 0 in sorted order, as nanoGPT does. The 256 byte tokens after them
spell every other character in UTF-8, so no prompt is ever dropped or changed. nanoGPT's vocabulary does not have these:
tiny Shakespeare has 65 tokens there, and 65 + 256 here. ``bpe`` is GPT-2's byte-level byte-pair encoding, trained here.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hfgpt.base.errors import InputError, first_line
from hfgpt.base.files import check_regular, expanded
from hfgpt.base.language import _, strerror
from hfgpt.data.tokenizer_file import check_file, faults_as_messages, panics_as_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from hfgpt.config import Config  # a command that only samples does not load it

TRAINED = ("char", "bpe")
END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
LARGEST = 10_000_000  # ids; each needs a row of the embedding


# ------------------------------------------------------------------------------------------------- making and loading


def build(config: Config, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build or load the tokenizer that the config names.

    Args:
        config: only its `tokenizer` and `vocab_size` are used.
        texts: training text for 'char' and 'bpe'; not read for an existing tokenizer.

    Raises:
        InputError: the tokenizer does not exist, or does not have a fast implementation.
    """
    if config.tokenizer == "char":
        return train_char(texts)
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None, "resolve() fills in vocab_size for 'bpe'"
        return train_bpe(texts, config.vocab_size)
    return load(config.tokenizer)


def train_char(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a character-level tokenizer: the characters of `texts` in sorted order, then the 256 bytes."""
    characters = sorted(set().union(*(set(text) for text in texts)))
    return char_of([*characters, *BYTE_TOKENS])


def char_of(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the character-level tokenizer with these tokens, id 0 first: single characters, and all of BYTE_TOKENS."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(backend)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of GPT-2's kind: bytes merged within words, END_OF_TEXT between documents.

    Returns: a tokenizer of exactly `vocab_size` tokens, or fewer if `texts` run out of pairs to merge.
    """
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
        clean_up_tokenization_spaces=False,  # otherwise decoding drops spaces before punctuation
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would embed token_type_ids as tokens
        **special_tokens,
    )


def load(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from the Hub or a folder; one with only vocab.json and merges.txt is read as GPT-2's.

    Raises:
        InputError: it does not exist, cannot be reached, is damaged, or does not have a fast implementation.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    folder = expanded(name)
    bare = (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file()
    source = str(folder) if folder.is_dir() else name
    check_file(folder / "tokenizer.json")
    try:
        with panics_as_messages():
            tokenizer = (GPT2TokenizerFast if bare else AutoTokenizer).from_pretrained(source, trust_remote_code=False)
        # JSON can hold half a surrogate pair, which no file can; better now than when the first model is exported.
        settings = {**tokenizer.init_kwargs, "chat_template": tokenizer.chat_template}
        json.dumps(settings, default=str, ensure_ascii=False).encode("utf-8")
    except Exception as error:  # any library error: missing, unreachable or damaged
        where = _("no such folder here, and the Hub has no such tokenizer or could not be reached")
        if folder.is_dir():
            where = _("the folder holds no tokenizer that can be read")
        raise InputError(
            "tokenizer = {name!r}: {where} ({reason})\n"
            "    → set it to 'char', 'bpe', the id of a tokenizer on the Hub, or a folder with tokenizer.json "
            "(or vocab.json and merges.txt)",
            name=name,
            where=where,
            reason=first_line(error).rstrip("."),
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "tokenizer = {name!r}: has no fast implementation (tokenizer.json)\n    → use one that has, such as 'gpt2'",
            name=name,
        )
    if not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):  # built from only a model's config.json
        raise InputError(
            "tokenizer = {name!r}: has an empty vocabulary\n"
            "    → give a folder with tokenizer.json (or vocab.json and merges.txt)",
            name=name,
        )
    if (size := vocabulary_size(tokenizer)) > LARGEST:
        raise InputError(
            "tokenizer = {name!r}: has ids up to {highest:,}, and a vocabulary of at most {largest:,} is read",
            name=name,
            highest=size - 1,
            largest=LARGEST,
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False  # written by save_pretrained
    return tokenizer


# --------------------------------------------------------------------------------------------- what training must know


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest token id plus one: the rows that a model's embedding needs."""
    return int(max(tokenizer.get_vocab().values())) + 1


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text of any length, without special tokens around them.

    Transformers' own `encode` warns if a text is longer than the model's block, which is not an error here.

    Raises:
        InputError: the tokenizer cannot read the text.
    """
    with faults_as_messages():
        return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return 32 hexadecimal digits that change only with what affects the tokens of a text."""
    return _fingerprint(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id)


@lru_cache(maxsize=2)  # computed for each split and every checkpoint, at a third of a second for GPT-2's
def _fingerprint(pipeline: str, eos: int | None) -> str:
    parsed = json.loads(pipeline)
    parts = [parsed[key] for key in ("model", "normalizer", "pre_tokenizer", "decoder")]
    added = sorted((token["id"], token["content"]) for token in _added(parsed))
    text = json.dumps([parts, added, eos], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _added(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens. A byte used as padding belongs to the model's own tokens, and changes no text."""
    return [token for token in pipeline["added_tokens"] if token["content"] not in BYTE_TOKENS]


def is_char(pipeline: dict[str, Any]) -> bool:
    """Whether the tokenizer is of the kind that :func:`train_char` builds."""
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


# --------------------------------------------------------------------------------------------------- nanoGPT's meta.pkl

META_LIMIT = 64 << 20  # bytes; a vocabulary is a few kilobytes

# An export adds this key, with the ids of the 256 bytes. nanoGPT ignores it.
BYTE_IDS = "hfgpt_byte_ids"

# The opcodes of text, numbers, lists and dictionaries. Tuples are refused, since nested ones as dictionary keys take
# time that doubles with each level; classes and functions could do anything.
PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "POP", "POP_MARK", "DUP", "PUT", "BINPUT", "LONG_BINPUT"),
    *("GET", "BINGET", "LONG_BINGET", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND"),
    *("APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
}


def read_meta(path: str | Path) -> list[str]:
    """Return the characters of a character-level ``meta.pkl``, in the order of their ids.

    If hfgpt exported the file, the ids of bytes have the names in :data:`hfgpt.data.tokenizer.BYTE_TOKENS`.

    Raises:
        InputError: the file cannot be read, holds other than plain data, or is not a vocabulary of single characters.
    """
    try:
        check_regular(Path(path))
        with open(path, "rb") as file:
            raw = file.read(META_LIMIT + 1)
    except OSError as error:
        raise InputError("{path}: cannot be read: {reason}", path=path, reason=strerror(error)) from None
    if len(raw) > META_LIMIT:
        raise InputError("{path}: is too large for a vocabulary", path=path)
    try:
        meta = _plain_data(raw)
        itos = meta["itos"]
        tokens = [itos[i] for i in range(len(itos))]
        byte_ids = meta.get(BYTE_IDS) or []
        spelled = {i: tokens[i] for i in byte_ids}
        sound = not byte_ids or (len(byte_ids) == len(spelled) == 256 and all(type(i) is int for i in spelled))
        sound = sound and all(i >= 0 for i in spelled)
    except Exception as error:  # a damaged pickle can raise almost any exception
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InputError(
            "{path}: is not a vocabulary that can be read safely ({reason})", path=path, reason=reason
        ) from None
    if not sound:
        raise InputError("{path}: does not give each byte one id", path=path)
    characters = [token for i, token in enumerate(tokens) if i not in spelled]
    if not tokens or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise InputError(
            "{path}: is not a vocabulary of single characters; give the model's own tokenizer instead", path=path
        )
    if len(set(characters)) < len(characters):
        raise InputError("{path}: gives a character two ids", path=path)
    for i, token in zip(byte_ids, BYTE_TOKENS, strict=False):
        tokens[i] = token
    return tokens


def _plain_data(raw: bytes) -> Any:
    """Load a pickle of plain data.

    Raises:
        ValueError, pickle.UnpicklingError and others: it holds other data, or is damaged.
    """
    for opcode, argument, _position in pickletools.genops(raw):
        if opcode.name not in PLAIN:
            raise pickle.UnpicklingError(f"it asks for {opcode.name} {argument if argument is not None else ''}")
    # The unpickler in Python: the one in C allocates a table as long as the highest memo index.
    return pickle._Unpickler(io.BytesIO(raw)).load()


def char_tokenizer(characters: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with exactly these characters, id 0 first.

    As in nanoGPT, other characters do not have a token and are dropped, unless the tokens include the 256 bytes.
    """
    from transformers import PreTrainedTokenizerFast

    if set(BYTE_TOKENS) <= set(characters):
        return char_of(characters)
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"]
    )
