"""Escape text from outside for Markdown, so that it is shown literally.

In:  names, values and samples with any content.
Out: Markdown in which they are plain text: no HTML, no emphasis, no link, no end of a code block.
"""

import html
import re

from hfgpt.base.terminal import visible

# An underscore inside a word is literal anyway: names such as batch_size stay readable in the source.
_SPECIAL = re.compile(r"([\\`*\[\]()#!|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def text(value: str) -> str:
    """Escape a text within a line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(visible(value).split()), quote=False))


def cell(value: str) -> str:
    """Escape a text in a table cell; dots, dashes and underscores are left alone."""
    return html.escape(" ".join(visible(value).split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def code(value: str) -> str:
    """Format a text as inline code."""
    shown = " ".join(visible(value).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def block(value: str, language: str = "text") -> str:
    """Format a text as a code block, with a fence longer than any in it."""
    shown = visible(value.strip("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"
