"""nanoGPT's prepared data: ``train.bin``, ``val.bin`` and ``meta.pkl``.

In:  a folder that one of nanoGPT's prepare.py scripts wrote.
Out: memory-mapped tokens and the characters that they stand for. No pickle may name a class or a function.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


META_LIMIT = 64 << 20  # bytes; a vocabulary is a few kilobytes

# What an export writes beside nanoGPT's own keys, which nanoGPT does not look at: in meta.pkl the ids of the 256 bytes,
# in the checkpoint's config which GELU the model has.
BYTE_IDS = "hfgpt_byte_ids"


# ------------------------------------------------------------------------------------------------- prepared data


class Bins(NamedTuple):
    """A folder that one of nanoGPT's prepare.py scripts wrote."""

    train: NDArray[np.uint16]  # memory-mapped, one-dimensional
    val: NDArray[np.uint16]
    characters: list[str] | None  # see read_meta, where the folder has a meta.pkl; None: GPT-2's tokens


def read_bins(folder: str | Path) -> Bins:
    """Map the token files of a folder into memory; nothing is read yet.

    Raises:
        InputError: a file is empty, no sequence of uint16, or meta.pkl is no vocabulary.
    """
    path = Path(folder)
    train, val = (_map(path / name) for name in ("train.bin", "val.bin"))
    meta = path / "meta.pkl"
    return Bins(train, val, read_meta(meta) if meta.is_file() else None)


def _map(path: Path) -> NDArray[np.uint16]:
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise InputError(f"{path}: is no sequence of 16-bit tokens ({size:,} bytes); prepare it again")
    return np.memmap(path, dtype="<u2", mode="r")


class _PlainUnpickler(pickle.Unpickler):
    """Reads text, numbers and containers, for which a pickle needs no names of classes or functions."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_meta(path: str | Path) -> list[str]:
    """The characters of a character-level ``meta.pkl``, in the order of their ids.

    Where a model of ours was exported, the ids of bytes have the names of :data:`hfgpt.data.tokenizer.BYTE_TOKENS`.

    Raises:
        InputError: the file cannot be read, holds more than plain data, or is no vocabulary of single characters.
    """
    try:
        if os.path.getsize(path) > META_LIMIT:
            raise InputError(f"{path}: is too large for a vocabulary")
        with open(path, "rb") as file:
            meta = _PlainUnpickler(file).load()
        itos = meta["itos"]
        tokens = [itos[i] for i in range(len(itos))]
        byte_ids = meta.get(BYTE_IDS) or []
        spelled = {i: tokens[i] for i in byte_ids}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path}: is no vocabulary that can be read safely: {error!r}") from None
    if byte_ids and (
        len(byte_ids) != 256 or len(spelled) != 256 or not all(type(i) is int and i >= 0 for i in spelled)
    ):
        raise InputError(f"{path}: does not give each byte one id")
    characters = [token for i, token in enumerate(tokens) if i not in spelled]
    if not tokens or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise InputError(f"{path}: is no vocabulary of single characters; give the model's own tokenizer instead")
    if len(set(characters)) < len(characters):
        raise InputError(f"{path}: gives a character two ids")
    from hfgpt.data.tokenizer import BYTE_TOKENS

    for i, token in zip(byte_ids, BYTE_TOKENS, strict=False):
        tokens[i] = token
    return tokens


def char_tokenizer(characters: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with exactly these characters, id 0 first. As in nanoGPT there is no token for any other; such
    characters are left out of a text, unless the 256 bytes are among the tokens, which spell them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from hfgpt.data.tokenizer import BYTE_TOKENS, char_of

    if set(BYTE_TOKENS) <= set(characters):
        return char_of(characters)
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
