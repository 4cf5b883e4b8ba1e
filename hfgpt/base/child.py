"""Trainings that another program starts, and asks to stop: each a process with a session of its own.

In:  what stands behind `python`, and a file for what it prints.
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
    # No sessions there, but groups: Ctrl-C does not reach a new one either. SIGTERM would end the process on the spot;
    # Ctrl-Break is what a group can be sent.
    OWN, POLITE = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}, signal.CTRL_BREAK_EVENT
else:
    OWN, POLITE = {"start_new_session": True}, signal.SIGTERM


def start(words: Sequence[str], log: IO[Any]) -> subprocess.Popen[bytes]:
    """Start `python words…`; all that it prints goes into `log`, in UTF-8."""
    ours = {VARIABLE: current(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **ours}, **OWN
    )


def ask_to_stop(process: subprocess.Popen[bytes] | psutil.Process) -> None:
    """Ask a training to finish its step, write a checkpoint and end."""
    process.send_signal(POLITE)
