"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def make_readable(path: Path) -> None:
    """Give a file the rights that new files have here; safetensors writes for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def replace_file(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    write_text(temporary, text)
    temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
