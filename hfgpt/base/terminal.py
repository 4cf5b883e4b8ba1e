"""Text made safe for a terminal, and laid out in columns.

In:  text, including untrusted text: file names, a model's output.
Out: the same text without terminal control sequences, in the given width.
"""

import argparse
import codecs
import json
import os
import re
import sys
import unicodedata
from itertools import pairwise
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
    """Return JSON for standard output, safe on a terminal: control characters are written as JSON escapes.

    So are all characters beyond ASCII where the output is not in UTF-8: printing would replace what its encoding lacks.
    """
    in_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    text = json.dumps(value, indent=2, ensure_ascii=not in_utf8)
    steering = {c for c in set(text) - {"\n"} if unicodedata.category(c) in STEERING or c in DIRECTION}
    return "".join(f"\\u{ord(c):04x}" if c in steering else c for c in text) if steering else text


def width(text: str) -> int:
    """Return how many columns a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def wrap(text: str, columns: int) -> list[str]:
    """Wrap a paragraph to at most `columns`, see :func:`breaks`."""
    text = " ".join(text.split())
    places = [0, *breaks(text, columns), len(text)]
    return [text[start:end].strip() for start, end in pairwise(places) if text[start:end].strip()]


def breaks(line: str, columns: int, *, fold: bool = False) -> list[int]:
    """Return where to break a line so that its parts fill at most `columns`, not counting spaces at their ends.

    It breaks at spaces and between Chinese characters, but not before closing punctuation, between a number and its
    unit, or within a command. What is longer than a line stays whole, or with `fold` breaks where the line ends.
    """
    places, start, end = list[int](), 0, 0
    for piece in _pieces(line):
        if end > start and width(line[start:end] + piece.rstrip()) > columns:
            places.append(start := end)
        end += len(piece)
        while fold and width(line[start:end].rstrip()) > columns:
            fitting = next(n for n in range(end - start, 0, -1) if n == 1 or width(line[start : start + n]) <= columns)
            places.append(start := start + fitting)
    return places


CLOSING = frozenset("，。、；：？！）》」』】”’…%％°·")  # must not start a line
OPENING = frozenset("（《「『【“‘")  # must not end one
# What is never broken: a number and its unit; a command with its options, files and values.
WHOLE = (
    r"[\d.,]+ ?(?:毫秒|分钟|小时|[\u4e00-\u9fff])|[\d.,]+ (?:[KMG]i?B|ms|s|d|W|kWh)\b|\d+ x \d[\d,]*"
    r"|(?:(?:hfgpt|git) \w+|pip install|accelerate launch|python)(?: [!-~]*[-/=.\[][!-~]*)+"
)


def _pieces(text: str) -> list[str]:
    """Split a text wherever a line may break."""
    whole = {at for match in re.finditer(WHOLE, text) for at in range(match.start() + 1, match.end())}
    pieces = [""]
    for at, (before, character) in enumerate(zip(" " + text, text, strict=False)):
        wide = unicodedata.east_asian_width(character) in "WF" or unicodedata.east_asian_width(before) in "WF"
        may = before == " " or (wide and before not in OPENING)
        if may and character not in CLOSING and character != " " and at not in whole:
            pieces.append("")
        pieces[-1] += character
    return [piece for piece in pieces if piece]


def pad(text: str, columns: int) -> str:
    """Pad a text with spaces to this width."""
    return text + " " * (columns - width(text))


class Layout(argparse.HelpFormatter):
    """argparse's layout, with Chinese characters counted as two columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def format_help(self) -> str:
        """Return the whole text; Chinese headings end with a Chinese colon."""
        return re.sub(r"(?<=[\u4e00-\u9fff]):$", "：", super().format_help(), flags=re.MULTILINE)

    def add_argument(self, action: argparse.Action) -> None:
        """Add an action, and widen the column of names to fit it."""
        super().add_argument(action)
        if action.help is not argparse.SUPPRESS:
            taken = width(self._format_action_invocation(action)) + self._current_indent
            self._action_max_length = max(self._action_max_length, taken)

    def _split_lines(self, text: str, columns: int) -> list[str]:
        return wrap(text, columns)

    def _fill_text(self, text: str, columns: int, indent: str) -> str:
        """Wrap paragraphs; those with several lines or a leading space stay unchanged."""
        blocks = [block if "\n" in block or block[:1] == " " else wrap(block, columns) for block in text.split("\n\n")]
        return "\n\n".join(block if isinstance(block, str) else "\n".join(block) for block in blocks)

    def _format_action(self, action: argparse.Action) -> str:
        """Format an action, without the extra space that argparse adds for each wide character in its name."""
        text, name = super()._format_action(action), self._format_action_invocation(action)
        return text.replace(name + " " * (width(name) - len(name)), name, 1)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """Return a value's name without the brackets that argparse puts around optional values."""
        return str(action.metavar or "")
