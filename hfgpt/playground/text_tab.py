"""The tab for sampling from a model, and for its losses on the user's own text.

In:  a model of the folder, a prompt, sampling options; or a text.
Out: the text as it grows; or the text in the colours of its losses. torch is loaded with the first of them.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from hfgpt.base import threads
from hfgpt.base.errors import InputError, first_line
from hfgpt.base.language import N_, _, plural
from hfgpt.base.units import duration
from hfgpt.data.tokenizer import vocabulary_size
from hfgpt.inference import exported
from hfgpt.inference import sampling as sample
from hfgpt.playground.pieces import Labels, in_language, message, slider, tile, tiles
from hfgpt.playground.trainer import WEIGHTS, find, opening

SHOWN_EVERY = 0.05  # seconds between two updates of a text in the browser
MOST_TOKENS = 2000  # of the user's own text


@dataclass(frozen=True)
class Piece:
    """A piece of a text, and the summed loss of its predicted tokens in nats; None for the first token alone."""

    text: str
    loss: float | None
    tokens: int  # that were predicted: several if they share a character, 0 for the first token alone


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
        for token in sample.draw_tokens(model, ids, vocabulary_size(tokenizer), tokenizer.eos_token_id, how):
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
            tokens = 0 if loss is None else 1
            if piece or not pieces:
                pieces.append(Piece(piece, loss, tokens))
            else:  # a token inside a character, which was shown with its first byte
                last = pieces[-1]
                pieces[-1] = Piece(last.text, (last.loss or 0.0) + (loss or 0.0), last.tokens + tokens)
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


class TextTab:
    """The tab's components and their handlers."""

    def __init__(self, labels: Labels, folder: Path) -> None:
        self._folder, self._writer = folder, Writer()
        models = find(folder, WEIGHTS)
        first = next(iter(models), None)
        prompt = opening(models[first]) if first else ""
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                self.model = labels.add(
                    gr.Dropdown,
                    lambda: {"label": _("Run")},
                    choices=list(models),
                    value=first,
                    interactive=True,
                    elem_id="model",
                )
                self.prompt = labels.add(
                    gr.Textbox,
                    lambda: {"label": _("Prompt"), "info": _("The text to continue.")},
                    prompt,
                    lines=3,
                    elem_id="prompt",
                )
                self.how = self._add_sampling(labels)
            with gr.Column(scale=6, min_width=300):
                self._add_text(labels)
        heading = N_("What the model expects: the loss of each next token")
        labels.add(gr.HTML, lambda: {"value": f"<h3>{_(heading)}</h3>"}, padding=False)
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                self.own = labels.add(
                    gr.Textbox,
                    lambda: {"label": _("A text of your own"), "info": _("At most 2,000 tokens.")},
                    prompt,
                    lines=6,
                    max_lines=12,
                    elem_id="own",
                )
                self.judge = labels.add(gr.Button, lambda: {"value": _("Show the losses")}, elem_id="judge")
            with gr.Column(scale=6, min_width=300):
                self.losses = gr.HTML(elem_id="losses", padding=False)

    def _add_sampling(self, labels: Labels) -> list[Any]:
        how, plain = sample.Sampling(), {"buttons": [], "interactive": True}
        return [
            labels.add(
                slider,
                lambda: {"label": _("temperature"), "info": _("0: always the most likely token; higher: freer.")},
                0, 2, how.temperature, step=0.05, elem_id="temperature", **plain,
            ),
            labels.add(
                gr.Number,
                lambda: {"label": _("top_k (tokens)"), "info": _("Choose among the k most likely tokens; empty: all.")},
                how.top_k, elem_id="top_k",
            ),
            labels.add(
                slider,
                lambda: {"label": _("max_new_tokens (tokens)"), "info": _("Tokens to write.")},
                1, 2000, how.max_new_tokens, step=1, elem_id="max_new_tokens", **plain,
            ),
            labels.add(
                gr.Number,
                lambda: {"label": _("seed"), "info": _("The same seed writes the same text.")},
                how.seed, elem_id="seed",
            ),
        ]  # fmt: skip

    def _add_text(self, labels: Labels) -> None:
        with gr.Row():
            self.write = labels.add(
                gr.Button, lambda: {"value": _("Write")}, variant="primary", min_width=100, elem_id="write"
            )
            self.stop = labels.add(gr.Button, lambda: {"value": _("Stop")}, min_width=100, elem_id="stop")
        self.status = labels.add(gr.HTML, self._no_model, elem_id="status", padding=False)
        self.written = labels.add(
            gr.Textbox,
            lambda: {"label": _("Text")},
            lines=18,
            max_lines=18,
            interactive=False,
            buttons=["copy"],
            elem_id="written",
        )

    def _no_model(self) -> dict[str, str]:
        if find(self._folder, WEIGHTS):
            return {"value": ""}
        return {"value": message(_("No model yet: it appears here after a run's first evaluation."))}

    def _chosen(self, name: str | None) -> Path:
        folders = find(self._folder, WEIGHTS)
        if name not in folders:
            raise InputError(
                "run: choose one in {folder}; the list holds those that have exported a model",
                folder=f"{self._folder}/",
            )
        return folders[name]

    @in_language
    def continue_text(
        self, name: str | None, prompt: str, temperature: Any, top_k: Any, tokens: Any, seed: Any
    ) -> Iterator[tuple[Any, str]]:
        """Yield the text as it grows, and a line about it."""
        try:
            folder = self._chosen(name)
            how = sample.Sampling(
                max_new_tokens=_whole("max_new_tokens", tokens),
                temperature=math.nan if temperature is None else float(temperature),
                top_k=None if top_k in (None, "") else _whole("top_k", top_k),
                seed=_whole("seed", seed),
            )
            yield gr.skip(), message(_("Loading {run} …", run=name))
            began = time.monotonic()
            for text, unknown, count in self._writer.write(folder, prompt or "", how):
                elapsed = duration(time.monotonic() - began)
                yield (
                    text,
                    message(plural("{n} token in {time}.", "{n} tokens in {time}.", count, time=elapsed))
                    + _left(unknown),
                )
        except (InputError, RuntimeError) as error:
            yield gr.skip(), _refusal(error)

    @in_language
    def show_losses(self, name: str | None, text: str) -> str:
        """Show a text coloured by its losses."""
        try:
            pieces, unknown = self._writer.losses(self._chosen(name), text or "")
        except (InputError, RuntimeError) as error:
            return _refusal(error)
        return coloured(pieces) + _left(unknown)

    @in_language
    def prompts(self, name: str | None) -> list[Any]:
        """Return a prompt and a text that suit the chosen model, and the line about it."""
        folders = find(self._folder, WEIGHTS)
        start = opening(folders[name]) if name in folders else ""
        return [*([start, start] if start else [gr.skip(), gr.skip()]), self._no_model()["value"]]


