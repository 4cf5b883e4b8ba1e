"""The entry and exit of every command.

In:  a command's main function.
Out: the exit code: 2 after bad input and 1 after a failure, each with one message; 130 after Ctrl-C and 128 + SIGPIPE
     after a closed pipe, both without a message.

Only this module sets the language, adapts output to its encoding, and handles errors and Ctrl-C.
"""

import codecs
import contextlib
import errno
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

from hfgpt.base import language
from hfgpt.base.errors import ConfigError, Failure, Fault, InputError, RunError, first_line
from hfgpt.base.language import N_, _, os_error_text, strerror
from hfgpt.base.terminal import say, visible

SIGPIPE = 13  # Windows does not define SIGPIPE


def run(main: Callable[[list[str]], int | None], words: Sequence[str] | None = None) -> NoReturn:
    """Call a command's main with the command line's words, and exit with the code it returns (None: 0).

    Args:
        main: the command; it receives the words without ``--lang``, which is applied here.
        words: the command line; defaults to this process's.
    """
    _open_streams()
    _quieten_libraries()
    interrupted = _handle_ctrl_c()
    status = 1
    try:
        try:
            status = main(_choose_language(list(sys.argv[1:] if words is None else words))) or 0
        except InputError as error:
            # All processes on a host read the same command line and recipe: only the first prints.
            first = os.environ.get("LOCAL_RANK", "0") == "0"
            _complain(error.report(), shown=first or not isinstance(error, ConfigError))
            status = 2
        except RunError as error:
            _complain(_("The run failed at {place}", place=error))
        except Failure as error:
            _complain(str(error))
        except OSError as error:
            if error.filename is None:  # perhaps of the output
                raise
            status = _file_failed(error)
        except (MemoryError, RuntimeError) as error:
            if str(error) == "can't start new thread":
                reason = N_("the system starts no more threads → end other programs, or see ulimit -u")
                raise OSError(errno.EAGAIN, reason) from None
            if not _is_out_of_memory(error):
                raise
            _complain(
                _(
                    "out of memory: {reason}\n    → end other programs, or take a smaller model, batch or context",
                    reason=first_line(error) if str(error) else _("the system gives no more"),
                )
            )
        finally:
            sys.stdout.flush()  # otherwise the interpreter reports the broken stream at exit
    except OSError as error:
        if not interrupted:
            status = _output_failed(error)
    except BaseException:
        if not interrupted:  # Ctrl-C may surface as any exception
            raise
    sys.exit(128 + signal.SIGINT if interrupted else status)


# CPython takes memory for the frames of Python functions 16 KB at a time, and returns each piece when its first frame
# ends. A loop whose calls cross the edge of a piece would ask the system for memory at each call: 25,000 times while
# the libraries load, 4% of the start. A frame of more than 2^15 words gets a piece of 2^16, where all its callees fit.
run.__code__ = run.__code__.replace(co_stacksize=2**15 + 1)


# --------------------------------------------------------------------------------------------------------- language

