"""Messages in the user's language.

In:  an English sentence with named fields, such as ``_("step {step}: out of memory", step=7)``.
Out: the same sentence in the chosen language, with its fields filled in.

The language comes from the variable HFGPT_LANG, which the scripts' ``--lang`` sets, otherwise from the locale.
gettext translates sentences from ``hfgpt/locale/<language>/*.po``; a sentence without a translation stays English.
Names of parameters, ``--json`` and metrics.jsonl are the same in every language.
"""

import gettext
import io
import locale
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from hfgpt.locale import compile

LANGUAGES = ("en", "zh")
VARIABLE = "HFGPT_LANG"
CATALOGUE = Path(__file__).parent.parent / "locale"

_chosen: ContextVar[str | None] = ContextVar("language", default=None)
_on_card: ContextVar[bool] = ContextVar("on_card", default=False)

MEMORY = "(?<!主机)内存"
WIDE = "\u2018-\u201d\u2e80-\uffef"  # Chinese characters and punctuation
# A named field, with the spaces around it.
FIELD = rf"(?P<left>(?<=[{WIDE}]) )?{{(?P<field>[^{{}}]+)}}(?P<right> (?=[{WIDE}]))?"


def current() -> str:
    """Return the current language: 'en' or 'zh'."""
    return _chosen.get() or _preferred()


def using(language: str) -> AbstractContextManager[None]:
    """Use this language inside the block."""
    return _inside(_chosen, language)


def about_card(yes: bool) -> AbstractContextManager[None]:
    """Inside the block, memory means a graphics card's, which Chinese calls 显存; other memory is 内存."""
    return _inside(_on_card, yes)


@contextmanager
def _inside(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _(message: str, /, **values: Any) -> str:
    """Return a message in the current language, with its named fields filled in as by :meth:`str.format`."""
    return _in_language(_translations(current()).gettext(message), values)


def _in_language(translated: str, values: dict[str, Any]) -> str:
    if current() == "zh":
        return of_device(_fill(translated, values) if values else translated)
    return translated.format(**values) if values else translated


def of_device(text: str) -> str:
    """Return Chinese text with the device's word for memory, see :func:`about_card`; the host's is 主机内存."""
    return re.sub(MEMORY, "显存", text) if _on_card.get() else text


def plural(one: str, many: str, number: int, /, **values: Any) -> str:
    """Return the singular or plural message for a number, which is its field ``{n}``."""
    translated = _translations(current()).ngettext(one, many, number)
    return _in_language(translated, {"n": number, **values})


def sentences(*parts: str) -> str:
    """Join sentences, with spaces except in Chinese."""
    return ("" if current() == "zh" else " ").join(part for part in parts if part)


def listed(parts: Iterable[str]) -> str:
    """Join words and values as a list in a sentence."""
    return ("、" if current() == "zh" else ", ").join(parts)


def either(parts: Sequence[str]) -> str:
    """Join alternatives, in Chinese with spaces only beside Latin words and numbers."""
    text = _(" or ").join(parts)
    return re.sub(f"(?<=[{WIDE}]) (?=或)|(?<=或) (?=[{WIDE}])", "", text) if current() == "zh" else text


def _fill(message: str, values: dict[str, Any]) -> str:
    """Fill in the fields of a Chinese message, with spaces only around Latin words and numbers."""

    def filled(match: re.Match[str]) -> str:
        value = f"{{{match['field']}}}".format(**values)
        if isinstance(error := values.get(match["field"]), OSError) and error.strerror:
            value = value.replace(error.strerror, _(error.strerror))
        path = "/" in value  # one in Chinese keeps its spaces, which end it
        left = "" if not path and re.match(f"[{WIDE}]", value) else match["left"] or ""
        right = "" if not path and re.search(f"[{WIDE}]$", value) else match["right"] or ""
        return left + value + right

    return re.sub(FIELD, filled, message)


def N_(message: str) -> str:
    """Mark a message that ``_(…)`` translates later."""
    return message


# Operating systems' errors about files and addresses; their other messages are not translated.
SYSTEM = (
    N_("Address already in use"), N_("Cannot assign requested address"), N_("Connection refused"),
    N_("Directory not empty"), N_("Disk quota exceeded"), N_("File exists"), N_("File name too long"),
    N_("Input/output error"), N_("Invalid argument"), N_("Is a directory"), N_("No space left on device"),
    N_("No such file or directory"), N_("Not a directory"), N_("Operation not permitted"), N_("Permission denied"),
    N_("Read-only file system"), N_("Too many levels of symbolic links"), N_("Too many open files"),
)  # fmt: skip


def strerror(error: OSError) -> str:
    """Return the operating system's message for a failure, without the file name."""
    return _(error.strerror) if error.strerror else str(error)


def os_error_text(error: OSError) -> str:
    """Return the file that the system refuses, if it is known, and the system's message."""
    return strerror(error) if error.filename is None else f"{error.filename}: {strerror(error)}"


def language_of(name: str) -> str | None:
    """Return the language that a user names, as zh, zh_CN.UTF-8, cn, 中文 or English; None if it is not one of ours."""
    name = name.strip().lower()
    if name.startswith(("zh", "chinese", "中文")) or name == "cn":
        return "zh"
    return "en" if name.startswith(("en", "英文")) or name in ("c", "posix") else None


def _preferred() -> str:
    """Return the environment's language: HFGPT_LANG, otherwise Chinese if the locale is Chinese, otherwise English."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return language_of(named) or "en"
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(variable):
            return "zh" if value.lower().startswith("zh") else "en"
    system = locale.getlocale()[0] or ""  # Windows and macOS have a locale without these variables
    return "zh" if system.lower().startswith(("zh", "chinese")) else "en"


@lru_cache
def _translations(language: str) -> gettext.NullTranslations:
    """Return a language's catalogue, compiled anew if its sources are newer, as in a clone and after `git pull`."""
    folder = CATALOGUE / language
    if folder.is_dir() and not compile.is_current(folder):
        catalogue = compile.compiled(folder)
        with suppress(OSError):  # a folder that cannot be written keeps the old one
            compile.write(folder, catalogue)
        return gettext.GNUTranslations(io.BytesIO(catalogue))
    return gettext.translation("hfgpt", CATALOGUE, [language], fallback=True)
