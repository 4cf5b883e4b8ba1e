"""The errors that users see, each with its exit code.

In:  what is wrong: a key, its value, the rule it breaks, and how to fix it.
Out: exceptions; a script prints only their message.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from hfgpt.base.language import _

_short = reprlib.Repr()

LONGEST = 120  # characters of a name or value shown in a message
MOST = 50  # faults shown at once
_short.maxstring = _short.maxother = LONGEST


def _show(value: Any) -> str:
    """Return a value's text for a message, short however large or nested the value is."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return _("a number of thousands of digits")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Raised when reading a hostile or damaged JSON file: too deep, too large, not a number, not an object.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class Fault(NamedTuple):
    """One fault in the input."""

    # the key at fault; a value of None is not shown
    key: str
    value: Any
    rule: str  # the rule it breaks
    fix: str = ""  # how to fix it
    others: tuple[str, ...] = ()  # other keys in the rule

    def __str__(self) -> str:
        key = self.key if len(self.key) <= LONGEST else self.key[: LONGEST - 3] + "..."
        shown = key if self.value is None else f"{key} = {_show(self.value)}"
        return _("{value}: {rule}", value=shown, rule=self.rule) + (f"\n    → {self.fix}" if self.fix else "")


class TranslatedError(Exception):
    """An error shown to the user as only its message.

    Args:
        message: as for :func:`_`; text that is already translated stays unchanged.
        values: for its named fields.
    """

    def __init__(self, message: object, /, **values: Any) -> None:
        super().__init__(_(str(message), **values) if message else "")


class InputError(TranslatedError):
    """The user's input cannot be used; the message says which part and how to fix it. Scripts exit with 2."""

    def report(self) -> str:
        return str(self)


class ConfigError(InputError):
    """One or more faults in a recipe or its overrides."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        lines = [f"  {fault}" for fault in self.faults[:MOST]]
        if more := len(self.faults) - len(lines):
            lines.append("  " + _("... and {more:,} more", more=more))
        super().__init__("\n".join(lines))

    def report(self) -> str:
        return _("The recipe cannot be used:") + f"\n{self}"


class CommandError(ConfigError):
    """One or more faults on the command line; `help_command` is the command that prints help."""

    def __init__(self, faults: Sequence[Fault], help_command: str) -> None:
        super().__init__(faults)
        self._help_command = help_command

    def report(self) -> str:
        lead, hint = _("The command cannot be carried out:"), _("{command} explains it", command=self._help_command)
        return f"{lead}\n{self}\n{hint}"


class RunError(TranslatedError):
    """The run failed; the message says at which step and how to continue. Scripts exit with 1."""


class Failure(TranslatedError):
    """Something other than the input failed. Scripts exit with 1."""


class ConversionError(Failure):
    """A model cannot be exported, or the exported file does not hold the same model."""
