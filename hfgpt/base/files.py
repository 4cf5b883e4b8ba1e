"""Atomic file writes.

In:  a path and its new content.
Out: the old file or the complete new one, whatever interrupts the write.
"""

import contextlib
import errno
import hashlib
import os
import re
import select
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, strerror

WRITING = ".writing"  # the folder inside a new folder in which its files are written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path` to write to; it replaces `path` once it is on disk.

    If the block raises, the new file is removed and `path` stays unchanged.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with disk_errors(path):
            yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise whatever says that the disk failed as an OSError that names `path`.

    Libraries in Rust (tokenizers, safetensors) raise errors of their own, torch a RuntimeError while it handles the
    OSError, NumPy an OSError without a number, and a write to an open file names no file.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read the output has gone, and no file is to blame
        raise
    except Exception as error:
        if (number := _error_number(error)) is None or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error; None if the system did not cause it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if type(error) is RuntimeError and isinstance(error.__context__, OSError) and not error.__suppress_context__:
        return error.__context__.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    short = isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return errno.ENOSPC if short else None


@contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """Like :func:`replacing`, for a file that does not exist yet; its folder is created if necessary.

    Raises:
        InputError: the file exists already, or cannot be written.
    """
    path = expanded(target)
    if path.exists():
        raise InputError("{file!r}: exists already; name another file", file=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError("{file!r}: cannot be written: {reason}", file=str(path), reason=strerror(error)) from None


def check_writable(folder: Path, key: str, shown: Path | None = None) -> None:
    """Check, before long work, that a folder can be made or written in; makes nothing.

    Raises:
        InputError: it cannot; names the option `key`, and `shown` as its value.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(
            "{key} = {folder!r}: cannot be written: {reason}",
            key=key,
            folder=str(shown or folder),
            reason=strerror(error),
        ) from None


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make a folder for the block to fill; if the block raises, what it wrote is removed.

    Raises:
        OSError: the disk is full or not writable.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    try:
        with disk_errors(folder):
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if made:
                folder.rmdir()
        raise


@contextmanager
def filled_at_once(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder` to write files in; all of them move up once they are on disk."""
    temporary = folder / WRITING
    shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted start
    with filling(folder):
        temporary.mkdir()
        yield temporary
        written = sorted(temporary.iterdir())
        for path in written:
            sync(path)
        for path in written:
            path.replace(folder / path.name)
        temporary.rmdir()
        sync(folder)


def check_regular(path: Path) -> None:
    """Check that a file is regular: reading a pipe may block, and a device never ends.

    Raises:
        OSError: it is not a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, N_("not a file"), str(path))


def read_regular(path: Path) -> str:
    """Return the text of a file that a run or a sweep wrote. Raises OSError: it is not a file, or cannot be read."""
    check_regular(path)
    return path.read_text(encoding="utf-8")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder; unchanged if the user does not exist."""
    return Path(os.path.expanduser(path))


WRITER = 3.0  # seconds that a pipe may stay without a process that writes into it


def open_text(path: Path, encoding: str, newline: str | None = None) -> TextIO:
    """Open a text to read, like :func:`open`. A pipe is waited for only while a process writes into it.

    Raises:
        OSError: it cannot be opened, or is a pipe without a writer.
    """
    if not path.is_fifo():
        return open(path, encoding=encoding, newline=newline)
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not select.select([number], [], [], WRITER)[0] and _has_no_writer(number):
            raise OSError(errno.EINVAL, N_("a pipe into which no process writes"), str(path))
        os.set_blocking(number, True)
        return open(number, encoding=encoding, newline=newline)
    except BaseException:
        os.close(number)
        raise


def _has_no_writer(number: int) -> bool:
    """Whether an empty pipe has no writer: reading from it does not block."""
    try:
        os.read(number, 1)
    except BlockingIOError:
        return False
    return True


def replace_file(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old or the new content, never a part."""
    with replacing(path) as temporary:
        write_text(temporary, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file and wait until it is on disk.

    Half a surrogate pair, which JSON from outside can hold, becomes an escape, as JSON spells it.
    """
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
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
