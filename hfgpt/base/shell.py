"""How a script ends.

In:  its main function.
Out: the process's exit code: 2 after bad input, 1 after a failure, each with its one message; nothing is said where
     whoever read the output has gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from hfgpt.base.errors import ConfigError, Failure, InputError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's main and exit with what it returns (None: 0); an InputError or a Failure ends with its message.

    Where the reader of the output, such as `head`, has seen enough, this ends quietly with 128 + SIGPIPE, as programs
    that know nothing of it do.
    """
    try:
        try:
            status = main()
        except InputError as error:
            lead = "The recipe cannot be used:\n" if isinstance(error, ConfigError) else ""
            print(f"{lead}{error}", file=sys.stderr)
            status = 2
        except Failure as error:
            print(error, file=sys.stderr)
            status = 1
        finally:
            sys.stdout.flush()  # what the interpreter finds broken at its own end, it complains of
    except BrokenPipeError:
        unread = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _is_unread(stream.fileno())]
        if not unread:  # another pipe than these
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in unread:
            os.dup2(nowhere, number)
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _is_unread(number: int) -> bool:
    """Whether this file descriptor is a pipe that nobody reads from any more."""
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
