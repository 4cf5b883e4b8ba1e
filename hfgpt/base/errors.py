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

_short.maxstring = _short.maxother = 120


def _show(value: Any) -> str:
    """A value in a message: short, however large or nested it is."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return _("a number of thousands of digits")


class Fault(NamedTuple):
    """One thing that is wrong with the input.

    Attributes:
        key, value: what is wrong; a value of None is not shown.
        rule: what must hold.
        fix: what to do about it.
        others: the other keys that the rule is about.
    """

    key: str
    value: Any
    rule: str
    fix: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = self.key if self.value is None else f"{self.key} = {_show(self.value)}"
        return _("{value}: {rule}", value=shown, rule=self.rule) + (f"\n    → {self.fix}" if self.fix else "")


class InputError(Exception):
    """The user's input cannot be used; the message says which part and what to do. Scripts exit with 2."""

    def report(self) -> str:
        """What a script prints."""
        return str(self)


class ConfigError(InputError):
    """One or more faults in a recipe or in what overrides it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(f"  {fault}" for fault in self.faults))

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


class RunError(Exception):
    """The run failed; the message says at which step and how to go on. Scripts exit with 1."""


class Failure(Exception):
    """Something failed through no fault of the input; the message is all there is to say. Scripts exit with 1."""
