"""From text to batches: tokens prepared once, blocks cut by arithmetic, an order that needs no state.

In:  a config (its data group, `block_size`, the global batch, `seed`, `eval_iters`).
Out: a :class:`Corpus`: the tokenizer, the training and validation tokens, and the batches of each optimizer step.

`datasets` tokenises on all cores and caches the tokens in Arrow files. They are read through memory maps as one long
:class:`TokenStream`; block i of length T is tokens i·T to i·T + T, the last of them only a target. So packing is an
index computation: nothing is dropped but the last partial block, and another `block_size` needs no new cache.

The order of the blocks is a function of seed and position (:func:`order`), and a step's batch one of seed and step, so
that a resumed run, or one on another number of processes, sees the same batches (:class:`Batches`). While `streaming`
there is no index to shuffle; :class:`StreamBatches` shuffles windows of the stream instead and saves a small position.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.config.nanogpt import holds_bins
from hfgpt.data import bins, sources, tokenizer
from hfgpt.data.bins import Bins
from hfgpt.data.sources import Part, Piece, Place, Sources, TextStream

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast


SAMPLE = 16 << 20  # characters that 'char' and 'bpe' learn from: all of a small corpus, a cross-section of a large one

SHUFFLE_WINDOW = 1024  # blocks that are shuffled among themselves while streaming

FORMAT = "2"  # part of every cache key; to be raised when the same text would be tokenised otherwise


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and is measured on.

    While streaming, `train` holds only the first tokens of the training text, for the evaluation of the training loss.
    `fingerprint` changes with the tokens of either split and with nothing else.
    """

    tokenizer: PreTrainedTokenizerFast
    train: TokenStream
    val: TokenStream
    batches: Batches | StreamBatches
    fingerprint: str


# ---------------------------------------------------------------------------------------------------------- preparing


def prepare(config: Config, cache_dir: Path | None = None) -> Corpus:
    """Load, tokenise and split the dataset; the second time, open what the first has left in the cache.

    Safe to call from several processes at once: one works, the others wait and read its result.

    Args:
        config: resolved.
        cache_dir: where tokens and trained tokenizers are kept (default: the cache of `datasets`, HF_DATASETS_CACHE).

    Raises:
        InputError: the dataset or the tokenizer cannot be used, or is too short for one block in each split.
    """
    cache = Path(cache_dir or default_cache())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if holds_bins(config.dataset):
            return _prepare_bins(config, bins.read_bins(config.dataset), cache)
        found = sources.find(config, cache)
        return _prepare_stream(config, found, cache) if config.streaming else _prepare_tokens(config, found, cache)
    except OSError as error:
        raise InputError(
            f"the prepared data cannot be written: {error}\n    → set HF_DATASETS_CACHE to a folder with room for it"
        ) from None


def default_cache() -> Path:
    """The cache of `datasets`, as its own configuration says; the library takes half a second to import."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or os.path.join(os.path.expanduser(home), "datasets"))


def _prepare_tokens(config: Config, found: Sources, cache: Path) -> Corpus:
    parts = (part for piece in sources.spread(found.train, SAMPLE) for part in sources.read(piece))
    made = _tokenizer(config, found, sources.sample(parts, SAMPLE), cache)
    contents = (found.train_fingerprint, found.val_fingerprint)
    prints = [_key(content, tokenizer.fingerprint(made)) for content in contents]
    train = _tokenised(config, found.train, made, prints[0], cache)
    if found.val:
        val = _tokenised(config, found.val, made, prints[1], cache)
        fingerprint = _key(*prints)
    else:
        cut = int(len(train) * (1 - config.val_fraction))
        train, val = train.part(0, cut), train.part(cut, len(train))
        fingerprint = _key(prints[0], str(config.val_fraction))
    _check_length(config, train, val, "give more text" if found.val else "give more text, or change val_fraction")
    batches = Batches(train, config.block_size, config.global_batch, config.seed)
    return Corpus(made, train, val, batches, fingerprint)


def _prepare_bins(config: Config, prepared: Bins, cache: Path) -> Corpus:
    """What a prepare.py of nanoGPT wrote: tokens already, read where they lie."""
    if prepared.characters is None and config.tokenizer in tokenizer.TRAINED:
        raise InputError(
            f"tokenizer = {config.tokenizer!r}: {config.dataset!r} holds tokens of GPT-2's tokenizer already\n"
            "    → set tokenizer to 'gpt2', or to a folder that holds it"
        )
    made = bins.char_tokenizer(prepared.characters) if prepared.characters else tokenizer.load(config.tokenizer)
    train, val = TokenStream([prepared.train]), TokenStream([prepared.val])
    highest = max(int(prepared.train.max()), int(prepared.val.max()))
    if highest >= tokenizer.vocabulary_size(made):
        raise InputError(
            f"dataset = {config.dataset!r}: has the token {highest}, and the tokenizer {config.tokenizer!r} knows "
            f"{tokenizer.vocabulary_size(made)}\n    → set tokenizer to the one it was prepared with"
        )
    _check_length(config, train, val, "prepare more text")
    content = [sources.content_digest(Path(config.dataset) / name, cache) for name in ("train.bin", "val.bin")]
    batches = Batches(train, config.block_size, config.global_batch, config.seed)
    return Corpus(made, train, val, batches, _key(*content, tokenizer.fingerprint(made)))


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((FORMAT, *parts)).encode()).hexdigest()[:32]


def _tokenizer(config: Config, found: Sources, texts: Iterator[str], cache: Path) -> PreTrainedTokenizerFast:
    """The config's tokenizer. One that is trained here is kept, so that only the first start pays for it."""
    if config.tokenizer not in tokenizer.TRAINED:
        return tokenizer.build(config, texts)
    from filelock import FileLock

    key = _key(found.train_fingerprint, config.tokenizer, str(config.vocab_size))
    folder = cache / "hfgpt" / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            temporary = folder.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # left by a start that was interrupted
            tokenizer.build(config, texts).save_pretrained(temporary)
            os.replace(temporary, folder)
    return tokenizer.load(str(folder))


