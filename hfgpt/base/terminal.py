"""Text as a terminal may have it."""

from __future__ import annotations

import sys
import unicodedata


def visible(text: str) -> str:
    """A text that cannot steer a terminal: but for line feed and tab, control characters are shown as escapes."""
    steering = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    return "".join(c.encode("unicode_escape").decode() if c in steering else c for c in text) if steering else text


def for_output(text: str) -> str:
    """A model's text as standard output may have it: :func:`visible` on a terminal, unchanged in a pipe or a file."""
    return visible(text) if sys.stdout.isatty() else text
