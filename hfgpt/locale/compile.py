"""Compile the catalogues: all ``<language>/*.po`` into ``<language>/LC_MESSAGES/hfgpt.mo``, which gettext reads.

    python hfgpt/locale/compile.py

A folder of the library has a catalogue of its own, so that a change there touches no other. The installation runs this
(setup.py), and so do the tests, and hfgpt itself where a catalogue is newer than what was compiled, as after
``git pull``. Only the standard library is needed.
"""

import ast
import os
import struct
from collections.abc import Iterator
from pathlib import Path

LOCALE = Path(__file__).parent
PLURAL = "msgstr[0]"  # Chinese has one form for all numbers


def messages(source: Path) -> Iterator[tuple[str, str]]:
    """Yield a catalogue's messages with their translations, as gettext keeps them: plural forms are joined by NUL."""
    entry, key = dict[str, str](), ""
    for line in [*source.read_text("utf-8").splitlines(), 'msgid ""']:
        keyword, _space, text = line.strip().partition(" ")
        if keyword.startswith("msg"):
            if keyword == "msgid":
                yield from _whole(entry)
                entry = {}
            key, entry[keyword] = keyword, ast.literal_eval(text)
        elif line.startswith('"'):
            entry[key] += ast.literal_eval(line.strip())


def _whole(entry: dict[str, str]) -> Iterator[tuple[str, str]]:
    if translated := entry.get("msgstr") or entry.get(PLURAL):
        yield "\0".join(entry[key] for key in ("msgid", "msgid_plural") if key in entry), translated


def compiled(language: Path) -> bytes:
    """Return the compiled catalogue of a language's folder, in the format of GNU gettext."""
    found = dict[bytes, bytes]()
    for source in sorted(language.glob("*.po")):
        for message, translated in messages(source):
            found.setdefault(message.encode(), translated.encode())
    strings = sorted(found.items())
    tables, texts = [b"", b""], b""
    start = 28 + 16 * len(strings)  # the header, and the lengths and places of messages and translations
    for column in (0, 1):
        for pair in strings:
            tables[column] += struct.pack("<II", len(pair[column]), start + len(texts))
            texts += pair[column] + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(strings), 28, 28 + 8 * len(strings), 0, start)
    return header + tables[0] + tables[1] + texts


def target_of(language: Path) -> Path:
    """Return where the compiled catalogue of a language's folder lies."""
    return language / "LC_MESSAGES" / "hfgpt.mo"


def is_current(language: Path) -> bool:
    """Whether the compiled catalogue is there, and no source is newer; an installed package has no sources."""
    try:
        when = target_of(language).stat().st_mtime_ns
        with os.scandir(language) as entries:
            return all(entry.stat().st_mtime_ns <= when for entry in entries if entry.name.endswith(".po"))
    except OSError:
        return False


def compile_all() -> list[Path]:
    """Write the compiled catalogue of each language; returns the files."""
    return [
        write(language, compiled(language))
        for language in sorted(LOCALE.iterdir())
        if language.is_dir() and any(language.glob("*.po"))
    ]


def write(language: Path, catalogue: bytes) -> Path:
    """Write a compiled catalogue. Raises: OSError: the folder cannot be written."""
    target = target_of(language)
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")  # several processes may compile at once, as in tests
    temporary.write_bytes(catalogue)
    temporary.replace(target)
    return target


if __name__ == "__main__":
    for path in compile_all():
        print(path)
