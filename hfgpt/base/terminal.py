"""Text made safe for a terminal, and laid out in columns.

In:  text, including untrusted text: file names, a model's output.
Out: the same text without terminal control sequences, in the given width.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from typing import TextIO

from hfgpt.base.language import _

STEERING = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line separators
DIRECTION = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # bidirectional controls


def visible(text: str) -> str:
    """Return the text with control characters, except line feed and tab, shown as escapes."""
    steering = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in STEERING or c in DIRECTION}
    return "".join(c.encode("unicode_escape").decode() if c in steering else c for c in text) if steering else text


def for_output(text: str) -> str:
    """Return a model's text for standard output: escaped by :func:`visible` on a terminal, else unchanged."""
    return visible(text) if sys.stdout is not None and sys.stdout.isatty() else text


def say(text: object = "", file: TextIO | None = None) -> None:
    """Print a message that may hold untrusted text, escaped by :func:`visible`; defaults to standard output."""
    print(visible(str(text)), file=file, flush=True)


def say_reading(repository: str) -> None:
    """Say, from one process of a launch, that a repository is read from the Hub; it may take minutes."""
    if os.environ.get("RANK", "0") == "0":
        say(_("Reading {name} from the Hugging Face Hub, or from this machine's cache …", name=repository), sys.stderr)


def json_text(value: object) -> str:
    """Return JSON that is safe on a terminal: control characters are written as JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    steering = {c for c in set(text) - {"\n"} if unicodedata.category(c) in STEERING or c in DIRECTION}
    return "".join(f"\\u{ord(c):04x}" if c in steering else c for c in text) if steering else text


def width(text: str) -> int:
    """Return how many columns a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def wrap(text: str, columns: int) -> list[str]:
    """Wrap a paragraph to at most `columns`, breaking at spaces and between Chinese characters."""
    lines, line = list[str](), ""
    for piece in _pieces(" ".join(text.split())):
        if line and width(line + piece.rstrip()) > columns:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    return [*lines, line.rstrip()] if line.strip() else lines


CLOSING = frozenset("，。、；：？！）》」』”’…")  # must not start a line


def _pieces(text: str) -> list[str]:
    """Split a text wherever a line may break."""
    pieces = [""]
    for before, character in zip(" " + text, text, strict=False):
        wide = unicodedata.east_asian_width(character) in "WF" or unicodedata.east_asian_width(before) in "WF"
        if before == " " or (wide and character not in CLOSING and before not in "（《「『“‘" and character != " "):
            pieces.append("")
        pieces[-1] += character
    return [piece for piece in pieces if piece]


def pad(text: str, columns: int) -> str:
    """Pad a text with spaces to this width."""
    return text + " " * (columns - width(text))
