"""From a config to what a run trains on: the tokenizer, the tokens of both splits, and the batches of each step.

In:  a config (its data group, `block_size`, the global batch, `seed`, `eval_iters`).
Out: a :class:`Corpus`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.config.nanogpt import holds_bins
from hfgpt.data import bins, reading, sources, tokenizer
from hfgpt.data.bins import Bins
from hfgpt.data.blocks import Batches, TokenStream
from hfgpt.data.encoding import encoder
from hfgpt.data.fingerprints import content_digest, key_of
from hfgpt.data.pieces import Part, spread
from hfgpt.data.sources import Sources
from hfgpt.data.streaming import StreamBatches, TextStream, TokenSource
from hfgpt.data.tokens import encode_part, token_dtype, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLE = 16 << 20  # characters that 'char' and 'bpe' learn from: all of a small corpus, a cross-section of a large one


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
            return _from_bins(config, bins.read_bins(config.dataset), cache)
        texts = sources.find(config, cache)
        if texts.notice and sources.is_main():
            print(f"{config.dataset}: {texts.notice}", file=sys.stderr)
        return _from_stream(config, texts, cache) if config.streaming else _from_texts(config, texts, cache)
    except OSError as error:
        raise InputError(
            _(
                "the prepared data cannot be written: {reason}\n"
                "    → set HF_DATASETS_CACHE to a folder with room for it",
                reason=error,
            )
        ) from None


def default_cache() -> Path:
    """The cache of `datasets`, as its own configuration says; the library takes half a second to import."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or os.path.join(os.path.expanduser(home), "datasets"))


def _from_texts(config: Config, texts: Sources, cache: Path) -> Corpus:
    """Texts, tokenised into the cache."""
    parts = (part for piece in spread(texts.train, SAMPLE) for part in reading.read(piece))
    own = _tokenizer(config, texts, reading.sample(parts, SAMPLE), cache)
    contents = (texts.train_fingerprint, texts.val_fingerprint)
    prints = [key_of(content, tokenizer.fingerprint(own)) for content in contents]
    train = tokenise(config, texts.train, own, prints[0], cache)
    if texts.val:
        val = tokenise(config, texts.val, own, prints[1], cache)
        fingerprint = key_of(*prints)
    else:
        cut = int(len(train) * (1 - config.val_fraction))
        train, val = train.part(0, cut), train.part(cut, len(train))
        fingerprint = key_of(prints[0], str(config.val_fraction))
    check_length(config, train, val, _("give more text") if texts.val else _("give more text, or change val_fraction"))
    batches = Batches(train, config.block_size, config.global_batch, config.seed)
    return Corpus(own, train, val, batches, fingerprint)


def _from_bins(config: Config, prepared: Bins, cache: Path) -> Corpus:
    """What a prepare.py of nanoGPT wrote: tokens already, read where they lie."""
    if prepared.characters is None and config.tokenizer in tokenizer.TRAINED:
        raise InputError(
            _(
                "tokenizer = {tokenizer!r}: {name!r} holds tokens of GPT-2's tokenizer already\n"
                "    → set tokenizer to 'gpt2', or to a folder that holds it",
                tokenizer=config.tokenizer,
                name=config.dataset,
            )
        )
    own = bins.char_tokenizer(prepared.characters) if prepared.characters else tokenizer.load(config.tokenizer)
    train, val = TokenStream([prepared.train]), TokenStream([prepared.val])
    highest = max(int(prepared.train.max()), int(prepared.val.max()))
    if highest >= tokenizer.vocabulary_size(own):
        raise InputError(
            _(
                "dataset = {name!r}: has the token {highest}, and the tokenizer {tokenizer!r} knows {size}\n"
                "    → set tokenizer to the one it was prepared with",
                name=config.dataset,
                highest=highest,
                tokenizer=config.tokenizer,
                size=tokenizer.vocabulary_size(own),
            )
        )
    check_length(config, train, val, _("prepare more text"))
    content = [content_digest(Path(config.dataset) / name, cache) for name in ("train.bin", "val.bin")]
    batches = Batches(train, config.block_size, config.global_batch, config.seed)
    return Corpus(own, train, val, batches, key_of(*content, tokenizer.fingerprint(own)))


def _from_stream(config: Config, texts: Sources, cache: Path) -> Corpus:
    """Only the tokenizer and the evaluation's tokens are made now; the validation split is read, or held out."""
    rows, val_rows = texts.stream or (None, None)
    stream = TextStream(texts.train, rows, config.text_column, config.seed)
    start = (part for part, _place in stream.parts(None, None, None))
    own = _tokenizer(config, texts, reading.sample(start, SAMPLE), cache)
    encode, end, dtype = encoder(own.backend_tokenizer.to_str()), own.eos_token_id, token_dtype(own)

    def tokens_of(part: Part) -> NDArray[Any]:
        return encode_part(part, encode, end).astype(dtype)

    source, n = TokenSource(stream, tokens_of), config.eval_iters * EVAL_BATCH * config.block_size + 1
    advice = _("give more text, or set streaming to false")
    if texts.has_validation:
        val = TokenSource(TextStream(texts.val, val_rows, config.text_column, 0), tokens_of).head(n)
    else:
        val = source.hold_out(n)
        advice = _(
            "give more text, or set streaming to false, or lower eval_iters: it holds out {n:,} tokens", n=len(val)
        )
    train = source.head(n)
    check_length(config, train, val, advice)
    fingerprint = key_of(texts.train_fingerprint, texts.val_fingerprint, tokenizer.fingerprint(own), str(n))
    batches = StreamBatches(source, config.block_size, config.global_batch, config.seed)
    return Corpus(own, train, val, batches, fingerprint)


def _tokenizer(config: Config, texts: Sources, sample: Iterator[str], cache: Path) -> PreTrainedTokenizerFast:
    """The config's tokenizer. One that is trained here is kept, so that only the first start pays for it."""
    if config.tokenizer not in tokenizer.TRAINED:
        return tokenizer.build(config, sample)
    key = key_of(texts.train_fingerprint, config.tokenizer, str(config.vocab_size))
    folder = cache / "hfgpt" / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            temporary = folder.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # left by a start that was interrupted
            tokenizer.build(config, sample).save_pretrained(temporary)
            os.replace(temporary, folder)
    return tokenizer.load(str(folder))


def check_length(config: Config, train: TokenStream, val: TokenStream, advice: str) -> None:
    """Raises InputError unless each split holds one block at least."""
    need = config.block_size + 1
    for name, stream in ((_("training split"), train), (_("validation split"), val)):
        if len(stream) < need:
            if len(stream) > 1:
                advice = _("set block_size to at most {most}, {advice}", most=len(stream) - 1, advice=advice)
            raise InputError(
                _(
                    "block_size = {block_size}: one block takes {need:,} tokens, and the {split} of {name!r} has "
                    "{tokens:,}\n    → {advice}",
                    block_size=config.block_size,
                    need=need,
                    split=name,
                    name=config.dataset,
                    tokens=len(stream),
                    advice=advice,
                )
            )
