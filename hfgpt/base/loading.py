"""Libraries, loaded: large ones sooner, optional ones with a word on how to install them.

In:  a block that imports them.
Out: the same modules, in less time; Ctrl-C meanwhile ends the process.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hfgpt.base.errors import InputError


@contextmanager
def uncollected() -> Iterator[None]:
    """Import large libraries inside: their objects are never looked through for garbage.

    torch and transformers make a million objects that stay. Looking through them again and again takes a sixth of the
    import's time, and would slow every later search.

    Ctrl-C ends the process at once, with 130: libraries catch what it raises inside an import, and go on broken.
    """
    was_enabled, before = gc.isenabled(), None
    gc.disable()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        before = signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra of the installation brings inside; one that is missing is an InputError that names it."""
    try:
        yield
    except ImportError as error:
        command = f"pip install -e '.[{extra}]'"
        raise InputError("this needs {package} → {command}", package=error.name, command=command) from None
