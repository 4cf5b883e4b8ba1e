"""Prepare a run's data from its config: the tokenizer, the tokens of both splits, and the batches of each step.

In:  a config (its data fields, `block_size`, the global batch, `seed`, `eval_iters`).
Out: a :class:`Corpus`, which does not need torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hfgpt.base import threads
from hfgpt.base.errors import InputError
from hfgpt.base.files import expanded
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.config import Config, yaml_text
from hfgpt.config.yaml_text import corpora
from hfgpt.data import reading, sources
from hfgpt.data import tokenizer as tokenizers
from hfgpt.data.bins import Bins, find_bins, map_tokens
from hfgpt.data.bins_tokenizer import check_tokenizer, tokenizer_of_files
from hfgpt.data.blocks import AnyBatches, Batches, Prefetched, TokenStream, check_length
from hfgpt.data.mix import MixedBatches, blend
from hfgpt.data.pieces import content_digest, highest_token, key_of
from hfgpt.data.sources import Sources
from hfgpt.data.streamed import evaluated_tokens, stream
from hfgpt.data.tokens import the_only_one, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLE = 16 << 20  # characters that 'char' and 'bpe' learn from: all of a small corpus, a sample of a large one


@dataclass(frozen=True)
class Corpus:
    """The data for training and evaluation.

    When streaming, `train` holds only the first tokens of the training text, to evaluate the training loss; for a mix,
    `train` and `val` hold each corpus in the share of its weight. `fingerprint` changes only with the tokens of either
    split. `train_tokens` counts the training tokens, or is None when streaming. `validation_sets` holds the validation
    tokens of each corpus of a mix, and of `val_datasets`, by their names in metrics.jsonl.
    """

    tokenizer: PreTrainedTokenizerFast
    train: TokenStream
    val: TokenStream
    batches: AnyBatches
    fingerprint: str
    train_tokens: int | None = None
    validation_sets: dict[str, TokenStream] = field(default_factory=dict)


@dataclass(frozen=True)
class _Named:
    """One of a config's corpora."""

    config: Config  # with only this corpus as its dataset
    label: str  # short name for metrics.jsonl
    weight: float
    texts: Sources | Bins


@dataclass(frozen=True)
class _Tokens:
    train: TokenStream
    val: TokenStream
    fingerprint: str


@threads.unpinned()
def prepare(config: Config, cache_dir: Path | None = None) -> Corpus:
    """Load, tokenise and split the dataset; later calls open the result from the cache.

    Several processes may call this at once: one does the work, the others wait and read its result.

    Args:
        config: resolved.
        cache_dir: folder for tokens and trained tokenizers (default: the cache of `datasets`, HF_DATASETS_CACHE).

    Raises:
        InputError: the dataset or tokenizer cannot be used, or the dataset is too short for one block in each split.
    """
    cache = Path(cache_dir or default_cache())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        named = _find(config, cache)
        tokenizer = _choose_tokenizer(config, named, cache)
        texts = [corpus.texts for corpus in named if isinstance(corpus.texts, Sources)]
        if config.streaming and texts:
            corpus = _from_stream(config, named, texts, tokenizer)
        else:
            corpus = _from_tokens(config, named, [_tokens_of(corpus, tokenizer, cache) for corpus in named], tokenizer)
        further = _further(config, tokenizer, cache, corpus.validation_sets)
        return replace(corpus, validation_sets=corpus.validation_sets | further)
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if error.filename else cache
        if place.is_relative_to(expanded(config.dataset)) and not place.is_relative_to(cache):
            raise InputError(
                "dataset = {name!r}: cannot be read: {reason}", name=config.dataset, reason=error
            ) from None
        raise InputError(
            "the prepared data cannot be written: {reason}\n    → set HF_DATASETS_CACHE to a folder with room for it",
            reason=error,
        ) from None


