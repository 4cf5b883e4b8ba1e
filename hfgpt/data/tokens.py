"""Tokenise texts once, on all cores, into the cache of `datasets`.

In:  the pieces of a split and a tokenizer.
Out: a :class:`~hfgpt.data.blocks.TokenStream` over memory-mapped Arrow files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import UNREADABLE
from hfgpt.base.language import _
from hfgpt.base.lock import FolderLock, Holder
from hfgpt.base.terminal import say
from hfgpt.config import Config
from hfgpt.data import reading, sources
from hfgpt.data.blocks import TokenStream
from hfgpt.data.encoding import Encoder, encoder
from hfgpt.data.pieces import Part, Piece, text_size
from hfgpt.data.tokenizer import vocabulary_size

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

ANNOUNCED_FROM = 16 << 20  # bytes of text above which a message announces the work


def tokenise(
    config: Config, pieces: list[Piece], tokenizer: PreTrainedTokenizerFast, key: str, cache: Path
) -> TokenStream:
    """Return the tokens of a split from the cache, after tokenising it on all cores if necessary.

    Several processes, runs and machines may call this at once: one does the work, the others print whom they wait for
    and read its result.

    Raises:
        InputError: a text cannot be read, or the tokenizer cannot encode it.
        OSError: the cache cannot be written.
    """
    dtype = token_dtype(tokenizer)
    if (rows := _cached(cache, key)) is None:
        with the_only_one(cache / "hfgpt" / "tokens", key, config.dataset):
            if (rows := _cached(cache, key)) is None:
                rows = _generate(config, pieces, tokenizer, key, cache)
    return TokenStream.of(rows.column("tokens"), dtype)


@contextlib.contextmanager
def the_only_one(folder: Path, key: str, name: str) -> Iterator[None]:
    """Let one process at a time prepare the data with this key; the others wait, and print for whom.

    Raises:
        OSError: the folder cannot be written.
    """

    def waiting(holder: Holder) -> None:
        if sources.is_main():
            say(_("{name} is being prepared by {holder}; waiting for it", name=name, holder=holder), sys.stderr)

    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, f"{key}.lock").acquire(waiting):
        yield


def _generate(
    config: Config, pieces: list[Piece], tokenizer: PreTrainedTokenizerFast, key: str, cache: Path
) -> pa.Table:
    import datasets

    work = {
        "pieces": pieces,
        "pipeline": tokenizer.backend_tokenizer.to_str(),
        "end": tokenizer.eos_token_id,
        "dtype": token_dtype(tokenizer),
    }
    processes = min(len(pieces), process_count(config))
    if (size := text_size(pieces)) > ANNOUNCED_FROM and sources.is_main():
        say(
            _(
                "Preparing {size:,.0f} MB of {name} (once; cached in {cache})",
                size=size / 1e6,
                name=config.dataset,
                cache=cache,
            ),
            sys.stderr,
        )
    with _quiet():
        try:
            dataset = datasets.Dataset.from_generator(
                _token_rows,
                features=datasets.Features({"tokens": datasets.Value("binary")}),
                cache_dir=str(cache),
                gen_kwargs=work,
                num_proc=processes if processes > 1 else None,
                fingerprint=key,
                writer_batch_size=16,
            )
        except datasets.exceptions.DatasetGenerationError as error:
            if os.strerror(errno.ENOSPC) in str(error.__cause__):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache)) from None
            for _row in _token_rows(**work):  # the worker's own error was lost: raise it again here
                pass
            raise
    return dataset.data.table


def _cached(cache: Path, key: str) -> pa.Table | None:
    """Memory-map the rows in the cache of `datasets`, without waiting for the library's import.

    Return None without such rows, or if their format is unknown; `datasets` then reads the files.
    """
    import pyarrow as pa

    folder = cache / "generator" / f"default-fingerprint={key}" / "0.0.0"  # renamed to this once complete
    try:
        expected = json.loads((folder / "dataset_info.json").read_text())["splits"]["train"]["num_examples"]
        shards = [pa.memory_map(str(path)) for path in sorted(folder.glob("generator-train*.arrow"))]
        rows = pa.concat_tables([pa.ipc.open_stream(shard).read_all() for shard in shards])
    except (OSError, *UNREADABLE):  # includes Arrow's own errors
        return None
    return rows if rows.num_rows == expected and rows.column_names == ["tokens"] else None


def token_dtype(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the integer type for a tokenizer's ids: 'uint16' if it suffices, else 'uint32'."""
    return "uint16" if vocabulary_size(tokenizer) <= 1 << 16 else "uint32"


def process_count(config: Config) -> int:
    """Return how many processes or threads prepare data: `num_proc`, or the cores that this process may use."""
    if config.num_proc != "auto":
        return config.num_proc
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bars of `datasets`, and the threads of `tokenizers`, which do not survive a fork."""
    import datasets

    bars, threads = datasets.are_progress_bars_disabled(), os.environ.get("TOKENIZERS_PARALLELISM")
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if threads is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = threads


def _token_rows(pieces: list[Piece], pipeline: str, end: int | None, dtype: str) -> Iterator[dict[str, Any]]:
    """Yield one row of tokens for each part, after an empty one (`datasets` does not store tables without rows).

    Worker processes run this. The rows are bytes, since `datasets` writes lists of numbers 50 times slower.
    """
    encode = encoder(pipeline)
    for piece in pieces:
        yield {"tokens": b""}
        for part in reading.read(piece):
            yield {"tokens": encode_part(part, encode, end).astype(dtype).tobytes()}


def encode_part(part: Part, encode: Encoder, end: int | None) -> NDArray[Any]:
    """Return the tokens of a part's texts; each document ends with the end-of-text token if the tokenizer has one.

    If a text spells out the end-of-text token, as files of many documents do, it is encoded as that token.
    """
    tokens = encode(part.texts)
    if end is not None:
        mark = np.array([end], dtype=np.uint32)
        tokens = [item for ids in tokens for item in (ids, mark)][: -1 if part.open else None]
    return np.concatenate(tokens)
