"""nanoGPT's ``meta.pkl``: the characters of a character-level vocabulary, read without executing anything.

In:  the file, which is untrusted.
Out: its characters in the order of their ids, and a tokenizer with exactly these.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models

from hfgpt.base.errors import InputError
from hfgpt.base.files import check_regular
from hfgpt.base.language import strerror
from hfgpt.data.tokenizer import BYTE_TOKENS, char_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
