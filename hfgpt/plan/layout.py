"""Tables and paragraphs for a terminal.

In:  titles, rows, sentences.
Out: text: on a terminal coloured and as wide as it is, otherwise plain and 100 columns wide.
"""

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import rich.table
from rich import box
from rich.console import Console, Group, RenderableType
from rich.containers import Lines
from rich.text import Text

from hfgpt.base.terminal import breaks, visible

PLAIN_WIDTH = 100  # columns, if the output is not a terminal and COLUMNS is not set


class Prose(Text):
    """Text that breaks where Chinese and English may break: rich breaks at spaces, and long Chinese texts anywhere."""

    def wrap(self, console: Console, width: int, *, no_wrap: bool | None = None, **options: Any) -> Lines:
        """Return its lines, of at most `width` columns."""
        if no_wrap or self.no_wrap:
            return super().wrap(console, width, no_wrap=True, **options)
        lines = Lines()
        for line in self.split(allow_blank=True):
            for part in line.divide(breaks(line.plain, width, fold=True)):
                part.rstrip()
                lines.append(part)
        if justify := options.get("justify") or self.justify:
            lines.justify(console, width, justify=justify, overflow="fold")
        return lines


def show(parts: Iterable[RenderableType]) -> str:
    """Render tables and paragraphs for standard output."""
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=sys.stdout.isatty(), width=_columns(), highlight=False)
    for part in parts:
        to_copy = isinstance(part, Text) and part.no_wrap is True
        console.print(part if to_copy else Group(part), soft_wrap=to_copy)  # print would make plain text of Prose
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 20:
        return int(columns)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH


class Table(NamedTuple):
    """A table before it is laid out, for a terminal or a page; columns in `words` hold text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    words: Sequence[int] = (0, -1)

    def __rich__(self) -> Group:
        """Return it with its title above and the note below; text is left-aligned, numbers right-aligned.

        Numbers are never cut, nor are options to type if 100 columns suffice; words wrap.
        """
        rows = [[visible(str(cell)) for cell in row] for row in self.rows]
        grid = rich.table.Table(box=box.SIMPLE_HEAD, show_header=any(self.columns), pad_edge=False, padding=(0, 1))
        left = {index % len(self.columns) for index in self.words}
        for index, column in enumerate(self.columns):
            if index in left:
                whole = _columns() >= PLAIN_WIDTH and any(row[index].startswith("--") for row in rows)
                grid.add_column(column, justify="left", overflow="fold", min_width=8, no_wrap=whole)
            else:
                grid.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            grid.add_row(*map(Prose, row))
        note = Prose(f"{visible(self.note)}\n" if self.note else "")
        return Group(Prose(visible(self.title), style="bold"), grid, note)


def paragraph(text: str, bold: bool = False) -> Text:
    """Return a paragraph and an empty line."""
    return Prose(f"{visible(text)}\n", style="bold" if bold else "")


def command(text: str) -> Text:
    """Return a line to copy: never wrapped, however narrow the output is."""
    return Text(visible(text), no_wrap=True)