def _refusal(error: Exception) -> str:
    """Say why nothing is shown; of torch's messages, mostly out of memory, the first line."""
    return message(str(error) if isinstance(error, InputError) else first_line(error), "bad")


def _left(unknown: str) -> str:
    if not unknown:
        return ""
    text = _("The model has no tokens for {characters}; these characters are left out.", characters=repr(unknown))
    return message(text, "bad")


def _whole(key: str, value: Any) -> int:
    """Read an integer from the browser. Raises: InputError: it is not one."""
    try:
        if (number := int(value)) == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError("{key} = {value!r}: must be a whole number", key=key, value=value)


STRONGEST = 6.0  # nats at which the colour is strongest: one in 400


def coloured(pieces: Sequence[Piece]) -> str:
    """Show the text, its mean loss, and the colour scale."""
    count = sum(piece.tokens for piece in pieces)
    mean = sum(piece.loss or 0.0 for piece in pieces) / count
    figures = tiles(
        [
            tile("mean-loss", _("loss"), f"{mean:.4f}", _("nats a token, of {count:,} tokens", count=count)),
            tile("perplexity", _("perplexity"), f"{math.exp(min(mean, 700)):,.4g}", _("as if choosing among so many")),
        ]
    )
    scale = "".join(f'<span style="--heat:{n / STRONGEST:.2f}">{n:g}</span>' for n in (0, 1, 2, 4, 6))
    text = "".join(_piece(piece) for piece in pieces)
    unit = escape(_("nats:"))
    return f'{figures}<p class="heat scale">{unit} {scale}</p><div class="heat text">{text}</div>'


def _piece(piece: Piece) -> str:
    shown = escape(piece.text).replace("\n", "↵\n")
    if piece.loss is None:
        return f'<span class="first">{shown}</span>'
    probability = math.exp(-piece.loss)
    figures = {
        "loss": piece.loss,
        "probability": f"{probability:.1%}" if probability >= 0.001 else f"{probability:.1e}",
    }
    if piece.tokens > 1:
        label = _("loss {loss:.2f} of {tokens} tokens, probability {probability}", tokens=piece.tokens, **figures)
    else:
        label = _("loss {loss:.2f}, probability {probability}", **figures)
    heat = min(1.0, piece.loss / piece.tokens / STRONGEST)
    return f'<span style="--heat:{heat:.2f}" title="{escape(label)}">{shown}</span>'