def default_cache() -> Path:
    """Return the cache folder of `datasets`, without the half second that importing the library takes."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or os.path.join(os.path.expanduser(home), "datasets"))


# ------------------------------------------------------------------------------------------------- what there is


def _find(config: Config, cache: Path) -> list[_Named]:
    """Find the corpora that `dataset` names, without reading them; print a line on their splits."""
    entries = corpora(config.dataset)
    labels = _labels([name for name, _weight in entries])
    named = []
    for (name, weight), label in zip(entries, labels, strict=True):
        alone = config.model_copy(update={"dataset": name})
        texts = find_bins(alone) or sources.find(alone, cache)
        if texts.notice and sources.is_main():
            say(f"{name}: {texts.notice}", sys.stderr)
        named.append(_Named(alone, label, weight, texts))
    return named


def _labels(names: list[str]) -> list[str]:
    """Return short names of corpora: the last part of each path, numbered if several are the same.

    They appear in the run's metrics, which may be shared; the parent folders may contain personal names.
    """
    labels = list[str]()
    for name in names:
        short = label = Path(name).name or name
        number = 2
        while label in labels:
            label, number = f"{short} ({number})", number + 1
        labels.append(label)
    return labels


def _choose_tokenizer(config: Config, named: list[_Named], cache: Path) -> PreTrainedTokenizerFast:
    """Return the config's tokenizer, or that of token files that bring their own.

    Raises:
        InputError: token files do not have a tokenizer, have another one, or cannot be mixed with the other corpora.
    """
    bins = {corpus.config.dataset: corpus.texts for corpus in named if isinstance(corpus.texts, Bins)}
    tokenizer = tokenizer_of_files(config, bins, alone=len(named) == 1)
    if tokenizer is not None and len(named) == 1:
        return tokenizer
    if tokenizer is None:
        tokenizer = _tokenizer(config, [corpus for corpus in named if isinstance(corpus.texts, Sources)], cache)
    for name, files in bins.items():
        check_tokenizer(name, files, tokenizer, config)
    return tokenizer


def _tokenizer(config: Config, named: list[_Named], cache: Path) -> PreTrainedTokenizerFast:
    """Return the config's tokenizer. A trained one is cached, so only the first start pays for it."""
    if config.tokenizer not in tokenizers.TRAINED:
        return tokenizers.build(config, [])
    texts = [corpus.texts for corpus in named if isinstance(corpus.texts, Sources)]
    weights = [f"{corpus.weight:g}" for corpus in named] if len(named) > 1 else []
    key = key_of(*(text.train_fingerprint for text in texts), *weights, config.tokenizer, str(config.vocab_size))
    folder = cache / "hfgpt" / "tokenizers" / key
    if not folder.exists():
        with the_only_one(folder.parent, key, config.dataset):
            if not folder.exists():
                temporary = folder.with_suffix(".tmp")
                shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted start
                tokenizers.build(config, _sample(named)).save_pretrained(temporary)
                os.replace(temporary, folder)
    return tokenizers.load(str(folder))


def _sample(named: Iterable[_Named]) -> Iterator[str]:
    """Yield the texts to train a tokenizer on: a sample of each corpus, in proportion to its weight."""
    named = list(named)
    total = sum(corpus.weight for corpus in named)
    for corpus in named:
        assert isinstance(corpus.texts, Sources)
        limit = int(SAMPLE * corpus.weight / total)
        yield from reading.sample(corpus.texts.cross_section(limit, corpus.config.streaming), limit)


# --------------------------------------------------------------------------------------------------------- prepared


def _tokens_of(corpus: _Named, tokenizer: PreTrainedTokenizerFast, cache: Path) -> _Tokens:
    if isinstance(corpus.texts, Bins):
        return _tokens_of_bins(corpus.config, corpus.texts, tokenizer, cache)
    texts, mark = corpus.texts, tokenizers.fingerprint(tokenizer)
    prints = [key_of(content, mark) for content in (texts.train_fingerprint, texts.val_fingerprint)]
    train = tokenise(corpus.config, texts.train, tokenizer, prints[0], cache)
    if not texts.val:
        return _cut(corpus.config, train, prints[0], _("give more text, or change val_fraction"))
    val = tokenise(corpus.config, texts.val, tokenizer, prints[1], cache)
    check_length(corpus.config, train, val, _("give more text"))
    return _Tokens(train, val, key_of(*prints))


def _tokens_of_bins(config: Config, files: Bins, tokenizer: PreTrainedTokenizerFast, cache: Path) -> _Tokens:
    train, val = (_mapped(config, paths, tokenizer, cache) for paths in (files.train, files.val))
    marks = [content_digest(path, cache) for path in (*files.train, *files.val)] + [tokenizers.fingerprint(tokenizer)]
    if not val:
        return _cut(config, TokenStream(train), key_of(*marks), _("prepare more text, or change val_fraction"))
    check_length(config, TokenStream(train), TokenStream(val), _("prepare more text"))
    return _Tokens(TokenStream(train), TokenStream(val), key_of(*marks))


def _mapped(config: Config, paths: list[Path], tokenizer: PreTrainedTokenizerFast, cache: Path) -> list[NDArray[Any]]:
    """Map token files, after checking that the tokenizer knows their tokens."""
    size = tokenizers.vocabulary_size(tokenizer)
    mapped = [map_tokens(path, config.bin_dtype) for path in paths]
    for path, tokens in zip(paths, mapped, strict=True):
        if (highest := highest_token(path, tokens, cache)) >= size:
            raise InputError(
                "dataset = {name!r}: has the token {highest}, and the tokenizer {tokenizer!r} knows {size}\n"
                "    → set tokenizer to the one it was prepared with, or bin_dtype to the type of its tokens",
                name=config.dataset,
                highest=highest,
                tokenizer=config.tokenizer,
                size=size,
            )
    return mapped


def _cut(config: Config, tokens: TokenStream, key: str, advice: str) -> _Tokens:
    """Hold out the tail of a corpus for validation."""
    cut = int(len(tokens) * (1 - config.val_fraction))
    train, val = tokens.part(0, cut), tokens.part(cut, len(tokens))
    check_length(config, train, val, advice)
    return _Tokens(train, val, key_of(key, str(config.val_fraction)))


