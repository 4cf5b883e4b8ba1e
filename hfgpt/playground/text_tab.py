"""The tab for sampling from a model, and for its losses on the user's own text.

In:  a model of the folder, a prompt, sampling options; or a text.
Out: the text as it grows; or the text in the colours of its losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, plural
from hfgpt.base.units import duration
from hfgpt.inference import sampling as sample
from hfgpt.playground.folders import WEIGHTS, find, opening
from hfgpt.playground.pieces import message, tile, tiles
from hfgpt.playground.speech import Labels, slider, spoken
from hfgpt.playground.writer import Piece, Writer


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
        labels.add(gr.HTML, _losses_heading, padding=False)
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

    @spoken
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
        except InputError as error:
            yield gr.skip(), message(str(error), "bad")
        except RuntimeError as error:  # from torch, mostly out of memory
            yield gr.skip(), message(str(error).partition("\n")[0], "bad")

    @spoken
    def show_losses(self, name: str | None, text: str) -> str:
        """Show a text coloured by its losses."""
        try:
            pieces, unknown = self._writer.losses(self._chosen(name), text or "")
        except InputError as error:
            return message(str(error), "bad")
        except RuntimeError as error:
            return message(str(error).partition("\n")[0], "bad")
        return coloured(pieces) + _left(unknown)

    @spoken
    def prompts(self, name: str | None) -> list[Any]:
        """Return a prompt and a text that suit the chosen model, and the line about it."""
        folders = find(self._folder, WEIGHTS)
        start = opening(folders[name]) if name in folders else ""
        return [*([start, start] if start else [gr.skip(), gr.skip()]), self._no_model()["value"]]


def _losses_heading() -> dict[str, Any]:
    title = _("What the model expects: the loss of each next token")
    return {"value": f"<h3>{title}</h3>"}


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


# --------------------------------------------------------------------------------------------- a text coloured by loss


STRONGEST = 6.0  # nats at which the colour is strongest: one in 400


def coloured(pieces: Sequence[Piece]) -> str:
    """Show the text, its mean loss, and the colour scale."""
    losses = [piece.loss for piece in pieces if piece.loss is not None]
    mean = sum(losses) / len(losses)
    figures = tiles(
        [
            tile("mean-loss", _("loss"), f"{mean:.4f}", _("nats a token, of {count:,} tokens", count=len(losses))),
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
    label = _("loss {loss:.2f}, probability {probability}", loss=piece.loss,
             probability=f"{probability:.1%}" if probability >= 0.001 else f"{probability:.1e}")  # fmt: skip
    heat = min(1.0, piece.loss / STRONGEST)
    return f'<span style="--heat:{heat:.2f}" title="{escape(label)}">{shown}</span>'
