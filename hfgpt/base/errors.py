"""The errors that a user meets, each with the exit code that it leads to.

In:  what was wrong: a key, its value, the rule that it breaks, and what to do about it.
Out: exceptions whose message is all that a script prints.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from hfgpt.base.language import _

_short = reprlib.Repr()

LONGEST = 120  # characters of a name or a value in a message

MOST = 50  # faults that are shown at once

_short.maxstring = _short.maxother = LONGEST


def _show(value: Any) -> str:
    """A value in a message: short, however large or nested it is."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return _("a number of thousands of digits")


def first_line(error: BaseException) -> str:
    """What an error of a library says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# What a hostile or damaged file of JSON raises, read and looked into: too deep, too large, not a number, not an object.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class Fault(NamedTuple):
    """One thing that is wrong with the input."""

    # what is wrong; a value of None is not shown
    key: str
    value: Any
    rule: str  # what must hold
    fix: str = ""  # what to do about it
    others: tuple[str, ...] = ()  # the other keys that the rule is about

    def __str__(self) -> str:
        key = self.key if len(self.key) <= LONGEST else self.key[: LONGEST - 3] + "..."
        shown = key if self.value is None else f"{key} = {_show(self.value)}"
        return _("{value}: {rule}", value=shown, rule=self.rule) + (f"\n    → {self.fix}" if self.fix else "")


class Spoken(Exception):
    """An error whose message is all that the user sees.

    Args:
        message: as :func:`_` takes it; a text that is translated already stays as it is.
        values: of its named fields.
    """

    def __init__(self, message: object, /, **values: Any) -> None:
        super().__init__(_(str(message), **values) if message else "")


class InputError(Spoken):
    """The user's input cannot be used; the message says which part and what to do. Scripts exit with 2."""

    def report(self) -> str:
        """What a script prints."""
        return str(self)


class ConfigError(InputError):
    """One or more faults in a recipe or in what overrides it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        lines = [f"  {fault}" for fault in self.faults[:MOST]]
        if more := len(self.faults) - len(lines):
            lines.append("  " + _("... and {more:,} more", more=more))
        super().__init__("\n".join(lines))

    def report(self) -> str:
        """What a script prints."""
        return _("The recipe cannot be used:") + f"\n{self}"


class CommandError(ConfigError):
    """One or more faults on the command line; `help_command` explains the command."""

    def __init__(self, faults: Sequence[Fault], help_command: str) -> None:
        super().__init__(faults)
        self._help_command = help_command

    def report(self) -> str:
        """What a script prints."""
        lead, hint = _("The command cannot be carried out:"), _("{command} explains it", command=self._help_command)
        return f"{lead}\n{self}\n{hint}"


class RunError(Spoken):
    """The run failed; the message says at which step and how to go on. Scripts exit with 1."""


class Failure(Spoken):
    """Something failed through no fault of the input; the message is all there is to say. Scripts exit with 1."""


class ConversionError(Failure):
    """What was written for another program is not the same model."""
