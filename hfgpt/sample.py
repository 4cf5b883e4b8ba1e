"""Text from a trained model, piece by piece as it is made.

In:  an exported run folder (or a GPT2LMHeadModel and its tokenizer), a prompt, and how to draw.
Out: an iterator over pieces of text, each whole characters; joined, they are the continuation.

Within the block the tokens are those that Transformers' ``model.generate`` would draw with the same seed, and the
filters on the logits are its own. The loop is here for what ``generate`` does not do: it goes on past the block, it
draws from generators of its own, so that a sample taken in the middle of training changes nothing in the run, and it
takes a fraction of the time (hfgpt/decoder.py).

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgpt.config import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

# A character has at most four bytes; after so many tokens without the end of one, they are no UTF-8.
MAX_HELD_TOKENS = 16


@dataclass(frozen=True)
class Sampling:
    """How to draw. The defaults are those of nanoGPT's sample.py.

    Raises:
        InputError: a value out of range, as soon as it is made.
    """

    max_new_tokens: int = 200  # tokens; fewer where the model ends the text itself
    temperature: float = 0.8  # 0: always the most likely token; 1: as the model says; above: more random
    top_k: int | None = 200  # only the k most likely tokens; None: all
    top_p: float | None = None  # only the most likely tokens that together have this probability; None: all
    seed: int = 1337

    def __post_init__(self) -> None:
        rules = (
            (self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1 (tokens)"),
            (0 <= self.temperature < math.inf, "temperature", "must be 0 (always the most likely token) or more"),
            (self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1 (tokens)"),
            (self.top_p is None or 0 < self.top_p <= 1, "top_p", "must be more than 0 and at most 1 (probability)"),
            (0 <= self.seed < 2**63, "seed", "must be at least 0 and less than 2^63"),
        )
        for valid, key, rule in rules:
            if not valid:
                raise InputError(f"{key} = {getattr(self, key)!r}: {rule}")


# ------------------------------------------------------------------------------------------------------- the folder


def check_folder(folder: str | Path) -> Path:
    """The folder, if it holds an exported GPT-2 with its tokenizer, as far as can be told without loading it.

    Raises:
        InputError: it does not; says what is missing and where it comes from.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "no such folder"
        on_the_hub = len(path.parts) == 2 and not path.parent.exists()
        hint = f"; to get it from the Hub: python scripts/pull.py {path} DIR" if on_the_hub else ""
        raise InputError(f"{str(folder)!r}: {what}{hint}")
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (path / name).is_file()]
    if not (path / "model.safetensors").is_file() and not (path / "model.safetensors.index.json").is_file():
        missing.append("model.safetensors")
    if missing:
        if (path / "recipe.yaml").is_file() or any(path.glob("checkpoint-*")):
            why = "the run has exported no model yet: it does so at its first evaluation (eval_interval)"
        else:
            why = "this is no run folder"
        raise InputError(f"{str(folder)!r}: holds no {' and no '.join(missing)}; {why}")
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path / 'config.json'}: is not the description of a model") from None
    if kind != "gpt2":
        raise InputError(f"{str(folder)!r}: is a {kind} model; hfgpt reads GPT-2 models")
    return path


