"""Text made safe for a terminal, and laid out in its columns.

In:  text, also from outside: names of files, a model's words.
Out: the same text, unable to steer the terminal, as wide as asked.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import TextIO

STEERING = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, separators of lines
DIRECTION = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # turn the text's direction


def visible(text: str) -> str:
    """A text that cannot steer a terminal: but for line feed and tab, control characters are shown as escapes."""
    steering = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in STEERING or c in DIRECTION}
    return "".join(c.encode("unicode_escape").decode() if c in steering else c for c in text) if steering else text


def for_output(text: str) -> str:
    """A model's text as standard output may have it: :func:`visible` on a terminal, unchanged in a pipe or a file."""
    return visible(text) if sys.stdout is not None and sys.stdout.isatty() else text


def say(text: object = "", file: TextIO | None = None) -> None:
    """Print a message, whose names and values may come from outside, :func:`visible`; by default on standard output."""
    print(visible(str(text)), file=file, flush=True)


def json_text(value: object) -> str:
    """JSON as a terminal may have it: what steers it is written as JSON's own escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    steering = {c for c in set(text) - {"\n"} if unicodedata.category(c) in STEERING or c in DIRECTION}
    return "".join(f"\\u{ord(c):04x}" if c in steering else c for c in text) if steering else text


def width(text: str) -> int:
    """The columns that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def wrap(text: str, columns: int) -> list[str]:
    """The lines of a paragraph, none wider than `columns`, cut at spaces and between Chinese characters."""
    lines, line = list[str](), ""
    for piece in _pieces(" ".join(text.split())):
        if line and width(line + piece.rstrip()) > columns:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    return [*lines, line.rstrip()] if line.strip() else lines


CLOSING = frozenset("，。、；：？！）》」』”’…")  # may not begin a line


def _pieces(text: str) -> list[str]:
    """A text cut wherever a line may end."""
    pieces = [""]
    for before, character in zip(" " + text, text, strict=False):
        wide = unicodedata.east_asian_width(character) in "WF" or unicodedata.east_asian_width(before) in "WF"
        if before == " " or (wide and character not in CLOSING and before not in "（《「『“‘" and character != " "):
            pieces.append("")
        pieces[-1] += character
    return [piece for piece in pieces if piece]


def pad(text: str, columns: int) -> str:
    """A text filled up with spaces to this width."""
    return text + " " * (columns - width(text))
