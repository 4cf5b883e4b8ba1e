"""The page in the reader's language: each request is answered in the language that it specifies.

In:  a handler whose first argument is the language, or a component with texts.
Out: the handler's answer, and the components' texts, in that language.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from hfgpt.base.language import LANGUAGES, os_error_text, using
from hfgpt.base.terminal import say

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
        """All of them."""
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
