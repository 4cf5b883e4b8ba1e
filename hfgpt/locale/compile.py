"""Compile the catalogues: all ``<language>/*.po`` into ``<language>/LC_MESSAGES/hfgpt.mo``, which gettext reads.

    python hfgpt/locale/compile.py

A folder of the library has a catalogue of its own, so that a change there touches no other. The installation runs this
(setup.py), and so do the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALE = Path(__file__).parent


def compile_all() -> list[Path]:
    """Write the compiled catalogue of each language; returns the files."""
    written = []
    for language in sorted(path for path in LOCALE.iterdir() if path.is_dir() and any(path.glob("*.po"))):
        whole = Catalog(locale=language.name, charset="utf-8")
        for source in sorted(language.glob("*.po")):
            with source.open("rb") as file:
                for message in read_po(file, locale=language.name):
                    if message.id and message.string:
                        whole.add(message.id, message.string, context=message.context)
        target = language / "LC_MESSAGES" / "hfgpt.mo"
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")  # several processes may compile at once, as in tests
        with temporary.open("wb") as file:
            write_mo(file, whole)
        temporary.replace(target)
        written.append(target)
    return written


if __name__ == "__main__":
    for path in compile_all():
        print(path)
