"""The commands, a module for each or for a few alike; `hfgpt <command>` and `scripts/<command>.py` call them.

In:  the words of a command line.
Out: the process's exit code.

Here nothing is imported before Ctrl-C is heeded: it would end in a traceback.
"""

import os
import signal
from typing import NoReturn


def run(name: str) -> NoReturn:
    """Be the command of this name: what each of the scripts does."""
    _end_quietly()
    from hfgpt.base import shell
    from hfgpt.commands.choice import carry_out

    shell.run(lambda words: carry_out(name, words))


def hfgpt() -> NoReturn:
    """Be the installed command `hfgpt`, whose first word names a command."""
    _end_quietly()
    from hfgpt.base import shell
    from hfgpt.commands.choice import choose

    shell.run(choose)


def _end_quietly() -> None:
    """Let Ctrl-C end the process at once, until :func:`shell.run` heeds it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