def _from_tokens(
    config: Config, named: list[_Named], tokens: list[_Tokens], tokenizer: PreTrainedTokenizerFast
) -> Corpus:
    """Build the Corpus for prepared tokens of one corpus or a mix."""
    train, val = [part.train for part in tokens], [part.val for part in tokens]
    size, seed, warmup = config.global_batch, config.seed, config.batch_warmup_iters
    batches: AnyBatches = Batches(train[0], config.block_size, size, seed, warmup)
    if len(named) > 1:
        by_label = {corpus.label: stream for corpus, stream in zip(named, train, strict=True)}
        weights = [corpus.weight for corpus in named]
        batches = MixedBatches(by_label, weights, config.block_size, size, seed, warmup)
    prints = [part.fingerprint for part in tokens]
    return _corpus(config, named, tokenizer, train, val, batches, prints, sum(map(len, train)))


def _corpus(
    config: Config, named: list[_Named], tokenizer: PreTrainedTokenizerFast, train: list[TokenStream],
    val: list[TokenStream], batches: AnyBatches, prints: list[str], train_tokens: int | None,
) -> Corpus:  # fmt: skip
    """Return the Corpus; a mix is evaluated on each corpus in the share of its weight, and on each alone."""
    ready = Prefetched(batches)
    if len(named) == 1:
        return Corpus(tokenizer, train[0], val[0], ready, prints[0], train_tokens)
    weights = [corpus.weight for corpus in named]
    blended_train, blended_val = (blend(streams, weights, config.block_size) for streams in (train, val))
    key = key_of(*prints, *(f"{weight:g}" for weight in weights))
    each = {corpus.label: stream for corpus, stream in zip(named, val, strict=True)}
    return Corpus(tokenizer, blended_train, blended_val, ready, key, train_tokens, each)


def _further(
    config: Config, tokenizer: PreTrainedTokenizerFast, cache: Path, taken: Collection[str]
) -> dict[str, TokenStream]:
    """Return the tokens of `val_datasets` by name: each one's validation split, or all of it if there is not one."""
    sets = dict[str, TokenStream]()
    for name, source in yaml_text.named(config.val_datasets):
        if name in taken:
            raise InputError(
                "val_datasets: {name!r} is the name of a corpus of the mix → write other={name}", name=name
            )
        alone = config.model_copy(update={"dataset": source, "streaming": False})
        try:
            texts = find_bins(alone) or sources.find(alone, cache)
            if isinstance(texts, Bins):
                check_tokenizer(source, texts, tokenizer, config)
                sets[name] = TokenStream(_mapped(alone, texts.val or texts.train, tokenizer, cache))
                continue
        except InputError as error:
            raise InputError(str(error).replace("dataset = ", "val_datasets = ", 1)) from None
        pieces, content = (texts.val, texts.val_fingerprint) if texts.val else (texts.train, texts.train_fingerprint)
        sets[name] = tokenise(alone, pieces, tokenizer, key_of(content, tokenizers.fingerprint(tokenizer)), cache)
    for name, tokens in sets.items():
        if len(tokens) <= config.block_size:
            raise InputError(
                "val_datasets: {name!r} has {tokens:,} tokens, and one block takes {need:,}",
                name=name,
                tokens=len(tokens),
                need=config.block_size + 1,
            )
    return sets


# --------------------------------------------------------------------------------------------------------- streamed


def _from_stream(
    config: Config, named: list[_Named], texts: list[Sources], tokenizer: PreTrainedTokenizerFast
) -> Corpus:
    """Build the Corpus for streaming: only evaluation tokens are prepared, from a validation split or held out."""
    if len(texts) < len(named):
        raise InputError(
            "streaming = true: token files are never streamed, they are read where they lie\n"
            "    → set streaming to false, or leave the token files out of the mix"
        )
    labels, weights = [corpus.label for corpus in named], [corpus.weight for corpus in named]
    opened = stream(config, labels, texts, weights, tokenizer)
    advice = _("give more text, or set streaming to false")
    if opened.held_out:
        advice = _(
            "give more text, or set streaming to false, or lower eval_iters: it holds out {n:,} tokens",
            n=opened.held_out,
        )
    for corpus, train, val in zip(named, opened.train, opened.val, strict=True):
        check_length(corpus.config, train, val, advice)
    need = sum(len(val) for val in opened.val) if len(named) > 1 else evaluated_tokens(config)
    marks = [mark for text in texts for mark in (text.train_fingerprint, text.val_fingerprint)]
    marks += [tokenizers.fingerprint(tokenizer), str(need)]
    if opened.lanes > 1:
        marks.append(f"{opened.lanes} lanes")
    prints = marks if len(named) > 1 else [key_of(*marks)]
    return _corpus(config, named, tokenizer, opened.train, opened.val, opened.batches, prints, None)
