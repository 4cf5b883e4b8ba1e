"""A Python that has loaded the libraries: an interpreter for tests whose subject is what a command does.

Importing torch, Transformers and the rest takes several seconds of every process, longer than the small runs of the
tests. So one process, the server, imports them once, and forks for each command. The interpreter that tests start is a
small client: it hands its arguments, folder, environment and open files to the server, forwards signals to the child,
and ends as the child ends. It replaces ``sys.executable`` in the child, so a launcher's processes and a sweep's trials
start in the same way.

A command with options of the interpreter, or with an environment that libraries read when they are imported, gets a
process of its own. So does a test of start-up itself, which uses ``sys.executable`` of the tests.

As a script, this file is the server: ``warm_python.py SOCKET CLIENT``. It ends when its standard input does.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfgpt.base import shell

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys

def itself():
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])

words = sys.argv[1:]
environment = dict(os.environ)
if words[:1] == ["-u"]:  # as torchrun starts its workers
    words.pop(0)
    environment["PYTHONUNBUFFERED"] = "1"
if not words or (words[0][0] == "-" and words[0] not in ("-m", "-c")):
    itself()
child, early = 0, []

def forward(number, _frame):
    os.kill(child, number) if child else early.append(number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, forward)
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
asked = json.dumps([words, os.getcwd(), environment, ignored])
socket.send_fds(server, [b"+"], [0, 1, 2])
server.sendall(asked.encode() + b"\\n")
answers = server.makefile()
child = int(answers.readline())
if not child:
    itself()
for number in early:
    os.kill(child, number)
for descriptor in (0, 1, 2):  # the child's end is the end of its pipes
    os.close(descriptor)
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""

PRELOADED = (
    "accelerate.commands.launch",
    "datasets",
    "evaluate",
    "matplotlib.pyplot",
    "torch.distributed.run",
    "hfgpt.inference.figures",
    "hfgpt.plan.command",
    "hfgpt.sweep.trials",
    "hfgpt.train.loop",
)

# The beginnings of variables that libraries read while they are imported, or the interpreter when it starts.
AT_IMPORT = ("CUDA", "HF_", "HUGGING", "KMP_", "LANG", "LC_", "MKL_", "MPL", "OMP_", "PYTHON", "TOKENIZERS", "XDG_")
OBEYED = ("PYTHONIOENCODING", "PYTHONPATH", "PYTHONUNBUFFERED")  # except these, which a child obeys
# ... and these, which every command sets without a terminal; so does the server, before it imports anything.
SET_BY_COMMANDS = {**shell.QUIET, **dict.fromkeys(shell.PROGRESS_BARS, "1")}


@contextmanager
def warm_python(**variables: str) -> Iterator[str]:
    """Start the server, with more variables in its environment; the value is the interpreter's path."""
    if not hasattr(os, "pidfd_open"):  # on other systems than Linux each command is a process of its own
        yield sys.executable
        return
    with (
        tempfile.TemporaryDirectory(prefix="hfgpt-") as folder,
        subprocess.Popen(
            [sys.executable, __file__, f"{folder}/socket", f"{folder}/python"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **SET_BY_COMMANDS, **variables},
        ) as server,
    ):
        assert server.stdin
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        yield f"{folder}/python"
        server.stdin.close()


def serve(path: str, client: str) -> None:
    """Import the libraries, write the client, and fork for each connection until standard input ends."""
    for name in PRELOADED:
        __import__(name)
    Path(client).write_text(CLIENT.format(python=sys.executable, socket=path), encoding="utf-8")
    Path(client).chmod(0o755)
    sys.executable = client
    gc.freeze()  # a collection in a child would otherwise copy every page of the libraries
    answering = set[int]()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            readable, _writable, _failed = select.select([listener, sys.stdin], [], [])
            answering -= {process for process in answering if os.waitpid(process, os.WNOHANG)[0]}
            if sys.stdin in readable:
                break
            connection, _address = listener.accept()
            process = os.fork()
            if not process:
                listener.close()
                answer(connection)
            answering.add(process)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Start the child that a client asks for, and report its number and its end; kill it if the client or tests end."""
    _byte, streams, _flags, _address = socket.recv_fds(connection, 1, 3)
    words, folder, environment, ignored = json.loads(connection.makefile("rb").readline())
    if at_import(environment) != at_import(dict(os.environ)):
        connection.sendall(b"0\n")
        os._exit(0)
    child = os.fork()
    if not child:
        connection.close()
        os.setsid()
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        for stream, number in zip(streams, (0, 1, 2), strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(become(words))  # an ordinary exit would take longer than the command
    for descriptor in (1, 2, *streams):
        os.close(descriptor)
    connection.sendall(b"%d\n" % child)
    ended = os.pidfd_open(child)
    if ended not in select.select([connection, ended, 0], [], [])[0]:
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(b"%d\n" % code)
    finally:
        os._exit(0)


def at_import(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that must be those of the server."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_IMPORT) and name not in OBEYED and SET_BY_COMMANDS.get(name) != value and value
    }


def become(words: list[str]) -> int:
    """Run `python words…`; return its exit code."""
    encoding, _colon, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding=encoding or None, errors=errors or None, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding=encoding or None, errors=errors or None, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(
        2, "w", 1, encoding=encoding or None, errors="backslashreplace", closefd=False
    )
    sys.stdout.reconfigure(write_through="PYTHONUNBUFFERED" in os.environ)
    try:
        run(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    return code


def run(words: list[str]) -> None:
    """Run a script, a module or a program as the interpreter does."""
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(words[1], None)  # which would be warned of
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
