"""Small pieces of HTML: sentences, tables, tiles, dots of colour.

In:  texts and figures. Every text from outside is escaped.
Out: HTML in the page's own colours, light and dark (style.css).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any

from hfgpt import config as configs
from hfgpt.base.language import _, listed


def message(text: str, kind: str = "note") -> str:
    """A sentence in a frame; kind: 'note', 'good', 'warn' or 'bad'."""
    return f'<p class="notice {kind}">{escape(text)}</p>'


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "", words: bool = True,
    results: Collection[str] = (),
) -> str:  # fmt: skip
    """A table with its own scroll bar; rows that begin with one of `results`, translated, are highlighted.

    `words`: whether the last column holds text, which wraps. On a phone, rows of more than three cells are stacked,
    each cell with the name of its column.
    """
    strong_rows = {_(result) for result in results}
    stacked = len(columns) > 3
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        strong = ' class="result"' if row[0] in strong_rows else ""
        cells = [escape(str(cell)) for cell in row]
        if words:
            cells[-1] = f"<span>{cells[-1]}</span>"
        names = [f' data-label="{escape(column)}"' if stacked else "" for column in columns]
        row_cells = (f"<td{name}>{cell}</td>" for name, cell in zip(names, cells, strict=True))
        body.append(f"<tr{strong}>{''.join(row_cells)}</tr>")
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    shape = "scrolls stacks" if stacked else "scrolls"
    return (
        f'<section class="figures">{heading}<div class="{shape}"><table>{header}<tbody>{"".join(body)}</tbody></table>'
        f"</div>{f'<p>{escape(note)}</p>' if note else ''}</section>"
    )


def tile(name: str, label: str, figure: str, below: str, share: int | None = None, bad: bool = False) -> str:
    """A figure with a label above and its reference below; `share`: percent of a bar."""
    bar = "" if share is None else f'<i class="bar"><i style="width:{min(100, share)}%"></i></i>'
    return (
        f'<div class="tile {"bad" if bad else ""}" id="figure-{name}"><span>{escape(label)}</span>'
        f"<b>{escape(figure)}</b><small>{escape(below)}</small>{bar}</div>"
    )


def tiles(parts: Iterable[str]) -> str:
    """Tiles side by side."""
    return f'<div class="tiles">{"".join(parts)}</div>'


def dot(colour: str) -> str:
    """A run's colour."""
    return f'<i class="dot" style="background:{colour}"></i>'


def value(given: Any) -> str:
    """A parameter's value as written in a recipe."""
    return f"{given:g}" if isinstance(given, float) else configs.yaml_scalar(given)


def changes(change: dict[str, Any]) -> str:
    """Parameters and their new values, in a sentence."""
    return listed(f"{key} {value(new)}" for key, new in change.items())


def loss(value: float | None) -> str:
    """A loss in a table; a dash without one."""
    return "–" if value is None else f"{value:.4f}"
