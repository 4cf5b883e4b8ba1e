"""A text with the loss of each next token as its colour.

In:  pieces of a text with their losses.
Out: HTML: from pale (expected) to strong (a surprise), with the loss and the probability of each to point at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from hfgpt.base.language import _
from hfgpt.playground.pieces import tile, tiles
from hfgpt.playground.writer import Piece

STRONGEST = 6.0  # nats at which the colour is strongest: one in 400


def coloured(pieces: Sequence[Piece]) -> str:
    """The text, its mean loss, and the scale of its colours."""
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
    told = _("loss {loss:.2f}, probability {probability}", loss=piece.loss,
             probability=f"{probability:.1%}" if probability >= 0.001 else f"{probability:.1e}")  # fmt: skip
    heat = min(1.0, piece.loss / STRONGEST)
    return f'<span style="--heat:{heat:.2f}" title="{escape(told)}">{shown}</span>'
