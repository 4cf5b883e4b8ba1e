"""Text from outside in Markdown: shown as it is, never obeyed.

In:  names, values and samples, whatever they hold.
Out: Markdown in which they are text: no HTML, no emphasis, no link, no end of a code block.
"""

from __future__ import annotations

import html
import re

from hfgpt.base.terminal import visible

# An underscore inside a word means nothing: names such as batch_size stay readable where Markdown is read as it is.
_SPECIAL = re.compile(r"([\\`*\[\]()#!|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def text(value: str) -> str:
    """A text inside a line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(visible(value).split()), quote=False))


def cell(value: str) -> str:
    """A text in a cell of a table; dots, dashes and underscores stay as they are."""
    return html.escape(" ".join(visible(value).split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def code(value: str) -> str:
    """A text as code inside a line."""
    shown = " ".join(visible(value).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def block(value: str, language: str = "text") -> str:
    """A text as a block of code, whose fence is longer than any in it."""
    shown = visible(value.strip("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"