def load_folder(folder: str | Path, device: str = "auto") -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """The model (float32, in evaluation mode, on `device`) and the tokenizer of an exported folder.

    Args:
        folder: see :func:`check_folder`.
        device: 'auto' takes the accelerator if there is one; else a name that torch knows.

    Raises:
        InputError: the folder's files or the device cannot be used.
    """
    path = check_folder(folder)
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = GPT2LMHeadModel.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # whatever the libraries raise for a damaged folder
        raise InputError(f"{str(folder)!r}: cannot be loaded: {_first_line(error)}") from None
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {device!r}: cannot be used here: {_first_line(error)}") from None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without Transformers' bar for loading weights, which is over before one could read it."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def generation_config(config: GPT2Config, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """What ``generation_config.json`` must say, so that Transformers' pipeline works with its own defaults.

    ``max_length`` is the block: the pipeline would otherwise add 256 tokens to any prompt and run past the positions
    of a smaller model. An empty prompt starts as in :func:`start_id`. Ids without a token (a padded vocabulary) are
    never drawn.
    """
    from transformers import GenerationConfig

    eos = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    beyond = list(range(len(tokenizer), config.vocab_size))
    return GenerationConfig(
        max_length=config.n_positions,
        bos_token_id=start_id(tokenizer),
        eos_token_id=eos,
        pad_token_id=padding,
        suppress_tokens=beyond or None,
    )


def left_out(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The characters of `text` that the tokenizer has no tokens for, each once; most tokenizers have all."""
    known = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False)
    return "".join(sorted(set(text) - set(known)))


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that an empty prompt begins with: of a new document, or a line feed where there is none."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, *newline):
        if token is not None:
            return int(token)
    return 0


# ------------------------------------------------------------------------------------------------------- sampling


def generate(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling | None = None
) -> Iterator[str]:
    """The continuation of `prompt` as pieces of text, without the prompt, as they are drawn.

    Past the block the context slides: its last half is read anew and generation goes on from there, so a token costs
    the same however long the text gets. Ends after ``max_new_tokens``, or where the model ends the text. The model's
    mode does not matter and does not change; torch's global random state is neither read nor changed.

    Raises:
        InputError: the weights are not finite, so there is nothing to draw from.
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
    """Continuations of one prompt, computed side by side: at a time, a piece of text ("" for none yet) of each.

    Each has the next seed and is, but for rounding, what :func:`generate` writes with that seed.
    """
    sampling = sampling or Sampling()
    ids = tokenizer.encode(prompt, add_special_tokens=False) or [start_id(tokenizer)]
    texts = [PieceDecoder(tokenizer) for _ in range(samples)]
    for tokens in draw_many(model, ids, len(tokenizer), tokenizer.eos_token_id, sampling, samples):
        pieces = ["" if token is None else text.add(token) for text, token in zip(texts, tokens, strict=True)]
        if any(pieces):
            yield pieces
    if any(rest := [text.end() for text in texts]):
        yield rest


def draw_tokens(
    model: GPT2LMHeadModel, ids: list[int], vocabulary: int, end: int | None, sampling: Sampling
) -> Iterator[int]:
    """Token ids after `ids` (at least one), all below `vocabulary`, until `end` or ``max_new_tokens``."""
    for (token,) in draw_many(model, ids, vocabulary, end, sampling, 1):
        if token is not None:
            yield token


def draw_many(
    model: GPT2LMHeadModel, ids: list[int], vocabulary: int, end: int | None, sampling: Sampling, samples: int
) -> Iterator[list[int | None]]:
    """A token of each sample at a time; None for those that have ended. Sample i is drawn with ``seed + i``."""
    import torch

    from hfgpt.decoder import Decoder

    block, device = model.config.n_positions, model.device
    generators = [torch.Generator(device).manual_seed(sampling.seed + index) for index in range(samples)]
    choose, decoder = _chooser(sampling, generators, vocabulary), Decoder(model, samples)
    contexts = [list(ids[-block:]) for _ in range(samples)]
    fresh = contexts
    going = [True] * samples
    for _ in range(sampling.max_new_tokens):
        tokens = choose(decoder(torch.tensor(fresh, device=device))[:, :vocabulary].float())
        going = [on and token != end for on, token in zip(going, tokens, strict=True)]
        if not any(going):
            return
        yield [token if on else None for on, token in zip(going, tokens, strict=True)]
        for context, token in zip(contexts, tokens, strict=True):
            context.append(token)
        fresh = [[token] for token in tokens]
        if decoder.full:
            contexts = [context[-max(1, block // 2) :] for context in contexts]
            decoder.forget()
            fresh = contexts


def _chooser(sampling: Sampling, generators: list[Any], vocabulary: int) -> Callable[[Tensor], list[int]]:
    """A function from (samples, vocabulary) logits of the last position to a token id each.

    A text is the same alone and in company, since each row has its own generator. The draws are torch.multinomial's,
    which divides the probabilities by exponentially distributed numbers and takes the largest; only those numbers are
    drawn row by row.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
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
    """The token of each row's largest score."""
    largest, tokens = scores.max(-1)
    if any(map(math.isnan, largest.tolist())):
        raise InputError("the model says NaN of every token: its training has diverged → sample an earlier checkpoint")
    return tokens.tolist()


class PieceDecoder:
    """Pieces of text for a stream of ids. A character that is spread over several tokens is held until it is whole.

    Each token is decoded after the piece before it, since some tokenizers write a word differently at the start of a
    text; only these few are decoded each time, so a long text costs no more a token than a short one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token makes whole; "" if it is held."""
        self._pending.append(token)
        whole = self._text(self._before + self._pending)
        if whole.endswith("\ufffd") and len(self._pending) < MAX_HELD_TOKENS:
            return ""
        piece = whole[len(self._text(self._before)) :]
        self._before, self._pending = self._pending, []
        return piece

    def end(self) -> str:
        """What is held, at the end of the stream."""
        return self._text(self._before + self._pending)[len(self._text(self._before)) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
