"""Watch a command from outside: its output with times, its duration, its peak memory.

In:  a command, its folder and environment.
Out: :class:`Finished`. The command runs unmodified; neither it nor torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
POLL = 0.05  # seconds between two checks of a process


class Failed(Exception):
    """A command ended with an error, or took too long; the message holds the last line.

    Args:
        message: what happened. lines: all that the command printed.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True)
class Finished:
    """A command that has ended, or was stopped once it had done what was waited for."""

    lines: list[str]
    times: list[float]  # when each line arrived, by time.perf_counter
    seconds: float  # from its start to its end, or to the awaited output
    peak_bytes: int | None  # peak memory of its first process; None without /proc


# glibc's names for what hfgpt sets by itself (hfgpt/base/hardware.py: keep_freed_memory).
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def environment(threads: int | None, scratch: Path, allocator: bool = False) -> dict[str, str]:
    """Return the environment in which every side of a comparison is started.

    Args:
        threads: OpenMP threads, each bound to a core: unbound, two may share one, which costs a multiple of a step's
            time and decides any comparison. None leaves number and places to the program that is started.
        scratch: a folder for its caches.
        allocator: whether glibc keeps freed memory, as hfgpt has it do in any case.
    """
    dropped = ("OMP_", "MKL_", "GOMP_", "KMP_", "MALLOC_")
    made = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    made |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",  # each line gets the time of its arrival
        "HF_DATASETS_CACHE": str(scratch / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    if threads is not None:
        made |= {"OMP_PROC_BIND": "true", "OMP_NUM_THREADS": str(threads)}
    return made | (KEEP_FREED_MEMORY if allocator else {})


def run(
    command: Sequence[str | Path],
    env: dict[str, str],
    cwd: Path = ROOT,
    until: Callable[[list[str]], bool] | None = None,
    limit: float = math.inf,
) -> Finished:
    """Run a command to its end, or kill it once its output so far satisfies `until`, or after `limit` seconds.

    Raises:
        Failed: it ended with an error, before `until` was satisfied, or took longer than `limit`.
    """
    lines, times = list[str](), list[float]()

    def read() -> None:
        for line in process.stdout:
            times.append(time.perf_counter())
            lines.append(line)  # one by one, since `until` reads them meanwhile

    began, peak, reached, late = time.perf_counter(), 0, False, False
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C reaches it through us alone
    )
    try:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while reader.is_alive() and not reached and not late:
            peak = max(peak, high_water(process.pid))
            reached = until is not None and until(lines)
            reader.join(POLL if not reached else 0)
            late = time.perf_counter() - began > limit
        if not reached and not late:
            process.wait()
        seconds = time.perf_counter() - began
    finally:
        if process.poll() is None or late:
            kill(process.pid)
        process.wait()
        process.stdout.close()
    if not reached and (late or process.returncode or until is not None):
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing printed")
        ended = f"killed after {limit:.0f} s" if late else f"exit code {process.returncode}"
        raise Failed(f"{ended}: {last}", lines)
    return Finished(lines, times, seconds, peak or None)


def kill(pid: int) -> None:
    """Kill a process and its descendants; torchrun gives its workers a session each."""
    descendants = list[psutil.Process]()
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for each in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def answer(lines: Sequence[str]) -> Any:
    """Return the JSON that a command printed: its last line that is JSON by itself, or else from its first brace on.

    Libraries' warnings may stand before and after it, since both outputs are read together.

    Raises:
        Failed: there is no JSON.
    """
    for line in reversed(lines):
        if line.startswith(("{", "[")) and line.rstrip().endswith(("}", "]")):
            with contextlib.suppress(ValueError):
                return json.loads(line)
    text = "".join(lines)
    for start in re.finditer(r"^[{\[]", text, flags=re.MULTILINE):
        with contextlib.suppress(ValueError):
            return json.JSONDecoder().raw_decode(text, start.start())[0]
    raise Failed("printed no JSON", lines)


def high_water(pid: int) -> int:
    """Return the bytes of a process's largest resident set so far (VmHWM); 0 if the system does not report it.

    The kernel keeps the maximum, so occasional reads miss only the last moment. The maximum that wait4 reports would
    begin with the memory of whoever started the process.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def script(name: str, env: dict[str, str], *arguments: str) -> Any:
    """Run a script of this folder; return the JSON on its last output line."""
    return answer(run([sys.executable, ROOT / "benchmarks" / name, *arguments], env).lines)
