"""Imports of libraries: faster for large ones, with an install hint for optional ones.

In:  a block that imports them.
Out: the same modules, in less time; Ctrl-C during the import ends the process.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hfgpt.base.errors import InputError


@contextmanager
def uncollected() -> Iterator[None]:
    """Import large libraries inside the block, without garbage collection of their objects.

    torch and transformers create a million permanent objects. Scanning them repeatedly takes a sixth of the import's
    time, and would slow every later collection. Where nothing is imported, nothing is set aside either: a process that
    runs many commands would keep all the garbage between them.

    Ctrl-C ends the process at once, with 130: libraries catch KeyboardInterrupt during an import, and continue broken.
    """
    was_enabled, before, imported = gc.isenabled(), None, len(sys.modules)
    gc.disable()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        before = signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if len(sys.modules) > imported:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import an optional extra's package inside the block; if it is missing, an InputError names the extra."""
    try:
        yield
    except ImportError as error:
        command = f"pip install -e '.[{extra}]'"
        raise InputError("this needs {package} → {command}", package=error.name, command=command) from None
