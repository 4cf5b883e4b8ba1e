"""Sampling from a model of the folder, and its losses on the user's own text.

In:  a run folder, a prompt or a text.
Out: the text as it grows, or the loss of each next token. torch is loaded with the first of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt.base import threads
from hfgpt.base.errors import InputError
from hfgpt.inference import exported
from hfgpt.inference import sampling as sample
from hfgpt.playground.folders import WEIGHTS

SHOWN_EVERY = 0.05  # seconds between two updates of a text in the browser

MOST_TOKENS = 2000  # of the user's own text


@dataclass(frozen=True)
class Piece:
    """A piece of a text, and the loss of its tokens in nats; None for the first token."""

    text: str
    loss: float | None


class Writer:
    """Samples from a folder's models; the last one stays loaded until it is trained further or another is chosen."""

    def __init__(self) -> None:
        self._key: tuple[Path, int] | None = None
        self._loaded: Any = None
        self._lock = threading.Lock()

    def _load(self, folder: Path) -> Any:
        key = (folder, (exported.check_folder(folder) / WEIGHTS).stat().st_mtime_ns)
        with self._lock:
            if key != self._key:
                self._key, self._loaded = None, None  # free the old model's memory first
                threads.configure()
                self._key, self._loaded = key, exported.load_folder(folder)
            return self._loaded

    def write(self, folder: Path, prompt: str, how: sample.Sampling) -> Iterator[tuple[str, str, int]]:
        """Yield the text so far, the prompt characters that the model does not know, and the count of sampled tokens.

        Raises:
            InputError: the folder does not hold a usable model.
        """
        model, tokenizer = self._load(folder)
        unknown, shown = exported.left_out(tokenizer, prompt), 0.0
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [exported.start_id(tokenizer)]
        decoder, text, count = sample.PieceDecoder(tokenizer), prompt, 0
        yield text, unknown, count
        for token in sample.draw_tokens(model, ids, len(tokenizer), tokenizer.eos_token_id, how):
            text, count = text + decoder.add(token), count + 1
            if time.monotonic() - shown >= SHOWN_EVERY:
                shown = time.monotonic()
                yield text, unknown, count
        yield text + decoder.end(), unknown, count

    def losses(self, folder: Path, text: str) -> tuple[list[Piece], str]:
        """Return the loss of each next token of a text, and the characters that the model does not know.

        Beyond the block size, each token is predicted from at least half a block.

        Raises:
            InputError: the folder does not hold a usable model, or the text is empty or too long.
        """
        model, tokenizer = self._load(folder)
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = coded["input_ids"], coded["offset_mapping"]
        if len(ids) < 2:
            raise InputError("text: must have at least two tokens, of which the second is predicted")
        if len(ids) > MOST_TOKENS:
            raise InputError("text: has {count:,} tokens → shorten it to {most:,}", count=len(ids), most=MOST_TOKENS)
        pieces: list[Piece] = []
        begin = 0
        for (_start, end), loss in zip(spans, [None, *_next_losses(model, ids)], strict=True):
            piece = text[begin:end]
            if piece or not pieces:
                pieces.append(Piece(piece, loss))
            else:  # a token inside a character, which was shown with its first byte
                last = pieces[-1]
                pieces[-1] = Piece(last.text, loss if last.loss is None else last.loss + (loss or 0.0))
            begin = max(begin, end)
        return pieces, exported.left_out(tokenizer, text)


def _next_losses(model: Any, ids: list[int]) -> list[float]:
    """Return the loss of each token but the first."""
    import torch

    block = model.config.n_positions
    losses: list[float] = []
    while len(losses) < len(ids) - 1:
        begin = max(0, len(losses) - block // 2) if len(ids) > block else 0
        window = torch.tensor([ids[begin : begin + block]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=window[:, :-1]).logits.float()[0]
        every = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
        losses += every[len(losses) - begin :]
    return losses
