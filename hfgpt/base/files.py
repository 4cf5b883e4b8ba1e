"""Atomic file writes.

In:  a path and its new content.
Out: the old file or the complete new one, whatever interrupts the write.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, why


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path` to write to; it replaces `path` once it is on disk.

    If the block raises, the new file is removed and `path` stays unchanged.
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
    """Like :func:`replacing`, for a file that does not exist yet; its folder is created if necessary.

    Raises:
        InputError: the file exists already, or cannot be written.
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


def check_regular(path: Path) -> None:
    """Check that a file is regular: reading a pipe may block, and a device never ends.

    Raises:
        OSError: it is not a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, N_("not a file"), str(path))


def replace_file(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old or the new content, never a part."""
    with replacing(path) as temporary:
        write_text(temporary, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file and wait until it is on disk."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush a file to disk, or a folder's entries, which Windows flushes by itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_readable(path: Path) -> None:
    """Give a file the default permissions of new files; safetensors lets only the owner read it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
