"""A simulated Windows: this Python without what only POSIX systems have. As a script, it runs another script.

    python tests/elsewhere.py scripts/train.py recipes/standard.yaml

The library finds neither the modules nor the names below; the packages that it uses still do. Processes are spawned.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
import runpy
import sys
from types import ModuleType
from typing import Any

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": {"sched_getaffinity", "sched_setaffinity", "getloadavg", "memfd_create", "killpg", "getuid", "fork"},
    "signal": {"SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "setitimer", "pthread_sigmask"},
    "select": {"poll", "epoll"},
}

_import = builtins.__import__


class Poorer:
    """A module without some of its names."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name in NAMES[self._module.__name__]:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


def _without_posix(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
    ours = str((globals or {}).get("__name__", "")).split(".")[0] == "hfgpt"
    if ours and name.split(".")[0] in MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = _import(name, globals, *rest, **more)
    return Poorer(module) if ours and name in NAMES else module


def leave_posix() -> None:
    """Make this process look like one on another system from here on."""
    builtins.__import__ = _without_posix
    multiprocessing.set_start_method("spawn")


if __name__ == "__main__":
    leave_posix()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
