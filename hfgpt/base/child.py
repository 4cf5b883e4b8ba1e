"""Training runs that another program starts and stops, each a process in its own session.

In:  the arguments of `python`, and a log file for the output.
Out: a process that outlives its parent, speaks the parent's language, and stops politely when asked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

import psutil

from hfgpt.base.language import VARIABLE, current

OWN: dict[str, Any]
if sys.platform == "win32":
    # Windows has process groups instead of sessions: Ctrl-C does not reach a new group either. SIGTERM would end the
    # process at once; Ctrl-Break can be sent to a group.
    OWN, POLITE = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}, signal.CTRL_BREAK_EVENT
else:
    OWN, POLITE = {"start_new_session": True}, signal.SIGTERM


def start(words: Sequence[str], log: IO[Any]) -> subprocess.Popen[bytes]:
    """Start `python words…`, with all output going to `log` in UTF-8."""
    extra = {VARIABLE: current(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **extra}, **OWN
    )


def ask_to_stop(process: subprocess.Popen[bytes] | psutil.Process) -> None:
    """Ask a training run to finish its step, write a checkpoint and end."""
    process.send_signal(POLITE)
