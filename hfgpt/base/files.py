"""Files that are written whole or not at all.

In:  a path, and what it is to hold.
Out: the file as it was or as it is to be, whatever interrupts the writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfgpt.base.errors import InputError
from hfgpt.base.language import why


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into: it takes the place of `path` once it is on the disk.

    Where the block raises, the new file is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """As :func:`replacing`, for a file that does not exist yet, and whose folder need not.

    Raises:
        InputError: it exists already, or cannot be written.
    """
    path = Path(target).expanduser()
    if path.exists():
        raise InputError("{file!r}: exists already; name another file", file=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError("{file!r}: cannot be written: {reason}", file=str(path), reason=why(error)) from None


def replace_file(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, never a part."""
    with replacing(path) as temporary:
        write_text(temporary, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file and wait until the disk has it."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the entries of a folder, which Windows writes by itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_readable(path: Path) -> None:
    """Give a file the rights that new files have here; safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