def _tokenised(
    config: Config, pieces: list[Piece], made: PreTrainedTokenizerFast, key: str, cache: Path
) -> TokenStream:
    """The tokens of a split, from the cache or tokenised into it by all cores."""
    dtype = _dtype(made)
    if (rows := _cached(cache, key)) is not None:
        return TokenStream.of(rows.column("tokens"), dtype)
    import datasets

    processes = min(len(pieces), _processes(config))
    size = sum(piece.size for piece in pieces)
    if size > 16 << 20 and sources.is_main():
        print(f"Preparing {size / 1e6:,.0f} MB of {config.dataset} (once; cached in {cache})", file=sys.stderr)
    with _quiet():
        try:
            made_rows = datasets.Dataset.from_generator(
                _token_rows,
                features=datasets.Features({"tokens": datasets.Value("binary")}),
                cache_dir=str(cache),
                gen_kwargs={
                    "pieces": pieces,
                    "pipeline": made.backend_tokenizer.to_str(),
                    "end": made.eos_token_id,
                    "dtype": dtype,
                },
                num_proc=processes if processes > 1 else None,
                fingerprint=key,
                writer_batch_size=16,
            )
        except datasets.exceptions.DatasetGenerationError as error:
            for piece in pieces:  # a worker's own error is lost on its way: meet it again
                for _ in sources.read(piece):
                    pass
            if os.strerror(errno.ENOSPC) in str(error.__cause__):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache)) from None
            raise
    return TokenStream.of(made_rows.data.column("tokens"), dtype)


def _cached(cache: Path, key: str) -> pa.Table | None:
    """The rows that `datasets` has in its cache, mapped into memory without it: a start does not wait for its import.

    None where there are none, or not as they were known to be when this was written: then `datasets` is asked itself.
    """
    import pyarrow as pa

    folder = cache / "generator" / f"default-fingerprint={key}" / "0.0.0"  # renamed to this when it is whole
    try:
        expected = json.loads((folder / "dataset_info.json").read_text())["splits"]["train"]["num_examples"]
        shards = [pa.memory_map(str(path)) for path in sorted(folder.glob("generator-train*.arrow"))]
        rows = pa.concat_tables([pa.ipc.open_stream(shard).read_all() for shard in shards])
    except (OSError, ValueError, KeyError, TypeError):  # Arrow's own errors are among them
        return None
    return rows if rows.num_rows == expected and rows.column_names == ["tokens"] else None


def _dtype(made: PreTrainedTokenizerFast) -> str:
    return "uint16" if tokenizer.vocabulary_size(made) <= 1 << 16 else "uint32"


