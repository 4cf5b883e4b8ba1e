"""The layout of a help page.

In:  the options and texts that an argparse parser holds.
Out: text of the terminal's width, in which Chinese characters count as two columns.
"""

from __future__ import annotations

import argparse
import re

from hfgpt.base.terminal import width, wrap


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
