"""Small pieces of the page: HTML, and components and handlers in the reader's language.

In:  texts and figures, of which every text from outside is escaped; a component with texts, or a handler whose first
     argument is the language.
Out: HTML in the page's own colours, light and dark (style.css); texts and answers in the language that each request
     specifies.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from hfgpt import config as configs
from hfgpt.base.language import LANGUAGES, _, listed, os_error_text, using
from hfgpt.base.terminal import say


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


Texts = Callable[[], dict[str, Any]]


def in_language(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler whose first argument is the language, so that its body uses that language.

    A file that the system refuses becomes one message on the page and on standard error, without a traceback.

    Gradio runs each step of a generator in its own context, so each step sets the language again.
    """

    def steps(self: Any, language: str, *values: Any) -> Iterator[Any]:
        generator = handler(self, *values)
        while True:
            with _speaking(language):
                try:
                    answer = next(generator)
                except StopIteration:
                    return
            yield answer

    def once(self: Any, language: str, *values: Any) -> Any:
        with _speaking(language):
            return handler(self, *values)

    wrapper: Callable[..., Any] = steps if inspect.isgeneratorfunction(handler) else once
    wrapper.__name__, wrapper.__doc__ = handler.__name__, handler.__doc__  # but not its signature, which Gradio reads
    return wrapper


@contextmanager
def _speaking(language: str) -> Iterator[None]:
    with using(_known(language)):
        try:
            yield
        except OSError as error:
            message = os_error_text(error)
            say(message, sys.stderr)
            raise gr.Error(message, print_exception=False) from None


def _known(language: str) -> str:
    return language if language in LANGUAGES else "en"


class Labels:
    """Components whose texts change with the language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts: list[tuple[Any, Texts]] = []

    def add(self, kind: Callable[..., Any], texts: Texts, *given: Any, **more: Any) -> Any:
        """Create a component with its texts in the first language."""
        with using(self.language):
            component = kind(*given, **more, **texts())
        self._texts.append((component, texts))
        return component

    @property
    def components(self) -> list[Any]:
        return [component for component, _texts in self._texts]

    def updates(self, language: str) -> list[Any]:
        """Return the components' texts in another language."""
        with using(_known(language)):
            return [gr.update(**texts()) for _component, texts in self._texts]


def slider(*given: Any, **more: Any) -> Any:
    """A slider that passes typed values unchecked, so that an error is shown beside it, not in a passing note.

    (A subclass would be plainer, but Gradio writes a .pyi file beside the module of any subclass.)
    """
    component: Any = gr.Slider(*given, **more)
    component.preprocess = lambda value: value
    return component