def _processes(config: Config) -> int:
    if config.num_proc != "auto":
        return config.num_proc
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`, and no threads of `tokenizers`, which do not survive a fork."""
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
    """One row of tokens for each part of the pieces, after an empty one (`datasets` keeps no table without rows).

    This is what a worker process runs. The rows are bytes, since `datasets` writes lists of numbers 50 times slower.
    """
    encode = tokenizer.encoder(pipeline)
    for piece in pieces:
        yield {"tokens": b""}
        for part in sources.read(piece):
            yield {"tokens": encode_part(part, encode, end).astype(dtype).tobytes()}


def encode_part(part: Part, encode: tokenizer.Encoder, end: int | None) -> NDArray[Any]:
    """The tokens of a part's texts, each document closed by the end-of-text token where the tokenizer has one.

    A text that spells the end-of-text token out, as files of many documents do, has it read as that token.
    """
    tokens = encode(part.texts)
    if end is not None:
        mark = np.array([end], dtype=np.uint32)
        tokens = [item for ids in tokens for item in (ids, mark)][: -1 if part.open else None]
    return np.concatenate(tokens)


def _check_length(config: Config, train: TokenStream, val: TokenStream, advice: str) -> None:
    """One block at least in each split."""
    need = config.block_size + 1
    for name, stream in (("training", train), ("validation", val)):
        if len(stream) < need:
            shorter = f"set block_size to at most {len(stream) - 1}, " if len(stream) > 1 else ""
            raise InputError(
                f"block_size = {config.block_size}: one block takes {need:,} tokens, and the {name} split of "
                f"{config.dataset!r} has {len(stream):,}\n    → {shorter}{advice}"
            )


# ---------------------------------------------------------------------------------------------------- tokens and blocks


class TokenStream:
    """The tokens of a split, one after another, over the chunks they are stored in. Nothing is copied to make one.

    Args:
        chunks: one-dimensional integer arrays, for example views of memory-mapped files.
    """

    def __init__(self, chunks: Sequence[NDArray[Any]]) -> None:
        self._chunks = [chunk for chunk in chunks if len(chunk)]
        self._starts = [0, *np.cumsum([len(chunk) for chunk in self._chunks]).tolist()]

    @classmethod
    def of(cls, tokens: pa.ChunkedArray, dtype: str) -> TokenStream:
        """The bytes in a column of a Dataset, as views of its memory-mapped Arrow buffers."""
        chunks = []
        for chunk in tokens.chunks:
            _, offsets, values = chunk.buffers()
            ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            if ends[-1] > ends[0]:
                chunks.append(np.frombuffer(values, dtype=np.uint8)[ends[0] : ends[-1]].view(dtype))
        return cls(chunks)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the tokens from `start` on, all of which must exist."""
        at = bisect_right(self._starts, start) - 1
        chunk = self._chunks[at][start - self._starts[at] :]
        if len(chunk) >= len(out):
            out[:] = chunk[: len(out)]
        else:
            out[: len(chunk)] = chunk
            self.read(start + len(chunk), out[len(chunk) :])

    def part(self, start: int, stop: int) -> TokenStream:
        """The tokens [start, stop) as a stream of their own."""
        bounds = zip(self._starts, self._chunks, strict=False)
        return TokenStream([chunk[max(0, start - at) : max(0, stop - at)] for at, chunk in bounds])

    def n_blocks(self, block_size: int) -> int:
        """How many whole blocks there are, each of `block_size` inputs and as many targets."""
        return max(0, (len(self) - 1) // block_size)

    def blocks(self, indices: Sequence[int] | NDArray[Any], block_size: int) -> NDArray[np.int64]:
        """The blocks of these indices: int64 of shape (n, block_size + 1).

        Inputs are ``[:, :-1]``, targets ``[:, 1:]``; the last token of block i is the first of block i + 1.
        """
        out = np.empty((len(indices), block_size + 1), dtype=np.int64)
        for row, index in zip(out, indices, strict=True):
            self.read(int(index) * block_size, row)
        return out


# ---------------------------------------------------------------------------------------------------- order and batches


@lru_cache(maxsize=2)  # at the end of an epoch, a batch may hold blocks of two
def _permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A shuffle of 0 … n-1 that depends on the seed alone: numpy promises never to change RandomState's streams."""
    return np.random.RandomState(seed).permutation(n)


def order(n_blocks: int, seed: int, positions: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Which blocks stand at these positions of the endless sequence of epochs, each a permutation of all blocks."""
    epochs, places = np.divmod(np.asarray(positions), n_blocks)
    out = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        out[epochs == epoch] = _permutation(n_blocks, seed, int(epoch))[places[epochs == epoch]]
    return out


def _share(global_batch: int, rank: int, world: int, micro_batch: int) -> list[range]:
    """A process's share of a global batch, in micro-batches."""
    share = global_batch // world
    assert share * world == global_batch, "the caller has checked that the batch can be shared"
    assert share % micro_batch == 0, "the caller has chosen a micro-batch that divides the share"
    return [range(at, at + micro_batch) for at in range(rank * share, (rank + 1) * share, micro_batch)]


class Batches:
    """The global batch of each step, in an order that is a function of seed and step."""

    def __init__(self, stream: TokenStream, block_size: int, global_batch: int, seed: int) -> None:
        self.stream, self.block_size, self.global_batch, self.seed = stream, block_size, global_batch, seed
        self.n_blocks = stream.n_blocks(block_size)

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """The blocks of one process for one step.

        Args:
            step: the optimizer step, from 0; any, in any order.
            rank, world: this process, and how many there are; `world` divides the global batch.
            micro_batch: sequences at a time; divides the process's share.

        Yields: int64 of shape (micro_batch, block_size + 1).
        """
        first = step * self.global_batch
        for rows in _share(self.global_batch, rank, world, micro_batch):
            indices = order(self.n_blocks, self.seed, np.arange(first + rows.start, first + rows.stop))
            yield self.stream.blocks(indices, self.block_size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see :meth:`state_dict`."""


# ----------------------------------------------------------------------------------------------------------- streaming


class TokenSource:
    """The tokens of a stream of texts, epoch after epoch without end, from any position on.

    A position is a dict that JSON can hold: `epoch`, the place of a part in it, and `token`, counted from the part's
    first. What :meth:`hold_out` has taken never comes.
    """

    def __init__(self, texts: TextStream, encode: Callable[[Part], NDArray[Any]]) -> None:
        self._texts, self._encode = texts, encode
        self._first: Place | None = None  # place and token where the split begins, behind what is held out

    def hold_out(self, n: int) -> TokenStream:
        """The first n tokens (or all there are) as they are stored, taken out of the stream."""
        stream, self._first = self._head(n)
        return stream

    def head(self, n: int) -> TokenStream:
        """The first n tokens (or all there are) of the stream as they are stored."""
        return self._head(n)[0]

    def _head(self, n: int) -> tuple[TokenStream, Place | None]:
        chunks: list[NDArray[Any]] = []
        for tokens, place in self._epoch(None, None):
            chunks.append(tokens[:n])
            n -= len(tokens)
            if n <= 0:
                return TokenStream(chunks), {**place, "token": place["token"] + len(tokens) + n}
        return TokenStream(chunks), {**place, "token": place["token"] + len(tokens)} if chunks else None

    def _epoch(self, epoch: int | None, position: Place | None) -> Iterator[tuple[NDArray[Any], Place]]:
        """The tokens of each part from the position on, with the position of the first of them."""
        place, first = _without_token(position), _without_token(self._first)
        for part, at in self._texts.parts(epoch, first, place):
            skip = self._first["token"] if self._first and at == first else 0
            if position and at == place:
                skip = max(skip, position["token"])
            yield self._encode(part)[skip:], {**at, "token": skip}

    def tokens(self, position: Place | None = None) -> Iterator[tuple[NDArray[Any], Place]]:
        """Runs of tokens, each with the position of its first token, from a position on (None: the beginning).

        Raises:
            InputError: an epoch has no tokens.
        """
        epoch = position["epoch"] if position else 0
        place = {key: value for key, value in position.items() if key != "epoch"} if position else None
        while True:
            found = place is not None
            for tokens, at in self._epoch(epoch, place):
                found = found or len(tokens) > 0
                yield tokens, {"epoch": epoch, **at}
            if not found:
                raise InputError("dataset: holds no text to train on\n    → give more text")
            epoch, place = epoch + 1, None


def _without_token(position: Place | None) -> Place | None:
    return {key: value for key, value in position.items() if key != "token"} if position else None


class StreamBatches:
    """The global batch of each step, in the order of a stream that is shuffled a window of blocks at a time.

    The same for any number of processes: each reads the whole stream and takes its share of every batch. The next
    window is read in the background. The state is where the window began in the stream, and how much of it is used.
    """

    def __init__(self, source: TokenSource, block_size: int, global_batch: int, seed: int) -> None:
        self._source, self._block_size, self._global_batch, self._seed = source, block_size, global_batch, seed
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._next: Future[tuple[int, Place | None, NDArray[Any]]] | None = None
        self.load_state_dict({"step": 0, "window": 0, "taken": 0, "position": None})

    def micro_batches(self, step: int, rank: int, world: int, micro_batch: int) -> Iterator[NDArray[np.int64]]:
        """As :meth:`Batches.micro_batches`, but the steps must be asked for one after another."""
        assert step == self._step, f"a stream goes forward only: step {self._step} is next, not {step}"
        rows = np.concatenate(list(self._take(self._global_batch)))
        self._step += 1
        for share in _share(self._global_batch, rank, world, micro_batch):
            yield rows[share.start : share.stop].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the next step: a small dict that JSON can hold."""
        return {"step": self._step, "window": self._number, "taken": self._taken, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`, in this process or another."""
        if self._next:
            self._next.exception()  # let the reader finish: a source is read by one at a time
        self._step, self._number, self._taken = state["step"], state["window"], state["taken"]
        self._position = state["position"]
        self._window: NDArray[Any] | None = None
        self._windows, self._next = self._read_windows(self._number, self._position), None

    def _take(self, n: int) -> Iterator[NDArray[Any]]:
        while n:
            if self._window is None or self._taken == len(self._window):
                self._turn()
            assert self._window is not None
            rows = self._window[self._taken : self._taken + n]
            self._taken += len(rows)
            n -= len(rows)
            yield rows

    def _turn(self) -> None:
        """Go on to the next window; the first one after a start or a resume is read here and now."""
        if self._window is not None:
            self._taken = 0
        ready = self._next or self._reader.submit(next, self._windows)
        self._number, self._position, self._window = ready.result()
        self._next = self._reader.submit(next, self._windows)

    def _read_windows(self, number: int, position: Place | None) -> Iterator[tuple[int, Place | None, NDArray[Any]]]:
        """Each window from this one on: its number, the position where it begins, its blocks in shuffled order."""
        runs = self._source.tokens(position)
        size, length = SHUFFLE_WINDOW * self._block_size, self._block_size + 1
        held: list[tuple[NDArray[Any], Place]] = []
        have = 0
        while True:
            while have < size + 1:  # the last block's last target is the next window's first token
                held.append(next(runs))
                have += len(held[-1][0])
            flat = np.concatenate([tokens for tokens, _ in held])[: size + 1]
            blocks = np.lib.stride_tricks.sliding_window_view(flat, length)[:: self._block_size]
            yield number, position, blocks[_permutation(SHUFFLE_WINDOW, self._seed, number)]
            used = size
            while used >= len(held[0][0]):
                used -= len(held.pop(0)[0])
            tokens, at = held[0]
            held[0] = tokens[used:], {**at, "token": at["token"] + used}
            number, position, have = number + 1, held[0][1], have - size


def _prepare_stream(config: Config, found: Sources, cache: Path) -> Corpus:
    """Only the tokenizer and the evaluation's tokens are made now; the validation split is read, or held out."""
    rows, val_rows = found.stream or (None, None)
    texts = TextStream(found.train, rows, config.text_column, config.seed)
    start = (part for part, _ in texts.parts(None, None, None))
    made = _tokenizer(config, found, sources.sample(start, SAMPLE), cache)
    encode, end = tokenizer.encoder(made.backend_tokenizer.to_str()), made.eos_token_id
    dtype = _dtype(made)

    def tokens_of(part: Part) -> NDArray[Any]:
        return encode_part(part, encode, end).astype(dtype)

    source, n = TokenSource(texts, tokens_of), config.eval_iters * EVAL_BATCH * config.block_size + 1
    if found.val or val_rows is not None:
        val = TokenSource(TextStream(found.val, val_rows, config.text_column, 0), tokens_of).head(n)
    else:
        val = source.hold_out(n)
    train = source.head(n)
    held = "" if found.val or val_rows is not None else f", or lower eval_iters: it holds out {len(val):,} tokens"
    _check_length(config, train, val, f"give more text, or set streaming to false{held}")
    fingerprint = _key(found.train_fingerprint, found.val_fingerprint, tokenizer.fingerprint(made), str(n))
    return Corpus(
        made, train, val, StreamBatches(source, config.block_size, config.global_batch, config.seed), fingerprint
    )


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluation_blocks(stream: TokenStream, block_size: int, eval_iters: int) -> NDArray[np.int64]:
    """The blocks that a split is evaluated on, every time: `eval_iters` x EVAL_BATCH of them, spread over all of it.

    All of the split's blocks where there are fewer.
    """
    n_blocks = stream.n_blocks(block_size)
    n = min(n_blocks, eval_iters * EVAL_BATCH)
    return np.arange(n, dtype=np.int64) * n_blocks // max(1, n)


class CharacterCounter:
    """Counts the characters of text that tokens stand for, for bits per character."""

    def __init__(self, made: PreTrainedTokenizerFast) -> None:
        self._table, self._tokenizer = tokenizer.characters(made), made

    def __call__(self, tokens: NDArray[Any]) -> int:
        """Characters in these tokens (any shape; rows are counted one by one)."""
        if self._table is not None:
            return int(self._table[tokens].sum())
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        return sum(len(text) for text in self._tokenizer.batch_decode(rows, skip_special_tokens=True))
