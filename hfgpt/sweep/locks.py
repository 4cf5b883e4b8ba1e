"""Who works on what: locks between the processes of a sweep, and trainings that outlive the sweep that started them.

In:  a sweep's folder.
Out: locks in ``locks/``, which end with the process that holds them; and beside a trial's lock the process of its
     training, so that a training whose sweep was killed is waited for, not started a second time.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from hfgpt.base.files import replace_file


def take(path: Path, wait: bool = False) -> FileLock | None:
    """Take a lock, which `with` releases; None if another process holds it and `wait` is false."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    return lock


def note_training(path: Path, pid: int) -> None:
    """Write down which process trains."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it has ended already
        return
    replace_file(path, json.dumps({"host": socket.gethostname(), "pid": pid, "started": started}))


def training(path: Path) -> psutil.Process | None:
    """The process written down, while it trains. One of another machine is taken to have ended with its sweep."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        process = psutil.Process(noted["pid"])
        same = noted["host"] == socket.gethostname() and abs(process.create_time() - noted["started"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
