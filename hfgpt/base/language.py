"""What the program says, in the user's language.

In:  an English sentence with named fields, such as ``_("step {step}: out of memory", step=7)``.
Out: the same sentence in the chosen language, its fields filled in.

The language is that of :func:`use` (the scripts' ``--lang``), else of the variable HFGPT_LANG, else of the locale.
Sentences are translated by gettext, from ``hfgpt/locale/<language>/*.po``; one that has no translation stays English.
Names of parameters, ``--json`` and metrics.jsonl are the same in every language.
"""

from __future__ import annotations

import gettext
import locale
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
VARIABLE = "HFGPT_LANG"
CATALOGUE = Path(__file__).parent.parent / "locale"

_chosen: ContextVar[str | None] = ContextVar("language", default=None)


def current() -> str:
    """The language in use: 'en' or 'zh'."""
    return _chosen.get() or _preferred()


def use(language: str | None) -> None:
    """Speak this language from here on, in this thread; None returns to the user's own."""
    assert language is None or language in LANGUAGES
    _chosen.set(language)


@contextmanager
def using(language: str) -> Iterator[None]:
    """Speak this language inside."""
    token = _chosen.set(language)
    try:
        yield
    finally:
        _chosen.reset(token)


def _(message: str, /, **values: Any) -> str:
    """A message in the language in use, with its named fields filled in as by :meth:`str.format`."""
    translated = _translations(current()).gettext(message)
    return translated.format(**values) if values else translated


def plural(one: str, many: str, number: int, /, **values: Any) -> str:
    """The form of a message that goes with a number, which is its field ``{n}``."""
    return _translations(current()).ngettext(one, many, number).format(n=number, **values)


def sentences(*parts: str) -> str:
    """Sentences one after another; Chinese puts no space between them."""
    return ("" if current() == "zh" else " ").join(part for part in parts if part)


def N_(message: str) -> str:
    """Mark a message for translation that is shown later, by ``_(…)``."""
    return message


def _preferred() -> str:
    """The language of the environment: HFGPT_LANG, else the locale's where it is Chinese, else English."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return named if named in LANGUAGES else "en"
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(variable):
            return "zh" if value.lower().startswith("zh") else "en"
    system = locale.getlocale()[0] or ""  # Windows and macOS know it without a variable
    return "zh" if system.lower().startswith(("zh", "chinese")) else "en"


@lru_cache
def _translations(language: str) -> gettext.NullTranslations:
    return gettext.translation("hfgpt", CATALOGUE, [language], fallback=True)
