"""The commands, one module for each or for a few similar ones; `hfgpt <command>` and `scripts/<command>.py` call them.

In:  the arguments of a command line.
Out: the process's exit code.

Nothing is imported here before Ctrl-C is handled, since it would end in a traceback.
"""

import os
import signal
from typing import NoReturn


def run(name: str) -> NoReturn:
    """Run the command of this name, as each of the scripts does."""
    _end_quietly()
    from hfgpt.base import shell
    from hfgpt.commands.choice import carry_out

    shell.run(lambda words: carry_out(name, words))


def hfgpt() -> NoReturn:
    """Run the installed command `hfgpt`, whose first argument names a command."""
    _end_quietly()
    from hfgpt.base import shell
    from hfgpt.commands.choice import choose

    shell.run(choose)


def _end_quietly() -> None:
    """Let Ctrl-C end the process at once, until :func:`shell.run` handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
