"""Text generation with a trained model, streamed piece by piece.

In:  an exported run folder (or a GPT2LMHeadModel and its tokenizer), a prompt, and sampling settings.
Out: an iterator over pieces of text of whole characters; joined, they are the continuation.

Within the block, the tokens are those that Transformers' ``model.generate`` would sample with the same seed, and the
logits processors are Transformers' own. This loop does what ``generate`` does not. It continues past the block. It uses
its own generators, so that sampling during training does not affect the run. And it takes a fraction of the time
(hfgpt/inference/decoder.py). Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfgpt.base.errors import InputError
from hfgpt.base.language import N_
from hfgpt.data.tokenizer import token_ids, vocabulary_size
from hfgpt.data.tokenizer_file import panics_as_messages
from hfgpt.inference.exported import start_id

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

# A character has at most four bytes; this many tokens without a complete character are not UTF-8.
MAX_HELD_TOKENS = 16

# Below this temperature the most likely token has all of the probability, and scores overflow float32.
COLDEST = 1e-9


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, with the defaults of nanoGPT's sample.py.

    Raises:
        InputError: a value is out of range.
    """

    max_new_tokens: int = 200  # tokens; fewer if the model ends the text
    temperature: float = 0.8  # 0: always the most likely token; 1: the model's own probabilities; above: more random
    top_k: int | None = 200  # only the k most likely tokens; None: all
    top_p: float | None = None  # only the most likely tokens with this total probability; None: all
    seed: int = 1337

    def __post_init__(self) -> None:
        rules = (
            (self.max_new_tokens >= 1, "max_new_tokens", N_("{key} = {value!r}: must be at least 1 (tokens)")),
            (
                0 <= self.temperature < math.inf,
                "temperature",
                N_("{key} = {value!r}: must be 0 (always the most likely token) or more"),
            ),
            (self.top_k is None or self.top_k >= 1, "top_k", N_("{key} = {value!r}: must be at least 1 (tokens)")),
            (
                self.top_p is None or 0 < self.top_p <= 1,
                "top_p",
                N_("{key} = {value!r}: must be more than 0 and at most 1 (probability)"),
            ),
            (0 <= self.seed < 2**63, "seed", N_("{key} = {value!r}: must be at least 0 and less than 2^63")),
        )
        for valid, key, rule in rules:
            if not valid:
                raise InputError(rule, key=key, value=getattr(self, key))


# ------------------------------------------------------------------------------------------------------- sampling


def generate(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling | None = None
) -> Iterator[str]:
    """Yield the continuation of `prompt`, without the prompt, as pieces of text while they are sampled.

    Past the block the context slides: its last half is reread and generation continues from there, so the cost per
    token does not grow with the text. Ends after ``max_new_tokens``, or when the model ends the text. The model's mode
    is irrelevant and stays unchanged; torch's global random state is neither read nor changed.

    Raises:
        InputError: the weights are not finite, so nothing can be sampled.
    """
    for pieces in generate_many(model, tokenizer, prompt, sampling, 1):
        yield pieces[0]


def generate_many(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling | None = None,
    samples: int = 1,
) -> Iterator[list[str]]:
    """Yield continuations of one prompt, computed in parallel: each time, a piece of text of each ("" if not ready).

    Each has the next seed and equals, up to rounding, what :func:`generate` yields with that seed.
    """
    sampling = sampling or Sampling()
    ids = token_ids(tokenizer, prompt) or [start_id(tokenizer)]
    texts = [PieceDecoder(tokenizer) for _ in range(samples)]
    for tokens in draw_many(model, ids, vocabulary_size(tokenizer), tokenizer.eos_token_id, sampling, samples):
        pieces = ["" if token is None else text.add(token) for text, token in zip(texts, tokens, strict=True)]
        if any(pieces):
            yield pieces
    if any(rest := [text.end() for text in texts]):
        yield rest


def draw_tokens(
    model: GPT2LMHeadModel, ids: list[int], vocabulary: int, end: int | None, sampling: Sampling
) -> Iterator[int]:
    """Yield token ids after `ids` (at least one), all below `vocabulary`, until `end` or ``max_new_tokens``."""
    for (token,) in draw_many(model, ids, vocabulary, end, sampling, 1):
        if token is not None:
            yield token


def draw_many(
    model: GPT2LMHeadModel, ids: list[int], vocabulary: int, end: int | None, sampling: Sampling, samples: int
) -> Iterator[list[int | None]]:
    """Yield one token of each sample at a time; None for those that have ended. Sample i uses ``seed + i``."""
    import torch

    from hfgpt.inference.decoder import Decoder

    block, device = model.config.n_positions, model.device
    generators = [torch.Generator(device).manual_seed(sampling.seed + index) for index in range(samples)]
    choose, decoder = _chooser(sampling, generators, vocabulary), Decoder(model, samples)
    contexts = [list(ids[-block:]) for _ in range(samples)]
    fresh = contexts
    going = [True] * samples
    for _step in range(sampling.max_new_tokens):
        tokens = choose(decoder(torch.tensor(fresh, device=device))[:, :vocabulary].float())
        going = [writes and token != end for writes, token in zip(going, tokens, strict=True)]
        if not any(going):
            return
        yield [token if writes else None for writes, token in zip(going, tokens, strict=True)]
        for context, token in zip(contexts, tokens, strict=True):
            context.append(token)
        fresh = [[token] for token in tokens]
        if decoder.full:
            contexts = [context[-max(1, block // 2) :] for context in contexts]
            decoder.forget()
            fresh = contexts


def _chooser(sampling: Sampling, generators: list[Any], vocabulary: int) -> Callable[[Tensor], list[int]]:
    """Return a function from (samples, vocabulary) logits of the last position to one token id each.

    A text does not depend on the batch, since each row has its own generator. The method is torch.multinomial's, which
    divides the probabilities by exponentially distributed numbers and takes the largest; only those numbers are drawn
    row by row.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature < COLDEST:
        return _largest
    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None and sampling.top_k < vocabulary:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))

    def draw(logits: Tensor) -> list[int]:
        for warp in warpers:
            logits = warp(None, logits)
        waits = torch.empty_like(logits)
        for row, own in zip(waits, generators, strict=True):
            row.exponential_(generator=own)
        return _largest(logits.softmax(-1).div_(waits))

    return draw


def _largest(scores: Tensor) -> list[int]:
    """Return the token of each row's largest score."""
    largest, tokens = scores.max(-1)
    if any(map(math.isnan, largest.tolist())):
        raise InputError(
            "the model's logits are NaN: training has diverged → sample the model of an earlier evaluation"
        )
    chosen: list[int] = tokens.tolist()
    return chosen


class PieceDecoder:
    """Decodes a stream of ids into pieces of text. A character spread over several tokens is held until complete.

    Each token is decoded together with the piece before it, since some tokenizers write a word differently at the start
    of a text. Only these few tokens are decoded each time, so the cost per token does not grow with the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """Return the text that this token completes; "" if it is held."""
        self._pending.append(token)
        whole = self._text(self._before + self._pending)
        if whole.endswith("\ufffd") and len(self._pending) < MAX_HELD_TOKENS:
            return ""
        piece = whole[len(self._text(self._before)) :]
        self._before, self._pending = self._pending, []
        return piece

    def end(self) -> str:
        """Return what is still held at the end of the stream."""
        return self._text(self._before + self._pending)[len(self._text(self._before)) :]

    def _text(self, ids: list[int]) -> str:
        with panics_as_messages():  # a decoder may have its own patterns
            return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
