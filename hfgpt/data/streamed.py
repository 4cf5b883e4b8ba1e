"""Streamed corpora: their held-out tokens and their lanes.

In:  a config, its corpora with their weights, and the tokenizer.
Out: :class:`Streamed`: evaluation tokens, and the batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hfgpt.base import threads
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.data.blocks import TokenStream
from hfgpt.data.encoding import encoder
from hfgpt.data.mix import Pattern
from hfgpt.data.pieces import Part
from hfgpt.data.sources import Sources
from hfgpt.data.streaming import (
    SHUFFLE_WINDOW,
    SMALLEST_WINDOW,
    UNITS,
    Lane,
    MixedLane,
    StreamBatches,
    TokenSource,
    lane_count,
)
from hfgpt.data.texts import Place, TextStream, units
from hfgpt.data.tokens import encode_part, process_count, token_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[Part], NDArray[Any]]


@dataclass(frozen=True)
class Streamed:
    """The first tokens of each corpus, for evaluation, and the batches. `held_out` tokens are never trained on."""

    train: list[TokenStream]
    val: list[TokenStream]
    held_out: int
    lanes: int
    batches: StreamBatches


@dataclass(frozen=True)
class _Corpus:
    """One corpus of a stream: its texts, and where training begins after the held-out part."""

    texts: Sources
    column: str
    encode: Encode
    first: Place | None = None

    @property
    def units(self) -> int:
        """How many units can be divided among lanes: files, pieces, or Hub shards, of which each lane needs its own."""
        if self.texts.stream:
            return int(self.texts.stream[0].n_shards) * UNITS
        return len(units(self.texts.train, self.first["piece"] if self.first else 0, whole=False))

    def source(self, seed: Sequence[int], lane: int, lanes: int) -> TokenSource:
        """Return the tokens of a lane. A Hub dataset's held-out tokens lie in the first lane."""
        rows = self.texts.stream[0] if self.texts.stream else None
        first = self.first if rows is None or lane == 0 else None
        texts = TextStream(self.texts.train, rows, self.column, seed, lane, lanes)
        return TokenSource(texts, self.encode, first)

    def validation(self) -> TokenSource:
        """Return the tokens of the dataset's own validation split."""
        rows = self.texts.stream[1] if self.texts.stream else None
        return TokenSource(TextStream(self.texts.val, rows, self.column, (0,)), self.encode)


def stream(
    config: Config, names: Sequence[str], texts: Sequence[Sources], weights: Sequence[float],
    tokenizer: PreTrainedTokenizerFast,
) -> Streamed:  # fmt: skip
    """Open the corpora, hold out the evaluation tokens, and distribute the rows of a batch over lanes."""
    encode = _encode(tokenizer)
    n = evaluated_tokens(config)
    needs = [max(config.block_size + 1, int(n * weight / sum(weights))) for weight in weights]
    plain = [_Corpus(text, config.text_column, encode) for text in texts]
    lanes = lane_count(config.global_batch, max(corpus.units for corpus in plain))
    while True:
        corpora, train, val = _held_out(config, plain, needs, lanes)
        again = lane_count(config.global_batch, max(corpus.units for corpus in corpora))
        if again >= lanes and (lanes == 1 or _suffices(val, needs, plain)):
            break
        lanes = again if again < lanes else 1
    held = sum(len(v) for v, corpus in zip(val, plain, strict=True) if not corpus.texts.has_validation)
    return Streamed(train, val, held, lanes, _batches(config, names, corpora, weights, lanes))


def evaluated_tokens(config: Config) -> int:
    """Return the maximum tokens of a split that an evaluation reads."""
    return config.eval_iters * EVAL_BATCH * config.block_size + 1


def _encode(tokenizer: PreTrainedTokenizerFast) -> Encode:
    encode, end = encoder(tokenizer.backend_tokenizer.to_str()), tokenizer.eos_token_id
    dtype = token_dtype(tokenizer)
    return lambda part: encode_part(part, encode, end).astype(dtype)


def _held_out(
    config: Config, corpora: Sequence[_Corpus], needs: Sequence[int], lanes: int
) -> tuple[list[_Corpus], list[TokenStream], list[TokenStream]]:
    """Return the corpora without their held-out tokens, the first training tokens, and the validation tokens."""
    behind, train, val = [], [], []
    for corpus, need in zip(corpora, needs, strict=True):
        shared = lanes if corpus.texts.stream and corpus.units >= UNITS * lanes else 1
        if corpus.texts.has_validation:
            val.append(corpus.validation().head(need)[0])
        else:
            tokens, first = corpus.source((config.seed,), 0, shared).head(need)
            val.append(tokens)
            corpus = _Corpus(corpus.texts, corpus.column, corpus.encode, first)
        behind.append(corpus)
        train.append(corpus.source((config.seed,), 0, shared).head(need)[0])
    return behind, train, val


def _suffices(val: Sequence[TokenStream], needs: Sequence[int], corpora: Sequence[_Corpus]) -> bool:
    """Whether the first lanes of Hub datasets hold enough tokens to hold out."""
    return all(
        len(tokens) >= need or not corpus.texts.stream or corpus.texts.has_validation
        for tokens, need, corpus in zip(val, needs, corpora, strict=True)
    )


def _batches(
    config: Config, names: Sequence[str], corpora: Sequence[_Corpus], weights: Sequence[float], lanes: int
) -> StreamBatches:
    seed, mixed = config.seed, len(corpora) > 1
    local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    readers = threads.pool(max(1, process_count(config) // local), "read-ahead")
    window = SHUFFLE_WINDOW if lanes == 1 else max(SMALLEST_WINDOW, SHUFFLE_WINDOW // lanes)
    patterns = [Pattern(weights, seed, lane) for lane in range(lanes)] if mixed else []

    def lane_of(number: int, i: int, corpus: _Corpus) -> Lane:
        if lanes == 1 or corpus.units >= UNITS * lanes:
            source = corpus.source((seed,), number, lanes)
        else:  # a small corpus of a mix: each lane reads all of it, local files in an order of its own
            source = corpus.source((seed, number), 0, 1)
        words = (seed, number, i) if mixed else (seed, number) if lanes > 1 else (seed,)
        return Lane(source, config.block_size, window, words, readers)

    def make_lane(number: int) -> Lane | MixedLane:
        parts = [lane_of(number, i, corpus) for i, corpus in enumerate(corpora)]
        return MixedLane(parts, patterns[number]) if mixed else parts[0]

    return StreamBatches(make_lane, lanes, config.global_batch, names if mixed else (), patterns)