# What libraries would write between a command's own lines, which say the same: "No files have been modified", torch's
# remarks on its memory and sockets. The libraries read these variables when they load.
QUIET = {"HF_HUB_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "6"}

# The libraries' progress bars are English and fill a log; our own messages say what is downloaded.
PROGRESS_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def _quieten_libraries() -> None:
    """Hide what libraries write: their remarks, and their progress bars if there is no terminal."""
    bars = {} if _is_terminal(sys.stderr) else dict.fromkeys(PROGRESS_BARS, "1")
    for variable, value in {**QUIET, **bars}.items():
        os.environ.setdefault(variable, value)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _choose_language(words: list[str]) -> list[str]:
    """Apply ``--lang``, here and in child processes; return the other words.

    Raises:
        InputError: the language is not one of ours.
    """
    rest = list[str]()
    while words:
        word = words.pop(0)
        if word != "--lang" and not word.startswith("--lang="):
            rest.append(word)
            continue
        chosen = word[7:] if "=" in word else words.pop(0) if words else ""
        os.environ[language.VARIABLE] = _check_language("lang", chosen)
    if named := os.environ.get(language.VARIABLE):  # after --lang, which replaces it
        _check_language(language.VARIABLE, named)
    if language.current() == "zh" and not _can_show("中"):
        os.environ[language.VARIABLE] = "en"
    if language.current() == "zh":
        for variable in PROGRESS_BARS:
            os.environ.setdefault(variable, "1")
    return rest


def _check_language(key: str, named: str) -> str:
    """Return the language that a user names."""
    chosen = language.language_of(named)
    if chosen is None:
        raise InputError(str(Fault(key, named, _("must be {choices}", choices=" | ".join(language.LANGUAGES)))))
    return chosen


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- output

# Replacements for encodings without these characters.
PLAIN = {"→": "->", "←": "<-", "–": "-", "—": "-", "…": "...", "×": "x", "·": ".", "≤": "<=", "≥": ">=", "≈": "~",
         "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "−": "-", "±": "+/-", "²": "^2", "─": "-", "━": "-",
         "│": "|", "┃": "|", "\N{NO-BREAK SPACE}": " "}  # fmt: skip


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handle a codec's error: typographic characters become plain ones, others become escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


def _open_streams() -> None:
    """Make sure that every standard stream exists and accepts any character."""
    codecs.register_error("hfgpt", _replace)
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # otherwise the next file opened gets this number, and output goes into it
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors="hfgpt")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, which is not imported here, got no memory from the system or from a device."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _file_failed(error: OSError) -> int:
    """Print which file the system refuses, and why; return the exit code."""
    if error.errno == errno.ENAMETOOLONG:
        _complain(_("{path}: the name is too long for a file or a folder", path=f"'{str(error.filename)[:40]}…'"))
        return 2
    if error.errno == errno.ENOENT and error.filename is None and _is_nowhere():
        _complain(_("the current folder has been deleted → change into another one"))
        return 2
    _complain(os_error_text(error))
    return 2 if isinstance(error, PermissionError) else 1


def _is_nowhere() -> bool:
    """Whether the current folder was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _output_failed(error: OSError) -> int:
    """Return the exit code after a failed write: silent if the reader has gone, with a message if the disk is full.

    Raises:
        OSError: the system has not said why.
    """
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream, error)]
    if not unread:
        if error.errno is None:
            raise error
        return _file_failed(error)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in unread:
        os.dup2(nowhere, stream.fileno())
    if isinstance(error, BrokenPipeError):
        return 128 + SIGPIPE
    say(_("The output cannot be written: {reason}", reason=strerror(error)), sys.stderr)
    return 1


def _is_broken(stream: object, error: OSError) -> bool:
    """Whether writing to this stream fails with this error."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        if isinstance(error, BrokenPipeError):
            return _is_unread(number)
        return error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF) and error.filename is None and not _writes(number)
    except (OSError, ValueError):
        return False


def _is_unread(number: int) -> bool:
    """Whether this file descriptor is a pipe without a reader."""
    try:
        from select import POLLERR, POLLHUP, poll
    except ImportError:  # Windows
        return True
    poller = poll()
    poller.register(number, 0)
    return any(event & (POLLERR | POLLHUP) for _number, event in poller.poll(0))


def _writes(number: int) -> bool:
    """Whether this file descriptor still accepts a byte; writes a line feed."""
    try:
        return os.write(number, b"\n") == 1
    except OSError:
        return False


def _complain(message: str, shown: bool = True) -> None:
    """Print a message on standard error, and pass it to torchrun, whose failure report comes last."""
    if shown:
        say(message, sys.stderr)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": visible(message), "timestamp": int(time.time())}, file)


# ----------------------------------------------------------------------------------------------------------- Ctrl-C


def _handle_ctrl_c() -> list[int]:
    """Let Ctrl-C end the process without a traceback; return a list that stays empty until Ctrl-C.

    A process that was started to ignore it (nohup, or `&` in a script) keeps ignoring it.
    """
    interrupted = list[int]()
    owner = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner or interrupted:  # a forked worker, or a second Ctrl-C
            os._exit(128 + number)
        interrupted.append(number)
        raise KeyboardInterrupt

    def complain(unraisable: "sys.UnraisableHookArgs") -> None:  # a name that only type checkers know
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = complain
    return interrupted


# -------------------------------------------------------------------------------------------------------------- imports


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
